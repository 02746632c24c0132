"""What becomes of a file's size, times, privileges and layout."""

from __future__ import annotations

import errno
import stat
from functools import partial
from typing import Any

import pytest

from bftfs import limits
from bftfs.filesystem import inode, registry
from bftfs.filesystem.attributes import INCARNATION_GAP, NO_CHANGES, Changes, Layout
from bftfs.filesystem.block_names import OVERTAKEN
from bftfs.identifiers import ObjectId
from tests.unit.filesystem.test_attribute_methods import START_NS, file_of, put
from tests.unit.filesystem.test_directory import BLOCK, Tree, refused, tree
from tests.unit.filesystem.world import ALICE, BOB, ROOT, ROOT_ID

__all__ = ["tree"]


def write(
    tree: Tree,
    file: ObjectId,
    end: int,
    who: Any = ALICE,
    *,
    newest: int | None = None,
    mtime_ns: int = START_NS,
    changes: Changes = NO_CHANGES,
    appended_to: int | None = None,
) -> inode.ContentsChanged:
    if newest is None:
        newest = layout_of(tree, file).newest
    arguments = inode.Writing(end, newest, mtime_ns, changes, (), appended_to)
    return tree.objects.perform(registry.WRITE, (file,), arguments, who)


def truncate(
    tree: Tree, file: ObjectId, size: int, incarnation: int, contents: int = 0, who: Any = ALICE
) -> inode.ContentsChanged:
    arguments = inode.Truncation(size, incarnation, contents)
    return tree.objects.perform(registry.TRUNCATE, (file,), arguments, who)


def layout_of(tree: Tree, file: ObjectId) -> Layout:
    layout = tree.get(file).layout
    assert layout is not None
    return layout


def test_what_is_appended_begins_where_the_file_ends(tree: Tree) -> None:
    file = file_of(tree)
    write(tree, file, 100, appended_to=0)
    for size in (0, 99, 101):
        refused(OVERTAKEN, partial(write, tree, file, 200, appended_to=size))
    assert tree.get(file).size == 100
    assert write(tree, file, 200, appended_to=100).attributes.size == 200


def test_a_write_extends_and_never_shrinks(tree: Tree) -> None:
    file = file_of(tree)
    before = tree.get(file)
    first = write(tree, file, 100, mtime_ns=START_NS - 7)
    assert first.before == before.contents
    assert first.attributes.size == 100
    assert first.attributes.mtime_ns == START_NS - 7
    assert first.attributes.contents > before.contents
    second = write(tree, file, 50)
    assert second.attributes.size == 100
    assert second.before == first.attributes.contents


def test_a_write_is_not_dated_in_the_future(tree: Tree) -> None:
    file = file_of(tree)
    attributes = write(tree, file, 1, mtime_ns=START_NS * 2).attributes
    assert attributes.mtime_ns == attributes.ctime_ns < START_NS + 1_000_000


def test_a_writer_under_an_old_layout_must_look_again(tree: Tree) -> None:
    file = file_of(tree)
    write(tree, file, 10)
    truncate(tree, file, 0, 5)
    refused(errno.EAGAIN, lambda: write(tree, file, 10, newest=0))
    assert write(tree, file, 10, newest=5).attributes.size == 10


def test_files_end_somewhere(tree: Tree) -> None:
    file = file_of(tree)
    assert write(tree, file, limits.FILE_BYTES).attributes.size == limits.FILE_BYTES
    refused(errno.EFBIG, lambda: write(tree, file, limits.FILE_BYTES + 1))
    refused(errno.EFBIG, lambda: truncate(tree, file, limits.FILE_BYTES + 1, 0))


@pytest.mark.parametrize(
    ("who", "mode", "code"),
    [
        (ALICE, 0o444, 0),  # the owner has it open, perhaps since before the mode changed
        (ROOT, 0o000, 0),
        (BOB, 0o662, 0),
        (BOB, 0o664, errno.EACCES),
    ],
)
def test_who_may_write(tree: Tree, who: Any, mode: int, code: int) -> None:
    file = file_of(tree, mode)
    if code:
        refused(code, lambda: write(tree, file, 1, who))
        refused(code, lambda: truncate(tree, file, 0, 1, who=who))
    else:
        write(tree, file, 1, who)
        truncate(tree, file, 0, 1, who=who)


@pytest.mark.parametrize(
    ("who", "before", "after"),
    [
        (ALICE, 0o6755, 0o755),
        (ALICE, 0o2745, 0o2745),
        (BOB, 0o4777, 0o777),
        (ROOT, 0o6755, 0o6755),
    ],
)
@pytest.mark.parametrize("operation", ["write", "truncate", "merge"])
def test_writing_takes_privileges(
    tree: Tree, who: Any, before: int, after: int, operation: str
) -> None:
    file = file_of(tree, before)
    if operation == "write":
        mode = write(tree, file, 1, who).attributes.mode
    elif operation == "merge":
        mode = merge(tree, file, 0, 1, 1, who=who).attributes.mode
    else:
        mode = truncate(tree, file, 1, 0, who=who).attributes.mode
    assert stat.S_IMODE(mode) == after


def test_changes_of_attributes_ride_along(tree: Tree) -> None:
    file = file_of(tree)
    attributes = write(tree, file, 10, changes=Changes(mode=0o4700, mtime_ns=5)).attributes
    assert stat.S_IMODE(attributes.mode) == 0o4700
    assert (attributes.size, attributes.mtime_ns) == (10, 5)
    refused(errno.EPERM, lambda: write(tree, file, 20, changes=Changes(uid=1001)))
    assert tree.get(file).size == 10


