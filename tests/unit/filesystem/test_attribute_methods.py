"""chmod, chown, utimens and access times: the rules of Linux, case by case."""

from __future__ import annotations

import errno
import stat
from typing import Any

import msgspec
import pytest

from bftfs.filesystem import registry
from bftfs.filesystem.attributes import NOW, Attributes, encode_attributes
from bftfs.filesystem.inode import DAY_NS, Access
from bftfs.identifiers import ObjectId
from tests.unit.filesystem.test_directory import Tree, refused, tree
from tests.unit.filesystem.world import ALICE, BOB, CAROL, ROOT, ROOT_ID, START_US

__all__ = ["tree"]

START_NS = START_US * 1_000


def file_of(tree: Tree, mode: int = 0o644, who: Any = ALICE) -> ObjectId:
    """A file with these attributes, whatever who may do."""
    file = tree.create(ROOT_ID, b"file")
    return put(tree, file, mode=stat.S_IFREG | mode, uid=who.uid, gid=who.gid)


def put(tree: Tree, identifier: ObjectId, **fields: Any) -> ObjectId:
    attributes = msgspec.structs.replace(tree.get(identifier), **fields)
    tree.objects.rows[identifier][b"a"] = encode_attributes(attributes)
    return identifier


@pytest.mark.parametrize(
    ("who", "code"), [(ALICE, 0), (ROOT, 0), (BOB, errno.EPERM), (CAROL, errno.EPERM)]
)
def test_only_the_owner_changes_the_mode(tree: Tree, who: Any, code: int) -> None:
    file = file_of(tree, 0o666)
    if code:
        refused(code, lambda: tree.change(file, who, mode=0o600))
    else:
        assert stat.S_IMODE(tree.change(file, who, mode=0o1600).mode) == 0o1600
        assert stat.S_ISREG(tree.change(file, who, mode=stat.S_IFDIR | 0o600).mode)


@pytest.mark.parametrize(
    ("who", "gid", "keeps"),
    [(ALICE, 1000, True), (ALICE, 2000, True), (ALICE, 77, False), (ROOT, 77, True)],
)
def test_set_group_id_is_for_members_of_the_group(
    tree: Tree, who: Any, gid: int, keeps: bool
) -> None:
    file = put(tree, file_of(tree), gid=gid)
    assert bool(tree.change(file, who, mode=0o2755).mode & stat.S_ISGID) == keeps


@pytest.mark.parametrize(
    ("who", "changes", "code"),
    [
        (ROOT, {"uid": 5, "gid": 6}, 0),
        (ALICE, {"uid": 1000}, 0),  # to whom it belongs already
        (ALICE, {"uid": 1001}, errno.EPERM),
        (BOB, {"uid": 1001}, errno.EPERM),
        (ALICE, {"gid": 1000}, 0),
        (ALICE, {"gid": 2000}, 0),  # a group that she is in
        (ALICE, {"gid": 3000}, errno.EPERM),
        (BOB, {"gid": 1001}, errno.EPERM),
        (ALICE, {"uid": 1000, "gid": 2000}, 0),
        (ALICE, {"uid": 1001, "gid": 2000}, errno.EPERM),
    ],
)
def test_chown(tree: Tree, who: Any, changes: dict[str, int], code: int) -> None:
    file = file_of(tree)
    if code:
        refused(code, lambda: tree.change(file, who, **changes))
    else:
        after = tree.change(file, who, **changes)
        assert {name: getattr(after, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0o4755, 0o755),
        (0o2755, 0o755),
        (0o6711, 0o711),
        (0o2745, 0o2745),  # without group execute it is no privilege
        (0o1755, 0o1755),
    ],
)
@pytest.mark.parametrize("who", [ALICE, ROOT])
def test_chown_takes_privileges_from_files(tree: Tree, who: Any, before: int, after: int) -> None:
    file = file_of(tree, before)
    assert stat.S_IMODE(tree.change(file, who, gid=2000).mode) == after


def test_chown_leaves_directories_their_bits(tree: Tree) -> None:
    directory = put(tree, tree.mkdir(ROOT_ID, b"d"), mode=stat.S_IFDIR | 0o6755)
    assert stat.S_IMODE(tree.change(directory, gid=2000).mode) == 0o6755


