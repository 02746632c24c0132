"""Extended attributes: namespaces, flags, limits; ACLs and permission bits in step."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from bftfs import limits
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.inode import (
    XATTR_CREATE,
    XATTR_REPLACE,
    ExtendedName,
    ExtendedSetting,
)
from bftfs.filesystem.objects import NoArguments
from bftfs.identifiers import ObjectId
from tests.unit.filesystem.test_acl import acl
from tests.unit.filesystem.test_attribute_methods import file_of, put
from tests.unit.filesystem.test_directory import Tree, refused, tree
from tests.unit.filesystem.world import ALICE, BOB, ROOT, ROOT_ID

__all__ = ["tree"]

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


def set_value(
    tree: Tree, identifier: ObjectId, name: bytes, value: bytes, who: Any = ROOT, flags: int = 0
) -> Attributes:
    outcome = tree.objects.perform(
        registry.SET_EXTENDED, (identifier,), ExtendedSetting(name, value, flags), who
    )
    return outcome.attributes[0]


def get_value(tree: Tree, identifier: ObjectId, name: bytes, who: Any = ROOT) -> bytes:
    answer = tree.objects.perform(registry.GET_EXTENDED, (identifier,), ExtendedName(name), who)
    return answer.value


def remove(tree: Tree, identifier: ObjectId, name: bytes, who: Any = ROOT) -> Attributes:
    outcome = tree.objects.perform(registry.REMOVE_EXTENDED, (identifier,), ExtendedName(name), who)
    return outcome.attributes[0]


def names(tree: Tree, identifier: ObjectId, who: Any = ROOT) -> list[bytes]:
    answer = tree.objects.perform(registry.LIST_EXTENDED, (identifier,), NoArguments(), who)
    return sorted(answer.names)


def test_values_are_set_read_listed_and_removed(tree: Tree) -> None:
    file = file_of(tree)
    before = tree.get(file)
    after = set_value(tree, file, b"user.a", b"\0one", ALICE)
    assert after.ctime_ns > before.ctime_ns
    assert (after.mtime_ns, after.contents) == (before.mtime_ns, before.contents)
    set_value(tree, file, b"user.b", b"", ALICE)
    assert get_value(tree, file, b"user.a") == b"\0one"
    assert get_value(tree, file, b"user.b") == b""
    assert names(tree, file) == [b"user.a", b"user.b"]
    remove(tree, file, b"user.a", ALICE)
    assert names(tree, file) == [b"user.b"]
    refused(errno.ENODATA, lambda: get_value(tree, file, b"user.a"))
    refused(errno.ENODATA, lambda: remove(tree, file, b"user.a"))


def test_flags(tree: Tree) -> None:
    file = file_of(tree)
    refused(errno.ENODATA, lambda: set_value(tree, file, b"user.a", b"1", flags=XATTR_REPLACE))
    set_value(tree, file, b"user.a", b"1", flags=XATTR_CREATE)
    refused(errno.EEXIST, lambda: set_value(tree, file, b"user.a", b"2", flags=XATTR_CREATE))
    set_value(tree, file, b"user.a", b"3", flags=XATTR_REPLACE)
    assert get_value(tree, file, b"user.a") == b"3"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", errno.ERANGE),
        (b"user." + b"n" * 251, errno.ERANGE),
        (b"user.", errno.EINVAL),
        (b"user.a\0b", errno.EINVAL),
        (b"plain", errno.EOPNOTSUPP),
        (b"other.name", errno.EOPNOTSUPP),
        (b"system.other", errno.EOPNOTSUPP),
    ],
)
def test_names_that_are_none(tree: Tree, name: bytes, code: int) -> None:
    file = file_of(tree)
    refused(code, lambda: set_value(tree, file, name, b""))
    refused(code, lambda: get_value(tree, file, name))
    refused(code, lambda: remove(tree, file, name))


@pytest.mark.parametrize(
    ("name", "mode", "reading", "writing"),
    [
        (b"user.a", 0o644, 0, errno.EACCES),
        (b"user.a", 0o666, 0, 0),
        (b"user.a", 0o600, errno.EACCES, errno.EACCES),
        (b"trusted.a", 0o666, errno.ENODATA, errno.EPERM),
        (b"security.a", 0o600, 0, errno.EPERM),
    ],
)
def test_each_namespace_has_its_rules(
    tree: Tree, name: bytes, mode: int, reading: int, writing: int
) -> None:
    file = file_of(tree, mode)
    set_value(tree, file, name, b"by root")
    if reading:
        refused(reading, lambda: get_value(tree, file, name, BOB))
    else:
        assert get_value(tree, file, name, BOB) == b"by root"
    if writing:
        refused(writing, lambda: set_value(tree, file, name, b"x", BOB))
        refused(writing, lambda: remove(tree, file, name, BOB))
    else:
        set_value(tree, file, name, b"x", BOB)


def test_trusted_names_are_shown_to_the_superuser_alone(tree: Tree) -> None:
    file = file_of(tree, 0o644)
    set_value(tree, file, b"trusted.t", b"")
    set_value(tree, file, b"user.u", b"")
    assert names(tree, file) == [b"trusted.t", b"user.u"]
    assert names(tree, file, ALICE) == [b"user.u"]


@pytest.mark.parametrize("form", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_users_attributes_are_for_files_and_directories(tree: Tree, form: int) -> None:
    inode = tree.create(ROOT_ID, b"x", form | 0o666, target=b"t")
    refused(errno.EPERM, lambda: set_value(tree, inode, b"user.a", b""))
    refused(errno.ENODATA, lambda: get_value(tree, inode, b"user.a"))
    set_value(tree, inode, b"trusted.a", b"")


def test_in_a_sticky_directory_only_the_owner_sets_them(tree: Tree) -> None:
    directory = put(tree, tree.mkdir(ROOT_ID, b"d"), mode=stat.S_IFDIR | 0o1777, uid=ALICE.uid)
    set_value(tree, directory, b"user.a", b"", ALICE)
    refused(errno.EPERM, lambda: set_value(tree, directory, b"user.b", b"", BOB))


def test_limits(tree: Tree) -> None:
    file = file_of(tree)
    largest = b"v" * limits.XATTR_VALUE_BYTES
    set_value(tree, file, b"user.largest", largest)
    assert get_value(tree, file, b"user.largest") == largest
    refused(errno.E2BIG, lambda: set_value(tree, file, b"user.b", largest + b"v"))
    for number in range(1, limits.XATTRS):
        set_value(tree, file, b"user.%d" % number, b"")
    refused(errno.ENOSPC, lambda: set_value(tree, file, b"user.one more", b""))
    set_value(tree, file, b"user.1", b"replaced")
    remove(tree, file, b"user.2")
    set_value(tree, file, b"user.one more", b"")


def test_bytes_are_counted_as_values_come_and_go(tree: Tree) -> None:
    file = file_of(tree)
    value = b"v" * limits.XATTR_VALUE_BYTES
    count = limits.XATTRS_BYTES // (limits.XATTR_VALUE_BYTES + len(b"user.0"))
    for number in range(count):
        set_value(tree, file, b"user.%d" % number, value)
    refused(errno.ENOSPC, lambda: set_value(tree, file, b"user.x", value))
    set_value(tree, file, b"user.0", b"")
    set_value(tree, file, b"user.x", value[:-6])
    for name in names(tree, file):
        remove(tree, file, name)
    after = tree.get(file)
    assert (after.extended, after.extended_bytes) == (0, 0)


# --- access control lists --------------------------------------------------------------------

LISTED = acl("u::rw-,u:1001:rw-,g::r--,m::rw-,o::---")


def test_an_access_list_and_the_permission_bits_are_in_step(tree: Tree) -> None:
    file = file_of(tree, 0o644)
    after = set_value(tree, file, ACCESS, LISTED.encode(), ALICE)
    assert stat.S_IMODE(after.mode) == 0o660
    assert names(tree, file) == [ACCESS]
    assert get_value(tree, file, ACCESS, BOB) == LISTED.encode()
    tree.change(file, ALICE, mode=0o640)
    assert get_value(tree, file, ACCESS) == LISTED.with_mode(0o640).encode()


def test_a_list_that_mode_bits_express_is_not_kept(tree: Tree) -> None:
    file = file_of(tree)
    set_value(tree, file, ACCESS, LISTED.encode())
    after = set_value(tree, file, ACCESS, acl("u::rwx,g::r--,o::--x").encode())
    assert stat.S_IMODE(after.mode) == 0o741
    assert after.flags == 0
    assert names(tree, file) == []
    refused(errno.ENODATA, lambda: get_value(tree, file, ACCESS))


def test_removing_lists(tree: Tree) -> None:
    file = file_of(tree)
    refused(errno.ENODATA, lambda: remove(tree, file, ACCESS))
    set_value(tree, file, ACCESS, LISTED.encode())
    remove(tree, file, ACCESS)
    set_value(tree, file, ACCESS, LISTED.encode())
    set_value(tree, file, ACCESS, b"")
    assert names(tree, file) == []


def test_lists_are_the_owners_business(tree: Tree) -> None:
    file = file_of(tree, 0o666)
    refused(errno.EPERM, lambda: set_value(tree, file, ACCESS, LISTED.encode(), BOB))
    set_value(tree, file, ACCESS, LISTED.encode(), ALICE)
    refused(errno.EPERM, lambda: remove(tree, file, ACCESS, BOB))
    refused(errno.EINVAL, lambda: set_value(tree, file, ACCESS, b"garbage", ALICE))


def test_setting_a_list_takes_a_foreign_groups_privileges(tree: Tree) -> None:
    file = put(tree, file_of(tree), mode=stat.S_IFREG | 0o2755, gid=77)
    assert not set_value(tree, file, ACCESS, LISTED.encode(), ALICE).mode & stat.S_ISGID
    file = put(tree, file, mode=stat.S_IFREG | 0o2755, gid=2000)
    assert set_value(tree, file, ACCESS, LISTED.encode(), ALICE).mode & stat.S_ISGID


def test_default_lists_are_for_directories(tree: Tree) -> None:
    file = file_of(tree)
    refused(errno.EACCES, lambda: set_value(tree, file, DEFAULT, LISTED.encode()))
    symlink = tree.create(ROOT_ID, b"l", stat.S_IFLNK, target=b"t")
    refused(errno.EOPNOTSUPP, lambda: set_value(tree, symlink, ACCESS, LISTED.encode()))
    directory = tree.mkdir(ROOT_ID, b"d")
    before = tree.get(directory).mode
    after = set_value(tree, directory, DEFAULT, LISTED.encode())
    assert after.mode == before
    set_value(tree, directory, ACCESS, LISTED.encode())
    assert names(tree, directory) == [ACCESS, DEFAULT]