def test_only_files_have_contents(tree: Tree) -> None:
    fifo = tree.create(ROOT_ID, b"fifo", stat.S_IFIFO | 0o666)
    refused(errno.EINVAL, lambda: write(tree, fifo, 1, newest=0))
    refused(errno.EINVAL, lambda: truncate(tree, fifo, 0, 1))


# --- truncate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "first"),
    [(0, 0), (1, 0), (BLOCK - 1, 0), (BLOCK, 1), (BLOCK + 1, 1), (3 * BLOCK, 3)],
)
def test_a_cut_gives_later_blocks_a_fresh_incarnation(tree: Tree, size: int, first: int) -> None:
    file = file_of(tree)
    write(tree, file, 4 * BLOCK)
    attributes = truncate(tree, file, size, 7).attributes
    assert attributes.size == size
    assert attributes.layout is not None
    for number in range(6):
        assert attributes.layout.incarnation(number) == (7 if number >= first else 0)


def test_growing_changes_no_block(tree: Tree) -> None:
    file = file_of(tree)
    write(tree, file, 10)
    before = layout_of(tree, file)
    attributes = truncate(tree, file, 10 * BLOCK, 0).attributes
    assert (attributes.size, attributes.layout) == (10 * BLOCK, before)
    assert truncate(tree, file, 10 * BLOCK, 0).attributes.layout == before


def test_an_incarnation_is_never_used_twice(tree: Tree) -> None:
    file = file_of(tree)
    write(tree, file, 100)
    truncate(tree, file, 50, 7)
    for incarnation in (0, 6, 7):
        refused(errno.EAGAIN, lambda used=incarnation: truncate(tree, file, 10, used))
    truncate(tree, file, 10, 8)


def test_no_incarnation_is_the_last(tree: Tree) -> None:
    """It could not be truncated any more, by its owner or by an undo."""
    file = file_of(tree)
    for newest in (0, INCARNATION_GAP):
        for far in (newest + INCARNATION_GAP + 1, (1 << 63) - 1):
            refused(errno.EINVAL, lambda far=far: truncate_by_one(tree, file, far))
            refused(errno.EINVAL, lambda far=far: merge(tree, file, 0, 1, far))
        truncate_by_one(tree, file, newest + INCARNATION_GAP)
    merge(tree, file, 0, 1, 3 * INCARNATION_GAP)


def truncate_by_one(tree: Tree, file: ObjectId, incarnation: int) -> None:
    size = write(tree, file, 100).attributes.size
    truncate(tree, file, size - 1, incarnation)


def test_a_shortened_block_must_be_of_the_latest_contents(tree: Tree) -> None:
    file = file_of(tree)
    taken_from = write(tree, file, 100).attributes.contents
    write(tree, file, 100)  # another mount
    refused(errno.EAGAIN, lambda: truncate(tree, file, 50, 7, taken_from))
    truncate(tree, file, 50, 7, tree.get(file).contents)


def test_changes_of_attributes_leave_contents_as_they_are(tree: Tree) -> None:
    file = file_of(tree)
    taken_from = write(tree, file, 100).attributes.contents
    tree.change(file, mode=0o600)
    truncate(tree, file, 50, 7, taken_from)


def test_ranges_are_limited(tree: Tree) -> None:
    file = file_of(tree)
    write(tree, file, 1000 * BLOCK)
    ranges = tuple((number, number) for number in range(limits.LAYOUT_RANGES))
    put(tree, file, layout=Layout(BLOCK, ranges))
    refused(errno.ENOSPC, lambda: truncate(tree, file, 900 * BLOCK, 1000))
    truncate(tree, file, (limits.LAYOUT_RANGES - 1) * BLOCK, 1000)


# --- merge -----------------------------------------------------------------------------------


def merge(
    tree: Tree,
    file: ObjectId,
    first: int,
    stop: int,
    incarnation: int,
    contents: int | None = None,
    who: Any = ALICE,
) -> inode.ContentsChanged:
    if contents is None:
        contents = tree.get(file).contents
    arguments = inode.Merging(first, stop, incarnation, contents)
    return tree.objects.perform(registry.MERGE, (file,), arguments, who)


@pytest.fixture
def ranged(tree: Tree) -> ObjectId:
    file = file_of(tree)
    write(tree, file, 10 * BLOCK)
    return put(tree, file, layout=Layout(BLOCK, ((0, 3), (2, 4), (5, 6))))


def test_neighbours_become_one_range(tree: Tree, ranged: ObjectId) -> None:
    before = tree.get(ranged)
    merged = merge(tree, ranged, 2, 10, 9)
    assert merged.attributes.layout == Layout(BLOCK, ((0, 3), (2, 9)))
    assert merged.before == before.contents < merged.attributes.contents
    assert (merged.attributes.size, merged.attributes.mtime_ns) == (before.size, before.mtime_ns)
    assert merge(tree, ranged, 0, 2, 10).attributes.layout == Layout(BLOCK, ((0, 10), (2, 9)))


@pytest.mark.parametrize(
    ("first", "stop", "incarnation", "code"),
    [
        (1, 5, 9, errno.EINVAL),
        (0, 3, 9, errno.EINVAL),
        (5, 5, 9, errno.EINVAL),
        (5, 2, 9, errno.EINVAL),
        (0, 5, 6, errno.EAGAIN),
    ],
)
def test_merges_that_make_no_sense(
    tree: Tree, ranged: ObjectId, first: int, stop: int, incarnation: int, code: int
) -> None:
    refused(code, lambda: merge(tree, ranged, first, stop, incarnation))


def test_a_merge_of_older_contents_is_refused(tree: Tree, ranged: ObjectId) -> None:
    contents = tree.get(ranged).contents
    write(tree, ranged, 1)
    refused(errno.EAGAIN, lambda: merge(tree, ranged, 0, 5, 9, contents))