def test_a_mode_given_with_an_owner_is_the_last_word(tree: Tree) -> None:
    file = file_of(tree, 0o755)
    assert stat.S_IMODE(tree.change(file, uid=5, mode=0o4755).mode) == 0o4755


@pytest.mark.parametrize(
    ("who", "mode", "time", "code"),
    [
        (ALICE, 0o000, 12345, 0),
        (ALICE, 0o000, NOW, 0),
        (ROOT, 0o000, 12345, 0),
        (BOB, 0o666, 12345, errno.EPERM),
        (BOB, 0o666, NOW, 0),  # who may write may touch
        (BOB, 0o664, NOW, errno.EACCES),
    ],
)
def test_utimens(tree: Tree, who: Any, mode: int, time: int, code: int) -> None:
    file = file_of(tree, mode)
    before = tree.get(file)
    if code:
        refused(code, lambda: tree.change(file, who, atime_ns=time, mtime_ns=time))
        return
    after = tree.change(file, who, atime_ns=time, mtime_ns=time)
    expected = after.ctime_ns if time == NOW else time
    assert (after.atime_ns, after.mtime_ns) == (expected, expected)
    assert after.ctime_ns > before.ctime_ns
    assert after.contents == before.contents


def test_times_are_set_one_by_one(tree: Tree) -> None:
    file = file_of(tree)
    before = tree.get(file)
    after = tree.change(file, ALICE, mtime_ns=-5_000_000_000)  # 1969
    assert (after.atime_ns, after.mtime_ns) == (before.atime_ns, -5_000_000_000)
    refused(errno.EPERM, lambda: tree.change(file, BOB, atime_ns=1, mtime_ns=NOW))


def test_refused_changes_are_not_made_in_part(tree: Tree) -> None:
    file = file_of(tree)
    before = tree.get(file)
    refused(errno.EPERM, lambda: tree.change(file, ALICE, mode=0o600, uid=5))
    assert tree.get(file) == before


# --- access times ----------------------------------------------------------------------------


def accessed(tree: Tree, file: ObjectId, atime_ns: int, who: Any = ALICE) -> Attributes:
    outcome = tree.objects.perform(registry.ACCESSED, (file,), Access(atime_ns), who)
    return outcome.attributes[0]


def test_relatime_records_the_first_access_after_a_change(tree: Tree) -> None:
    file = put(tree, file_of(tree), atime_ns=100, mtime_ns=100, ctime_ns=100)
    first = accessed(tree, file, 200)
    assert first.atime_ns == 200
    assert first.ctime_ns == 100
    assert accessed(tree, file, 300).atime_ns == 200
    put(tree, file, mtime_ns=250)
    assert accessed(tree, file, 300).atime_ns == 300


def test_relatime_records_an_access_a_day(tree: Tree) -> None:
    file = put(tree, file_of(tree), atime_ns=100, mtime_ns=0, ctime_ns=0)
    assert accessed(tree, file, 99 + DAY_NS).atime_ns == 100
    assert accessed(tree, file, 100 + DAY_NS).atime_ns == 100 + DAY_NS


def test_nobody_reads_in_the_future_or_back_in_time(tree: Tree) -> None:
    file = put(tree, file_of(tree), atime_ns=100, mtime_ns=200, ctime_ns=200)
    assert accessed(tree, file, 50).atime_ns == 100
    assert accessed(tree, file, 1 << 62).atime_ns <= (START_US + 100) * 1_000


@pytest.mark.parametrize(
    ("mode", "code"), [(0o604, 0), (0o601, 0), (0o600, errno.EACCES), (0o662, errno.EACCES)]
)
def test_who_may_not_read_did_not(tree: Tree, mode: int, code: int) -> None:
    file = put(tree, file_of(tree, mode), atime_ns=100, mtime_ns=200)
    if code:
        refused(code, lambda: accessed(tree, file, 300, BOB))
    else:
        assert accessed(tree, file, 300, BOB).atime_ns == 300
