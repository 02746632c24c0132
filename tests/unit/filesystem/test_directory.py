"""Operations on names, on their joint states: who may do what, what is refused, what changes."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Attributes, Changes, encode_attributes
from bftfs.filesystem.directory import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Child,
    Creation,
    DirectoryCreation,
    DirectoryPage,
    Listing,
    Name,
    Relocation,
    Renaming,
)
from bftfs.filesystem.inode import ExtendedName, ExtendedSetting
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind
from bftfs.query_update.object_type import Refusal, encode_record
from tests.builders import InMemoryObjects
from tests.unit.filesystem.test_acl import acl
from tests.unit.filesystem.world import (
    ALICE,
    BOB,
    CAROL,
    ROOT,
    ROOT_ID,
    START_US,
    VOLUME_ID,
    fresh,
)

BLOCK = limits.BLOCK_BYTES_DEFAULT


@dataclass
class Tree:
    """Operations in short form."""

    objects: InMemoryObjects

    def create(
        self,
        directory: ObjectId,
        name: bytes,
        mode: int = stat.S_IFREG | 0o644,
        who: Any = ROOT,
        *,
        umask: int = 0,
        device: int = 0,
        target: bytes = b"",
    ) -> ObjectId:
        child = fresh(ObjectKind.INODE)
        arguments = Creation(name, mode, umask, device, target, BLOCK)
        self.objects.perform(registry.CREATE, (directory, child), arguments, who)
        return child

    def mkdir(
        self,
        directory: ObjectId,
        name: bytes,
        mode: int = 0o755,
        who: Any = ROOT,
        *,
        umask: int = 0,
    ) -> ObjectId:
        child = fresh(ObjectKind.DIRECTORY)
        arguments = DirectoryCreation(name, mode, umask)
        self.objects.perform(registry.MAKE_DIRECTORY, (directory, child), arguments, who)
        return child

    def lookup(self, directory: ObjectId, name: bytes, who: Any = ROOT) -> Child:
        sought = self.objects.perform(registry.LOOKUP, (directory,), Name(name), who)
        assert sought.directory == self.get(directory)
        if sought.child is None:
            raise Refusal(errno.ENOENT)
        return sought.child

    def get(self, identifier: ObjectId) -> Attributes:
        return self.objects.perform(registry.GET_ATTRIBUTES, (identifier,), NoArguments(), ROOT)

    def change(self, identifier: ObjectId, who: Any = ROOT, **changes: Any) -> Attributes:
        outcome = self.objects.perform(
            registry.CHANGE_ATTRIBUTES, (identifier,), Changes(**changes), who
        )
        return outcome.attributes[0]

    def link(self, inode: ObjectId, directory: ObjectId, name: bytes, who: Any = ROOT) -> None:
        self.objects.perform(registry.LINK, (directory, inode), Name(name), who)

    def unlink(self, directory: ObjectId, name: bytes, inode: ObjectId, who: Any = ROOT) -> None:
        self.objects.perform(registry.UNLINK, (directory, inode), Name(name), who)

    def rmdir(self, directory: ObjectId, name: bytes, child: ObjectId, who: Any = ROOT) -> None:
        self.objects.perform(registry.REMOVE_DIRECTORY, (directory, child), Name(name), who)

    def rename(
        self,
        source: ObjectId,
        name: bytes,
        target: ObjectId,
        target_name: bytes,
        child: ObjectId,
        replaced: ObjectId | None = None,
        *,
        flags: int = 0,
        who: Any = ROOT,
    ) -> None:
        self.objects.perform(
            registry.RENAME,
            (source, target, child, replaced or child),
            Renaming(name, target_name, flags),
            who,
        )

    def relocate(
        self,
        source: ObjectId,
        name: bytes,
        target: ObjectId,
        target_name: bytes,
        child: ObjectId,
        replaced: ObjectId | None = None,
        *,
        flags: int = 0,
        who: Any = ROOT,
        epoch: int | None = None,
    ) -> None:
        if epoch is None:
            epoch = self.epoch()
        self.objects.perform(
            registry.RELOCATE,
            (source, target, child, replaced or child, VOLUME_ID),
            Relocation(name, target_name, flags, epoch),
            who,
        )

    def epoch(self) -> int:
        volume = self.objects.perform(registry.DESCRIBE, (VOLUME_ID,), NoArguments(), ROOT)
        return volume.relocations

    def names(self, directory: ObjectId) -> list[bytes]:
        page: DirectoryPage = self.objects.perform(
            registry.READ_DIRECTORY, (directory,), Listing(0, limits.LISTING_BYTES), ROOT
        )
        assert page.complete
        assert len(page.entries) == self.get(directory).entries
        for entry in page.entries:
            assert self.lookup(directory, entry.name) == Child(entry.identifier, entry.file_type)
        return [entry.name for entry in page.entries]


@pytest.fixture
def tree() -> Tree:
    tree = Tree(InMemoryObjects())
    tree.objects.perform(registry.FORMAT, (VOLUME_ID, ROOT_ID), Format(BLOCK, 0o755), ROOT)
    return tree


def refused(code: int, operation: Callable[[], Any]) -> None:
    """Assert that the operation is refused, with that errno, and changes nothing."""
    with pytest.raises(Refusal) as refusal:
        operation()
    assert errno.errorcode[refusal.value.code] == errno.errorcode[code]


# --- making the file system ------------------------------------------------------------------


def test_a_new_root_is_owned_and_its_own_parent(tree: Tree) -> None:
    root = tree.get(ROOT_ID)
    assert stat.filemode(root.mode) == "drwxr-xr-x"
    assert (root.links, root.parent, root.entries) == (2, ROOT_ID, 0)


def test_formatting_again_changes_nothing(tree: Tree) -> None:
    tree.create(ROOT_ID, b"kept")
    again = tree.objects.perform(
        registry.FORMAT, (VOLUME_ID, ROOT_ID), Format(limits.BLOCK_BYTES_MIN, 0o777), ALICE
    )
    assert again.block_bytes == BLOCK
    assert tree.names(ROOT_ID) == [b"kept"]
    assert tree.get(ROOT_ID).uid == 0


def test_formatting_takes_no_directory_that_is_in_use(tree: Tree) -> None:
    used = tree.mkdir(ROOT_ID, b"used")
    refused(
        errno.ESTALE,
        lambda: tree.objects.perform(
            registry.FORMAT, (fresh(ObjectKind.VOLUME), used), Format(BLOCK, 0o777), ALICE
        ),
    )


# --- create ----------------------------------------------------------------------------------


def test_create_makes_an_inode_with_one_link(tree: Tree) -> None:
    before = tree.get(ROOT_ID)
    file = tree.create(ROOT_ID, b"file", stat.S_IFREG | 0o640)
    attributes = tree.get(file)
    assert stat.filemode(attributes.mode) == "-rw-r-----"
    assert (attributes.links, attributes.size, attributes.uid) == (1, 0, 0)
    assert attributes.layout is not None
    assert attributes.layout.block_bytes == BLOCK
    after = tree.get(ROOT_ID)
    assert after.mtime_ns == after.ctime_ns == attributes.ctime_ns > before.mtime_ns
    assert after.links == before.links
    assert tree.lookup(ROOT_ID, b"file") == Child(file, stat.S_IFREG >> 12)


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        (stat.S_IFREG, "-rw-r--r--"),
        (stat.S_IFIFO, "prw-r--r--"),
        (stat.S_IFSOCK, "srw-r--r--"),
        (stat.S_IFCHR, "crw-r--r--"),
        (stat.S_IFBLK, "brw-r--r--"),
    ],
)
def test_special_files(tree: Tree, form: int, shown: str) -> None:
    inode = tree.create(ROOT_ID, b"x", form | 0o666, umask=0o022, device=0x0103)
    attributes = tree.get(inode)
    assert stat.filemode(attributes.mode) == shown
    assert attributes.device == (0x0103 if form in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    assert (attributes.layout is None) == (form != stat.S_IFREG)


def test_devices_are_made_by_the_superuser_alone(tree: Tree) -> None:
    tree.change(ROOT_ID, mode=0o777)
    for form in (stat.S_IFCHR, stat.S_IFBLK):
        refused(errno.EPERM, lambda form=form: tree.create(ROOT_ID, b"x", form | 0o600, ALICE))
    tree.create(ROOT_ID, b"x", stat.S_IFIFO | 0o600, ALICE)


def test_symlinks_keep_their_target_and_all_permissions(tree: Tree) -> None:
    inode = tree.create(ROOT_ID, b"x", stat.S_IFLNK | 0o600, umask=0o077, target=b"../a b\xff")
    assert stat.filemode(tree.get(inode).mode) == "lrwxrwxrwx"
    assert tree.get(inode).size == 7
    target = tree.objects.perform(registry.READ_LINK, (inode,), NoArguments(), BOB)
    assert target == b"../a b\xff"
    tree.create(ROOT_ID, b"long", stat.S_IFLNK, target=b"t" * limits.SYMLINK_BYTES)
    refused(
        errno.ENAMETOOLONG,
        lambda: tree.create(ROOT_ID, b"y", stat.S_IFLNK, target=b"t" * (limits.SYMLINK_BYTES + 1)),
    )
    refused(errno.ENOENT, lambda: tree.create(ROOT_ID, b"y", stat.S_IFLNK))
    file = tree.create(ROOT_ID, b"file")
    refused(
        errno.EINVAL,
        lambda: tree.objects.perform(registry.READ_LINK, (file,), NoArguments(), ROOT),
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"a" * 256, errno.ENAMETOOLONG),
        (b"", errno.ENOENT),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b".", errno.EEXIST),
        (b"..", errno.EEXIST),
        (b"taken", errno.EEXIST),
    ],
)
def test_names_that_cannot_be_created(tree: Tree, name: bytes, code: int) -> None:
    tree.create(ROOT_ID, b"taken")
    other = tree.create(ROOT_ID, b"other")
    refused(code, lambda: tree.create(ROOT_ID, name))
    refused(code, lambda: tree.mkdir(ROOT_ID, name))
    refused(code, lambda: tree.link(other, ROOT_ID, name))
    assert tree.names(ROOT_ID) == [b"taken", b"other"]


@pytest.mark.parametrize("name", [b"a" * 255, bytes(range(1, 47)), bytes(range(48, 256)), b"..."])
def test_all_other_bytes_make_names(tree: Tree, name: bytes) -> None:
    file = tree.create(ROOT_ID, name)
    assert tree.names(ROOT_ID) == [name]
    tree.unlink(ROOT_ID, name, file)
    assert tree.names(ROOT_ID) == []


def test_an_identifier_is_used_once(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"file")
    directory = tree.mkdir(ROOT_ID, b"directory")
    creation = Creation(b"again", stat.S_IFREG | 0o644, 0, 0, b"", BLOCK)
    refused(
        errno.ESTALE,
        lambda: tree.objects.perform(registry.CREATE, (ROOT_ID, file), creation, ROOT),
    )
    refused(
        errno.ESTALE,
        lambda: tree.objects.perform(
            registry.MAKE_DIRECTORY,
            (ROOT_ID, directory),
            DirectoryCreation(b"again", 0o755, 0),
            ROOT,
        ),
    )
    refused(
        errno.ESTALE,
        lambda: tree.objects.perform(
            registry.MAKE_DIRECTORY, (ROOT_ID, ROOT_ID), DirectoryCreation(b"me", 0o755, 0), ROOT
        ),
    )


def test_objects_that_were_never_created_are_stale(tree: Tree) -> None:
    nowhere = fresh(ObjectKind.DIRECTORY)
    refused(errno.ESTALE, lambda: tree.create(nowhere, b"x"))
    refused(errno.ESTALE, lambda: tree.lookup(nowhere, b"x"))
    refused(errno.ESTALE, lambda: tree.get(fresh(ObjectKind.INODE)))
    refused(errno.ESTALE, lambda: tree.link(fresh(ObjectKind.INODE), ROOT_ID, b"x"))


def test_only_kinds_of_inodes_are_created(tree: Tree) -> None:
    refused(errno.EINVAL, lambda: tree.create(ROOT_ID, b"x", stat.S_IFDIR | 0o755))
    refused(errno.EINVAL, lambda: tree.create(ROOT_ID, b"x", 0o755))


def test_block_sizes_are_powers_of_two(tree: Tree) -> None:
    creation = Creation(b"odd", stat.S_IFREG | 0o644, 0, 0, b"", BLOCK + 4096)
    refused(
        errno.EINVAL,
        lambda: tree.objects.perform(
            registry.CREATE, (ROOT_ID, fresh(ObjectKind.INODE)), creation, ROOT
        ),
    )


# --- permissions -----------------------------------------------------------------------------

OPERATIONS = {
    "lookup": 0o1,
    "list": 0o4,
    "create": 0o3,
    "mkdir": 0o3,
    "link": 0o3,
    "unlink": 0o3,
    "rmdir": 0o3,
    "rename within": 0o3,
    "rename out": 0o3,
    "rename in": 0o3,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("whose", ["owner", "group", "others"])
def test_permissions_of_a_directory(tree: Tree, operation: str, bits: int, whose: str) -> None:
    """Each operation needs exactly its bits, of the class that the caller falls into."""
    tree.change(ROOT_ID, mode=0o777)
    directory = tree.mkdir(ROOT_ID, b"d", who=ALICE)
    tree.change(directory, gid=2000)
    file = tree.create(directory, b"f", who=ALICE)
    empty = tree.mkdir(directory, b"e", who=ALICE)
    outside = tree.create(ROOT_ID, b"o", who=ALICE)
    shift = {"owner": 6, "group": 3, "others": 0}[whose]
    # All other classes get the complement, so that looking at the wrong one shows.
    mode = sum((bits if at == shift else 7 & ~bits) << at for at in (0, 3, 6))
    tree.change(directory, mode=mode)
    who = {"owner": ALICE, "group": CAROL, "others": BOB}[whose]
    perform = {
        "lookup": lambda: tree.lookup(directory, b"f", who),
        "list": lambda: tree.objects.perform(
            registry.READ_DIRECTORY, (directory,), Listing(0, 4096), who
        ),
        "create": lambda: tree.create(directory, b"n", who=who),
        "mkdir": lambda: tree.mkdir(directory, b"n", who=who),
        "link": lambda: tree.link(outside, directory, b"n", who),
        "unlink": lambda: tree.unlink(directory, b"f", file, who),
        "rmdir": lambda: tree.rmdir(directory, b"e", empty, who),
        "rename within": lambda: tree.rename(directory, b"f", directory, b"n", file, who=who),
        "rename out": lambda: tree.rename(directory, b"f", ROOT_ID, b"n", file, who=who),
        "rename in": lambda: tree.rename(ROOT_ID, b"o", directory, b"n", outside, who=who),
    }[operation]
    needed = OPERATIONS[operation]
    if bits & needed == needed:
        perform()
    else:
        refused(errno.EACCES, perform)


def test_the_superuser_needs_no_permissions(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.change(directory, mode=0, uid=1000, gid=1000)
    file = tree.create(directory, b"f")
    tree.unlink(directory, b"f", file)


def test_a_taken_name_is_known_before_it_is_forbidden(tree: Tree) -> None:
    """open(2), mkdir(2): EEXIST wins over EACCES, as it does on Linux."""
    tree.create(ROOT_ID, b"taken")
    refused(errno.EEXIST, lambda: tree.mkdir(ROOT_ID, b"taken", who=ALICE))
    refused(errno.EACCES, lambda: tree.mkdir(ROOT_ID, b"free", who=ALICE))
    refused(errno.ENOENT, lambda: tree.unlink(ROOT_ID, b"x", fresh_file(tree), ALICE))


def fresh_file(tree: Tree) -> ObjectId:
    return tree.create(ROOT_ID, b"fresh")


def test_an_access_list_replaces_the_group_bits(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d", 0o700)
    listed = acl("u::rwx,u:1001:rwx,g::---,m::rwx,o::---")
    tree.objects.perform(
        registry.SET_EXTENDED,
        (directory,),
        ExtendedSetting(b"system.posix_acl_access", listed.encode(), 0),
        ROOT,
    )
    tree.create(directory, b"by bob", who=BOB)
    refused(errno.EACCES, lambda: tree.create(directory, b"by alice", who=ALICE))
    masked = tree.change(directory, mode=0o750)  # the group bits are the mask now
    assert stat.S_IMODE(masked.mode) == 0o750
    refused(errno.EACCES, lambda: tree.create(directory, b"again", who=BOB))
    tree.lookup(directory, b"by bob", BOB)


# --- ownership of what is created ------------------------------------------------------------


@pytest.mark.parametrize("setgid", [False, True])
def test_a_set_group_id_directory_hands_its_group_on(tree: Tree, setgid: bool) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.change(directory, mode=0o777 | (stat.S_ISGID if setgid else 0), gid=2000)
    file = tree.get(tree.create(directory, b"f", who=BOB))
    child = tree.get(tree.mkdir(directory, b"c", who=BOB))
    assert (file.uid, file.gid) == (1001, 2000 if setgid else 1001)
    assert (child.uid, child.gid) == (1001, 2000 if setgid else 1001)
    assert bool(child.mode & stat.S_ISGID) == setgid
    assert not file.mode & stat.S_ISGID


def test_only_members_pass_on_a_groups_privileges(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.change(directory, mode=0o2777, gid=2000)
    mode = stat.S_IFREG | 0o2755
    assert not tree.get(tree.create(directory, b"bob", mode, BOB)).mode & stat.S_ISGID
    assert tree.get(tree.create(directory, b"alice", mode, ALICE)).mode & stat.S_ISGID
    assert tree.get(tree.create(directory, b"root", mode, ROOT)).mode & stat.S_ISGID


def test_a_default_list_takes_the_umasks_place(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    default = acl("u::rwx,u:1001:rwx,g::r-x,m::rwx,o::---")
    tree.objects.perform(
        registry.SET_EXTENDED,
        (directory,),
        ExtendedSetting(b"system.posix_acl_default", default.encode(), 0),
        ROOT,
    )

    def value(identifier: ObjectId, name: bytes) -> bytes:
        answer = tree.objects.perform(
            registry.GET_EXTENDED, (identifier,), ExtendedName(name), ROOT
        )
        return answer.value

    file = tree.create(directory, b"f", stat.S_IFREG | 0o666, umask=0o077)
    assert stat.S_IMODE(tree.get(file).mode) == 0o660
    assert value(file, b"system.posix_acl_access") == default.inherited(0o666).encode()
    refused(errno.ENODATA, lambda: value(file, b"system.posix_acl_default"))
    child = tree.mkdir(directory, b"c", 0o777, umask=0o077)
    assert stat.S_IMODE(tree.get(child).mode) == 0o770
    assert value(child, b"system.posix_acl_default") == default.encode()
    symlink = tree.create(directory, b"l", stat.S_IFLNK, target=b"t")
    refused(errno.ENODATA, lambda: value(symlink, b"system.posix_acl_access"))


def test_a_minimal_default_list_leaves_permission_bits_only(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.objects.perform(
        registry.SET_EXTENDED,
        (directory,),
        ExtendedSetting(b"system.posix_acl_default", acl("u::rwx,g::r-x,o::--x").encode(), 0),
        ROOT,
    )
    attributes = tree.get(tree.create(directory, b"f", stat.S_IFREG | 0o666, umask=0o777))
    assert stat.S_IMODE(attributes.mode) == 0o640
    assert attributes.flags == 0


# --- mkdir, rmdir ----------------------------------------------------------------------------


def test_directories_count_their_subdirectories(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    first = tree.mkdir(directory, b"1")
    tree.mkdir(directory, b"2")
    tree.create(directory, b"file")
    assert tree.get(directory).links == 4
    assert tree.get(first).parent == directory
    tree.rmdir(directory, b"1", first)
    assert tree.get(directory).links == 3
    assert tree.get(first).links == 0


def test_a_directory_in_use_is_not_removed(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    file = tree.create(directory, b"f")
    refused(errno.ENOTEMPTY, lambda: tree.rmdir(ROOT_ID, b"d", directory))
    tree.unlink(directory, b"f", file)
    tree.rmdir(ROOT_ID, b"d", directory)
    refused(errno.ENOENT, lambda: tree.lookup(ROOT_ID, b"d"))


def test_nothing_is_made_in_a_removed_directory(tree: Tree) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    file = tree.create(ROOT_ID, b"f")
    tree.rmdir(ROOT_ID, b"d", directory)
    refused(errno.ENOENT, lambda: tree.create(directory, b"x"))
    refused(errno.ENOENT, lambda: tree.mkdir(directory, b"x"))
    refused(errno.ENOENT, lambda: tree.link(file, directory, b"x"))
    refused(errno.ENOENT, lambda: tree.rename(ROOT_ID, b"f", directory, b"x", file))


# --- link, unlink ----------------------------------------------------------------------------


def test_an_inode_lives_as_long_as_its_last_name(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"a")
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.link(file, directory, b"b")
    assert tree.get(file).links == 2
    before = tree.get(file).ctime_ns
    tree.unlink(ROOT_ID, b"a", file)
    assert tree.get(file).links == 1
    assert tree.get(file).ctime_ns > before
    tree.unlink(directory, b"b", file)
    assert tree.get(file).links == 0
    refused(errno.ENOENT, lambda: tree.link(file, ROOT_ID, b"again"))


def test_links_are_limited(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"f")
    directory = tree.mkdir(ROOT_ID, b"d")
    for number in range(limits.LINKS - 1):
        tree.link(file, directory, b"%d" % number)
    refused(errno.EMLINK, lambda: tree.link(file, directory, b"one more"))
    assert tree.get(file).links == limits.LINKS


def test_a_client_that_names_the_wrong_object_is_told_so(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"f")
    other = tree.create(ROOT_ID, b"other")
    directory = tree.mkdir(ROOT_ID, b"d")
    empty = tree.mkdir(ROOT_ID, b"e")
    refused(errno.ESTALE, lambda: tree.unlink(ROOT_ID, b"f", other))
    refused(errno.ESTALE, lambda: tree.unlink(ROOT_ID, b"d", other))
    refused(errno.ESTALE, lambda: tree.rmdir(ROOT_ID, b"d", empty))
    refused(errno.ESTALE, lambda: tree.rmdir(ROOT_ID, b"f", directory))
    refused(errno.ESTALE, lambda: tree.rename(ROOT_ID, b"f", ROOT_ID, b"n", other))
    refused(errno.ESTALE, lambda: tree.rename(ROOT_ID, b"f", ROOT_ID, b"other", file))
    refused(errno.ESTALE, lambda: tree.rename(ROOT_ID, b"f", ROOT_ID, b"n", file, other))
    assert tree.names(ROOT_ID) == [b"f", b"other", b"d", b"e"]


STICKY = [
    # directory's owner, entry's owner, caller, may remove
    (ALICE, ALICE, BOB, False),
    (ALICE, BOB, BOB, True),
    (BOB, ALICE, BOB, True),
    (ALICE, ALICE, ROOT, True),
    (ROOT, ALICE, CAROL, False),
]


@pytest.mark.parametrize(("owner", "entry_owner", "caller", "allowed"), STICKY)
@pytest.mark.parametrize("operation", ["unlink", "rmdir", "rename", "replace", "exchange"])
def test_the_sticky_bit(
    tree: Tree, owner: Any, entry_owner: Any, caller: Any, allowed: bool, operation: str
) -> None:
    directory = tree.mkdir(ROOT_ID, b"d")
    tree.change(directory, mode=0o1777, uid=owner.uid)
    file = tree.create(directory, b"f", who=entry_owner)
    child = tree.mkdir(directory, b"c", who=entry_owner)
    mine = tree.create(directory, b"mine", who=caller)
    perform = {
        "unlink": lambda: tree.unlink(directory, b"f", file, caller),
        "rmdir": lambda: tree.rmdir(directory, b"c", child, caller),
        "rename": lambda: tree.rename(directory, b"f", directory, b"n", file, who=caller),
        "replace": lambda: tree.rename(directory, b"mine", directory, b"f", mine, file, who=caller),
        "exchange": lambda: tree.rename(
            directory, b"mine", directory, b"f", mine, file, flags=RENAME_EXCHANGE, who=caller
        ),
    }[operation]
    if allowed:
        perform()
    else:
        refused(errno.EPERM, perform)


# --- rename ----------------------------------------------------------------------------------


@pytest.fixture
def places(tree: Tree) -> dict[str, ObjectId]:
    """Two directories, with a file, a directory, an empty and a full one in each."""
    places = {}
    for place in ("a", "b"):
        places[place] = tree.mkdir(ROOT_ID, place.encode())
        places[place + "/file"] = tree.create(places[place], b"file")
        places[place + "/empty"] = tree.mkdir(places[place], b"empty")
        places[place + "/full"] = tree.mkdir(places[place], b"full")
        places[place + "/full/x"] = tree.create(places[place + "/full"], b"x")
    return places


OUTCOMES = {
    # what is renamed, what is there: the errno
    ("file", None): 0,
    ("file", "file"): 0,
    ("file", "empty"): errno.EISDIR,
    ("file", "full"): errno.EISDIR,
    ("empty", None): 0,
    ("empty", "file"): errno.ENOTDIR,
    ("empty", "empty"): 0,
    ("empty", "full"): errno.ENOTEMPTY,
    ("full", None): 0,
    ("full", "file"): errno.ENOTDIR,
    ("full", "empty"): 0,
    ("full", "full"): errno.ENOTEMPTY,
}


@pytest.mark.parametrize(("what", "there"), OUTCOMES)
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
def test_renames_between_directories(
    tree: Tree, places: dict[str, ObjectId], what: str, there: str | None, flags: int
) -> None:
    a, b = places["a"], places["b"]
    moved = places["a/" + what]
    replaced = None if there is None else places["b/" + there]
    name, target_name = what.encode(), (there or "new").encode()
    expected = OUTCOMES[what, there]
    if flags == RENAME_NOREPLACE and there is not None:
        expected = errno.EEXIST
    if flags == RENAME_EXCHANGE:
        expected = errno.ENOENT if there is None else 0
    moves_directory = what != "file" or (flags == RENAME_EXCHANGE and there not in (None, "file"))
    rename = tree.relocate if moves_directory else tree.rename

    def perform() -> None:
        rename(a, name, b, target_name, moved, replaced, flags=flags)

    before = {identifier: tree.get(identifier) for identifier in places.values()}
    epoch = tree.epoch()
    if expected:
        refused(expected, perform)
        assert tree.epoch() == epoch
        for identifier, attributes in before.items():
            assert tree.get(identifier) == attributes
        return
    perform()
    assert tree.epoch() == epoch + moves_directory
    assert tree.lookup(b, target_name).identifier == moved
    if flags == RENAME_EXCHANGE:
        assert tree.lookup(a, name).identifier == replaced
    else:
        refused(errno.ENOENT, lambda: tree.lookup(a, name))
    for directory in (a, b):
        names = tree.names(directory)
        subdirectories = [
            child
            for child in (tree.lookup(directory, entry) for entry in names)
            if child.file_type == stat.S_IFDIR >> 12
        ]
        attributes = tree.get(directory)
        assert attributes.links == 2 + len(subdirectories)
        assert attributes.mtime_ns == attributes.ctime_ns > before[directory].mtime_ns
        for child in subdirectories:
            assert tree.get(child.identifier).parent == directory
    assert tree.get(moved).ctime_ns > before[moved].ctime_ns
    if replaced is not None and flags != RENAME_EXCHANGE:
        assert tree.get(replaced).links == 0


@pytest.mark.parametrize(
    ("what", "there"), [(what, there) for what, there in OUTCOMES if what != there]
)
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
def test_renames_within_a_directory(
    tree: Tree, places: dict[str, ObjectId], what: str, there: str | None, flags: int
) -> None:
    a = places["a"]
    moved = places["a/" + what]
    replaced = None if there is None else places["a/" + there]
    name, target_name = what.encode(), (there or "new").encode()
    expected = OUTCOMES[what, there]
    if flags == RENAME_NOREPLACE and there is not None:
        expected = errno.EEXIST
    if flags == RENAME_EXCHANGE:
        expected = errno.ENOENT if there is None else 0

    def perform() -> None:
        tree.rename(a, name, a, target_name, moved, replaced, flags=flags)

    before = tree.names(a)
    if expected:
        refused(expected, perform)
        assert tree.names(a) == before
        return
    perform()
    after = tree.names(a)
    if flags == RENAME_EXCHANGE:
        assert after == before
        assert tree.lookup(a, name).identifier == replaced
    elif there is None:
        # An entry keeps its place in the listing under its new name.
        assert after == [target_name if entry == name else entry for entry in before]
    else:
        assert after == [entry for entry in before if entry != name]
    assert tree.lookup(a, target_name).identifier == moved
    directories = sum(
        tree.lookup(a, entry).file_type == stat.S_IFDIR >> 12 for entry in tree.names(a)
    )
    assert tree.get(a).links == 2 + directories


def test_renaming_a_link_onto_another_does_nothing(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"a")
    tree.link(file, ROOT_ID, b"b")
    before = tree.get(file)
    tree.rename(ROOT_ID, b"a", ROOT_ID, b"b", file)
    tree.rename(ROOT_ID, b"a", ROOT_ID, b"a", file)
    assert tree.names(ROOT_ID) == [b"a", b"b"]
    assert tree.get(file) == before
    refused(
        errno.EEXIST,
        lambda: tree.rename(ROOT_ID, b"a", ROOT_ID, b"b", file, flags=RENAME_NOREPLACE),
    )


def test_a_directory_does_not_move_into_itself(tree: Tree) -> None:
    outer = tree.mkdir(ROOT_ID, b"outer")
    inner = tree.mkdir(outer, b"inner")
    refused(errno.EINVAL, lambda: tree.relocate(ROOT_ID, b"outer", outer, b"x", outer))
    refused(
        errno.ENOTEMPTY, lambda: tree.relocate(outer, b"inner", ROOT_ID, b"outer", inner, outer)
    )
    refused(
        errno.EINVAL,
        lambda: tree.relocate(
            outer, b"inner", ROOT_ID, b"outer", inner, outer, flags=RENAME_EXCHANGE
        ),
    )


def test_directories_change_their_parent_by_relocation_only(
    tree: Tree, places: dict[str, ObjectId]
) -> None:
    a, b = places["a"], places["b"]
    refused(errno.EXDEV, lambda: tree.rename(a, b"full", b, b"new", places["a/full"]))
    refused(
        errno.EXDEV,
        lambda: tree.rename(
            a, b"file", b, b"full", places["a/file"], places["b/full"], flags=RENAME_EXCHANGE
        ),
    )


def test_a_relocation_knows_all_relocations_before_it(
    tree: Tree, places: dict[str, ObjectId]
) -> None:
    epoch = tree.epoch()
    tree.relocate(places["a"], b"empty", ROOT_ID, b"first", places["a/empty"], epoch=epoch)
    refused(
        errno.EAGAIN,
        lambda: tree.relocate(
            places["b"], b"empty", ROOT_ID, b"second", places["b/empty"], epoch=epoch
        ),
    )


def test_moving_a_directory_needs_the_right_to_change_it(tree: Tree) -> None:
    """rename(2): EACCES if oldpath is a directory whose `..` cannot be written."""
    tree.change(ROOT_ID, mode=0o777)
    a = tree.mkdir(ROOT_ID, b"a", 0o777)
    b = tree.mkdir(ROOT_ID, b"b", 0o777)
    child = tree.mkdir(a, b"c", 0o755)
    refused(errno.EACCES, lambda: tree.relocate(a, b"c", b, b"c", child, who=ALICE))
    tree.rename(a, b"c", a, b"n", child, who=ALICE)  # `..` stays
    tree.change(child, mode=0o757)
    tree.relocate(a, b"n", b, b"c", child, who=ALICE)


@pytest.mark.parametrize("name", [b".", b".."])
def test_dots_are_not_renamed_or_removed(tree: Tree, name: bytes) -> None:
    file = tree.create(ROOT_ID, b"f")
    directory = tree.mkdir(ROOT_ID, b"d")
    refused(errno.EBUSY, lambda: tree.rename(ROOT_ID, name, ROOT_ID, b"x", file))
    refused(errno.EBUSY, lambda: tree.rename(ROOT_ID, b"f", ROOT_ID, name, file))
    refused(errno.EISDIR, lambda: tree.unlink(ROOT_ID, name, file))
    refused(errno.EINVAL, lambda: tree.rmdir(ROOT_ID, name, directory))


def test_flags_exclude_each_other(tree: Tree) -> None:
    file = tree.create(ROOT_ID, b"f")
    refused(
        errno.EINVAL,
        lambda: tree.rename(
            ROOT_ID, b"f", ROOT_ID, b"x", file, flags=RENAME_EXCHANGE | RENAME_NOREPLACE
        ),
    )


# --- cost and versions -----------------------------------------------------------------------


def test_no_operation_grows_with_the_directory(tree: Tree) -> None:
    """Design §5: what a node does per operation does not grow with the directory's size."""

    def touched() -> dict[str, int]:
        costs = {}
        file = tree.create(ROOT_ID, b"new")
        costs["create"] = tree.objects.touched
        tree.lookup(ROOT_ID, b"new")
        costs["lookup"] = tree.objects.touched
        tree.rename(ROOT_ID, b"new", ROOT_ID, b"newer", file)
        costs["rename"] = tree.objects.touched
        tree.unlink(ROOT_ID, b"newer", file)
        costs["unlink"] = tree.objects.touched
        return costs

    small = touched()
    for number in range(5_000):
        tree.create(ROOT_ID, b"file %d" % number)
    assert touched() == small
    assert small["create"] <= 8


def test_versions_grow_with_every_change(tree: Tree) -> None:
    first = tree.get(ROOT_ID).version
    file = tree.create(ROOT_ID, b"f")
    second = tree.get(ROOT_ID).version
    assert second > first
    assert tree.get(file).version == second >= START_US
    tree.lookup(ROOT_ID, b"f")
    assert tree.get(ROOT_ID).version == second


# --- listing ---------------------------------------------------------------------------------


def test_pages_go_on_where_the_last_one_ended(tree: Tree) -> None:
    names = [b"%04d" % number for number in range(1_000)]
    for name in names:
        tree.create(ROOT_ID, name)
    listed: list[bytes] = []
    after = 0
    pages = 0
    while True:
        page = tree.objects.perform(registry.READ_DIRECTORY, (ROOT_ID,), Listing(after, 4096), ROOT)
        listed += [entry.name for entry in page.entries]
        pages += 1
        if page.complete:
            break
        after = page.entries[-1].serial
    assert listed == names
    assert pages > 10
    assert page.directory.next_serial == after + len(page.entries) + 1


def test_no_listing_is_large() -> None:
    """A request of 100 bytes has nodes look at so many entries, and no more."""
    types = registry.file_system_types()
    method = types.method(registry.READ_DIRECTORY)
    assert method is not None
    for volume in (limits.LISTING_BYTES + 1, limits.ANSWER_BYTES - 4096):
        with pytest.raises(msgspec.ValidationError):
            types.decode_arguments(method, encode_record(Listing(0, volume)))
    types.decode_arguments(method, encode_record(Listing(0, limits.LISTING_BYTES)))


def test_serials_sort_as_numbers_do(tree: Tree) -> None:
    """Over all lengths of a serial's key: 1, 2, 3, 4 and more digits."""
    for serial in (5, 127, 128, 16_383, 16_384, 1 << 21, 1 << 35, (1 << 63) - 2):
        root = tree.get(ROOT_ID)
        if root.next_serial < serial:
            tree.objects.rows[ROOT_ID][b"a"] = encode_attributes(
                msgspec.structs.replace(root, next_serial=serial)
            )
        tree.create(ROOT_ID, b"%020d" % serial)
    names = tree.names(ROOT_ID)
    assert names == sorted(names)
    assert len(names) == 8


# --- names of what was lost ----------------------------------------------------------------------


def test_a_name_whose_object_was_lost_is_mended(tree: Tree) -> None:
    tree.change(ROOT_ID, mode=0o1777)
    lost = tree.mkdir(ROOT_ID, b"lost", who=ALICE)
    kept = tree.mkdir(ROOT_ID, b"kept", who=ALICE)

    def mend(name: bytes, missing: ObjectId, who: Any) -> None:
        tree.objects.perform(registry.MEND, (ROOT_ID, missing), Name(name), who)

    def refused(name: bytes, missing: ObjectId, who: Any) -> int:
        with pytest.raises(Refusal) as refusal:
            mend(name, missing, who)
        return refusal.value.code

    del tree.objects.rows[lost]
    before = tree.get(ROOT_ID)
    assert refused(b"kept", kept, ROOT) == errno.EEXIST
    assert refused(b"lost", kept, ROOT) == errno.ESTALE
    assert refused(b"other", lost, ROOT) == errno.ENOENT
    assert refused(b"lost", lost, ALICE) == errno.EPERM, "nobody knows any more whose it was"
    tree.change(ROOT_ID, mode=0o755)
    assert refused(b"lost", lost, ALICE) == errno.EACCES
    mend(b"lost", lost, ROOT)
    after = tree.get(ROOT_ID)
    assert (after.links, after.entries) == (before.links - 1, before.entries - 1)
    assert refused(b"lost", lost, ROOT) == errno.ENOENT
    assert tree.lookup(ROOT_ID, b"kept").identifier == kept
