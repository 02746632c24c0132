"""File contents in one mount: order, failures, windows, caches; and what others do meanwhile."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.crypto.cipher import BlockCipher
from bftfs.crypto.digest import Digest
from bftfs.errors import AdmissionRefused, FileSystemError, QuorumUnavailable
from bftfs.filesystem import block_reading, block_versions, contents, inode, registry
from bftfs.filesystem.attributes import NO_CHANGES, Changes
from bftfs.filesystem.block_names import PAGE, key_of_block
from bftfs.filesystem.block_writing import BlockWriter
from bftfs.filesystem.contents import OpenFile, Sharing
from bftfs.filesystem.objects import ATTRIBUTES_KEY, NoArguments
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import BlockId, ObjectId, block_number_of, inode_of
from bftfs.read_write.timestamp import BlockTimestamp
from tests.simulation.mutants import ignore_bases
from tests.unit.filesystem.world import ALICE, BOB, ROOT, ROOT_ID, START_US, World

BLOCK = 4096
MIB = 1 << 20


@pytest.fixture
def world() -> World:
    return World()


def create(world: World, mount: FileSystem, name: bytes = b"file", mode: int = 0o644) -> OpenFile:
    _, file = world.run(mount.create(ROOT_ID, name, mode, ALICE))
    return file


def write(world: World, mount: FileSystem, file: OpenFile, offset: int | None, data: bytes) -> None:
    if mount.write(file, offset, data, now_ns=world.host.clock_us * 1000):
        world.run(mount.write_behind(file))


def read_elsewhere(world: World, identifier: ObjectId, who: Any = ALICE) -> bytes:
    mount = world.mount()
    file = world.run(mount.open(identifier, os.O_RDONLY, who))
    return bytes(world.run(mount.read(file, 0, 1 << 30)))


def refused(code: int, world: World, conversation: Any) -> None:
    with pytest.raises(FileSystemError) as refusal:
        world.run(conversation)
    assert errno.errorcode[refusal.value.code] == errno.errorcode[code]


# --- order and cost --------------------------------------------------------------------------


def test_a_small_file_costs_two_updates_and_one_block(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    world.objects.calls.clear()
    write(world, mount, file, 0, b"hello")
    world.run(mount.change_attributes(file.identifier, Changes(mtime_ns=5), ALICE))
    world.run(mount.change_attributes(file.identifier, Changes(mode=0o600), ALICE))
    world.run(mount.flush(file))
    world.run(mount.release(file))
    assert world.objects.calls == {registry.WRITE: 1}
    assert len(world.blocks.writes) == 1
    assert world.blocks.reads == []
    attributes = world.run(world.mount().attributes(file.identifier, ALICE))
    assert (attributes.size, attributes.mtime_ns, attributes.mode & 0o7777) == (5, 5, 0o600)


def test_a_clean_file_costs_nothing_to_close(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    world.objects.calls.clear()
    world.run(mount.flush(file))
    world.run(mount.synchronize(file))
    world.run(mount.release(file))
    assert not world.objects.calls


def test_blocks_are_written_before_their_cover(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    written_at_update: list[int] = []
    world.objects.before = lambda method, _: (
        written_at_update.append(len(world.blocks.writes)) if method == registry.WRITE else None
    )
    world.blocks.latency = lambda: 100
    write(world, mount, file, 0, bytes(5 * BLOCK))
    world.run(mount.flush(file))
    assert written_at_update == [5]


@pytest.mark.parametrize("operation", ["write", "truncate"])
def test_a_version_is_not_older_than_its_blocks(world: World, operation: str) -> None:
    """A file as of a time is its blocks as of that time, whoever's clock was ahead. [design §4]"""
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, bytes(BLOCK))
    world.run(mount.flush(file))
    world.blocks.skew_us = 7_000_000
    if operation == "write":
        write(world, mount, file, 0, b"x")
        world.run(mount.flush(file))
    else:
        world.run(mount.truncate(file.identifier, 10, ALICE))
    version = world.run(mount.attributes(file.identifier, ALICE)).contents
    assert version >= world.host.clock_us + 7_000_000


def test_whole_blocks_are_written_without_being_read(world: World) -> None:
    mount = world.mount(cache_bytes=0)
    file = create(world, mount)
    write(world, mount, file, 0, b"a" * (2 * BLOCK))
    world.run(mount.flush(file))
    write(world, mount, file, BLOCK, b"b" * BLOCK)
    world.run(mount.flush(file))
    assert world.blocks.reads == []
    write(world, mount, file, 10, b"c")
    world.run(mount.flush(file))
    assert len(world.blocks.reads) == 1
    assert read_elsewhere(world, file.identifier) == (
        b"a" * 10 + b"c" + b"a" * (BLOCK - 11) + b"b" * BLOCK
    )


def test_holes_store_nothing_and_read_as_zeros(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 1 << 39, b"far")
    world.run(mount.flush(file))
    assert [block_number_of(block) for block in world.blocks.writes] == [(1 << 39) // BLOCK]
    reader = world.mount()
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    assert bytes(world.run(reader.read(opened, 12345, 100))) == bytes(100)
    assert bytes(world.run(reader.read(opened, (1 << 39) - 2, 10))) == b"\0\0far"
    assert bytes(world.run(reader.read(opened, (1 << 39) + 3, 10))) == b""


def items_with(world: World, text: bytes) -> int:
    """How many of the items that nodes are given hold `text` in the open."""
    items = [item for versions in world.blocks.versions.values() for item in versions.values()]
    return sum(text in item for item in items)


def test_contents_at_the_nodes_are_sealed(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"secret" * 100)
    world.run(mount.flush(file))
    ((block, versions),) = world.blocks.versions.items()
    ((time_us, item),) = versions.items()
    assert items_with(world, b"secret") == 0
    assert inode_of(block) == file.identifier
    versions[time_us] = item[:-1] + bytes([item[-1] ^ 1])
    reader = world.mount()
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    refused(errno.EIO, world, reader.read(opened, 0, 10))


def test_must_fail_contents_that_are_not_sealed_are_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockCipher, "seal", lambda _self, _block, plain, *, nonce: bytes(plain))
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"secret" * 100)
    world.run(mount.flush(file))
    assert items_with(world, b"secret") == 1


def test_files_end_somewhere(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    last = limits.FILE_BYTES - 1
    with pytest.raises(FileSystemError) as refusal:
        mount.write(file, last, b"ab", now_ns=0)
    assert refusal.value.code == errno.EFBIG
    refused(errno.EFBIG, world, mount.truncate(file.identifier, last + 2, ALICE))
    write(world, mount, file, last, b"a")
    world.run(mount.flush(file))
    assert world.run(world.mount().attributes(file.identifier, ALICE)).size == last + 1


# --- failures --------------------------------------------------------------------------------


def full() -> Exception:
    return AdmissionRefused(code=errno.ENOSPC, reason="disk full")


def test_each_handle_hears_of_a_failure_once(world: World) -> None:
    mount = world.mount()
    first = create(world, mount)
    second = world.run(mount.open(first.identifier, os.O_RDWR, ALICE))
    write(world, mount, first, 0, b"data")
    world.blocks.refuse = full
    with pytest.raises(AdmissionRefused):
        world.run(mount.flush(first))
    world.blocks.refuse = lambda: None
    late = world.run(mount.open(first.identifier, os.O_RDWR, ALICE))
    world.run(mount.flush(late))  # writes it: nothing is lost
    world.run(mount.flush(first))
    with pytest.raises(AdmissionRefused):
        world.run(mount.flush(second))
    world.run(mount.flush(second))
    assert read_elsewhere(world, first.identifier) == b"data"


def test_failed_writes_are_tried_again_with_newer_ones(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"aaaaaa")
    world.blocks.refuse = lambda: QuorumUnavailable(heard=1, required=5, subject="block")
    with pytest.raises(QuorumUnavailable):
        world.run(mount.synchronize(file))
    assert bytes(world.run(mount.read(file, 0, 10))) == b"aaaaaa"
    write(world, mount, file, 2, b"bb")
    world.blocks.refuse = lambda: None
    world.run(mount.synchronize(file))
    assert read_elsewhere(world, file.identifier) == b"aabbaa"


def test_a_failure_in_the_background_reaches_the_next_write(world: World) -> None:
    mount = world.mount(write_behind_bytes=2 * BLOCK, dirty_bytes=8 * BLOCK)
    file = create(world, mount)
    world.blocks.refuse = full
    for number in range(3):
        mount.write(file, number * BLOCK, bytes(BLOCK), now_ns=0)
    world.host.start(mount.write_behind(file))
    world.host.settle()
    with pytest.raises(AdmissionRefused):
        mount.write(file, 0, b"x", now_ns=0)
    world.run(mount.write_back(older_than_us=0))
    with pytest.raises(AdmissionRefused):
        world.run(mount.flush(file))


def test_dirty_bytes_are_bounded_if_failures_are_ignored(world: World) -> None:
    mount = world.mount(write_behind_bytes=2 * BLOCK, dirty_bytes=8 * BLOCK)
    file = create(world, mount)
    world.blocks.refuse = full
    for number in range(100):
        with suppress(FileSystemError, AdmissionRefused):
            write(world, mount, file, number * BLOCK, bytes(BLOCK))
        assert mount._contents._unsaved.dirty_bytes <= 17 * (BLOCK + 160)


def test_the_last_close_drops_what_cannot_be_written(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"lost")
    world.blocks.refuse = full
    with pytest.raises(AdmissionRefused):
        world.run(mount.release(file))
    world.blocks.refuse = lambda: None
    again = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    assert bytes(world.run(mount.read(again, 0, 10))) == b""
    assert mount._contents._unsaved.dirty_bytes == 0
    world.run(mount.flush(again))


def test_a_failing_block_leaves_its_file_consistent(world: World) -> None:
    mount = world.mount(batch_bytes=1, batches_in_flight=3)
    file = create(world, mount)
    data = os.urandom(10 * BLOCK)
    write(world, mount, file, 0, data)
    world.blocks.latency = lambda: world.host.random.choice((1, 10, 100))
    countdown = [4]

    def fourth() -> Exception | None:
        countdown[0] -= 1
        return full() if countdown[0] == 0 else None

    world.blocks.refuse = fourth
    with pytest.raises(AdmissionRefused):
        world.run(mount.flush(file))
    assert bytes(world.run(mount.read(file, 0, 1 << 20))) == data
    world.run(mount.flush(file))
    assert read_elsewhere(world, file.identifier) == data
    assert mount._contents._unsaved.dirty_bytes == 0


# --- windows ---------------------------------------------------------------------------------


def test_a_long_write_stays_within_its_windows() -> None:
    world = World(block_bytes=128 * 1024)
    world.blocks.latency = lambda: 500
    mount = world.mount(
        write_behind_bytes=2 * MIB, dirty_bytes=4 * MIB, batch_bytes=MIB, batches_in_flight=2
    )
    file = create(world, mount)
    piece = bytes(range(256)) * 512
    for number in range(256):
        write(world, mount, file, number * len(piece), piece)
        assert mount._contents._unsaved.dirty_bytes <= 4 * MIB + 2 * len(piece)
    assert world.blocks.most_in_flight <= 2 * MIB + 16 * 64
    assert len(world.blocks.writes) > 128  # it did not wait for the end
    world.run(mount.flush(file))
    assert sorted(map(block_number_of, world.blocks.versions)) == list(range(256))
    assert len(world.blocks.writes) == 256  # each block once
    assert read_elsewhere(world, file.identifier) == piece * 256


def test_small_sequential_writes_write_each_block_once() -> None:
    world = World(block_bytes=64 * 1024)
    mount = world.mount(write_behind_bytes=256 * 1024, dirty_bytes=512 * 1024, cache_bytes=0)
    file = create(world, mount)
    for number in range(1024):
        write(world, mount, file, number * 1000, b"x" * 1000)
        world.host.step()
    world.run(mount.flush(file))
    assert len(world.blocks.writes) == len(set(world.blocks.writes)) == -(-1024 * 1000 // 65536)
    assert world.blocks.reads == []


def test_long_writes_are_covered_in_between(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "UNCOVERED_BLOCKS", 8)
    mount = world.mount(write_behind_bytes=4 * BLOCK, dirty_bytes=8 * BLOCK)
    file = create(world, mount)
    for number in range(64):
        write(world, mount, file, number * BLOCK, bytes(BLOCK))
        world.host.settle()
        assert len(file.contents.uncovered) <= 16
    assert world.objects.calls[registry.WRITE] >= 4


def test_a_sequential_reader_finds_blocks_on_their_way() -> None:
    world = World()
    mount = world.mount()
    file = create(world, mount)
    data = os.urandom(64 * BLOCK)
    write(world, mount, file, 0, data)
    world.run(mount.flush(file))
    world.blocks.reads.clear()
    world.blocks.latency = lambda: 1_000
    reader = world.mount(read_ahead_bytes=16 * BLOCK)
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    begin = world.host.clock_us
    for number in range(64):
        found = world.run(reader.read(opened, number * BLOCK, BLOCK))
        assert bytes(found) == data[number * BLOCK : (number + 1) * BLOCK]
    assert world.host.clock_us - begin < 64 * 2_000 // 4
    assert sorted(map(block_number_of, world.blocks.reads)) == list(range(64))  # each once


def test_a_random_reader_reads_what_he_asks_for() -> None:
    world = World()
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, bytes(64 * BLOCK))
    world.run(mount.flush(file))
    world.blocks.reads.clear()
    reader = world.mount()
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    for number in (40, 3, 57, 22):
        world.run(reader.read(opened, number * BLOCK + 7, 100))
    assert sorted(map(block_number_of, world.blocks.reads)) == [3, 22, 40, 57]


def test_conversations_that_want_one_block_share_one_read(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"shared")
    world.run(mount.flush(file))
    world.blocks.reads.clear()
    world.blocks.latency = lambda: 50
    reader = world.mount()
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    outcomes = [world.host.start(reader.read(opened, 0, 6)) for _ in range(5)]
    world.host.settle()
    assert [bytes(outcome[0]) for outcome in outcomes] == [b"shared"] * 5
    assert len(world.blocks.reads) == 1


# --- close-to-open ---------------------------------------------------------------------------


def test_an_open_sees_what_was_closed_before(world: World) -> None:
    one, other = world.mount(), world.mount()
    file = create(world, one)
    write(world, one, file, 0, b"first")
    world.run(one.release(file))
    opened = world.run(other.open(file.identifier, os.O_RDONLY, ALICE))
    assert bytes(world.run(other.read(opened, 0, 100))) == b"first"
    file = world.run(one.open(file.identifier, os.O_RDWR, ALICE))
    write(world, one, file, 0, b"second")
    world.run(one.flush(file))
    opened = world.run(other.open(file.identifier, os.O_RDONLY, ALICE))
    assert not opened.keep_cache
    assert bytes(world.run(other.read(opened, 0, 100))) == b"second"


def test_an_unchanged_file_is_read_from_the_cache_again(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"cached")
    world.run(mount.release(file))
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    assert opened.keep_cache
    assert bytes(world.run(mount.read(opened, 0, 100))) == b"cached"
    assert world.blocks.reads == []
    world.run(world.mount().change_attributes(file.identifier, Changes(mode=0o600), ALICE))
    assert world.run(mount.open(file.identifier, os.O_RDONLY, ALICE)).keep_cache


def test_a_close_never_shrinks_what_another_mount_extended(world: World) -> None:
    one, other = world.mount(), world.mount()
    first = create(world, one)
    second = world.run(other.open(first.identifier, os.O_RDWR, ALICE))
    write(world, one, first, 0, b"1" * 10)
    write(world, other, second, 0, b"2" * (3 * BLOCK))
    world.run(other.flush(second))
    world.run(one.flush(first))
    assert world.run(one.attributes(first.identifier, ALICE)).size == 3 * BLOCK
    assert read_elsewhere(world, first.identifier)[BLOCK:] == b"2" * (2 * BLOCK)


def test_two_mounts_write_different_blocks(world: World) -> None:
    one, other = world.mount(), world.mount()
    first = create(world, one)
    second = world.run(other.open(first.identifier, os.O_RDWR, ALICE))
    write(world, one, first, 0, b"1" * BLOCK)
    write(world, other, second, BLOCK, b"2" * BLOCK)
    world.run(one.flush(first))
    world.run(other.flush(second))
    assert read_elsewhere(world, first.identifier) == b"1" * BLOCK + b"2" * BLOCK
    world.run(one.attributes(first.identifier, ALICE))
    world.pass_time(5_000_000)
    world.run(one.attributes(first.identifier, ALICE))
    assert bytes(world.run(one.read(first, BLOCK, 5))) == b"22222"


def test_strict_mounts_see_each_write_at_once(world: World) -> None:
    one, other = world.mount(strict=True), world.mount(strict=True)
    first = create(world, one)
    second = world.run(other.open(first.identifier, os.O_RDWR, ALICE))
    for number in range(5):
        write(world, one, first, number * 3, b"%03d" % number)
        assert bytes(world.run(other.read(second, number * 3, 10))) == b"%03d" % number
        write(world, other, second, number * 3, b"abc")
        assert bytes(world.run(one.read(first, number * 3, 10))) == b"abc"


# --- what no update covers -------------------------------------------------------------------


def pushed(world: World, data: bytes, identifier: ObjectId) -> tuple[FileSystem, OpenFile]:
    """A mount that has written to the beginning of a file, and not covered it yet."""
    mount = world.mount(write_behind_bytes=1)
    file = world.run(mount.open(identifier, os.O_RDWR, ALICE))
    write(world, mount, file, 0, data)
    world.host.settle()
    assert file.contents.uncovered
    return mount, file


def test_what_is_not_covered_is_shown_to_its_mount_alone(world: World) -> None:
    old, new = b"o" * 2 * BLOCK, b"n" * 2 * BLOCK
    file = stored(world, world.mount(), 2 * BLOCK)
    other, theirs = pushed(world, new, file.identifier)
    other._contents._cache.drop_from(file.identifier, 0)
    assert bytes(world.run(other.read(theirs, 0, 1 << 20))) == new
    assert read_elsewhere(world, file.identifier) == old
    world.run(other.flush(theirs))
    assert read_elsewhere(world, file.identifier) == new


def test_uncovered_bytes_are_in_no_other_mounts_writes(world: World) -> None:
    file = stored(world, world.mount(), BLOCK)
    pushed(world, b"evil" * (BLOCK // 4), file.identifier)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    write(world, mount, opened, BLOCK, b"more")
    write(world, mount, opened, 10, b"mine")
    world.run(mount.flush(opened))
    mine = b"o" * 10 + b"mine" + b"o" * (BLOCK - 14)
    assert read_elsewhere(world, file.identifier) == mine + b"more"
    pushed(world, b"evil" * (BLOCK // 4), file.identifier)
    world.run(world.mount().truncate(file.identifier, 100, ALICE))
    assert read_elsewhere(world, file.identifier) == mine[:100]


def test_an_update_covers_what_its_own_mount_has_written(world: World) -> None:
    file = stored(world, world.mount(), 2 * BLOCK)
    pushed(world, b"n" * BLOCK, file.identifier)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    write(world, mount, opened, BLOCK, b"m" * BLOCK)
    world.run(mount.flush(opened))
    assert read_elsewhere(world, file.identifier) == b"o" * BLOCK + b"m" * BLOCK


@pytest.mark.parametrize("pages", [1, contents.PAGES_OF_NAMES])
def test_names_are_asked_for_page_by_page(
    world: World, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    monkeypatch.setattr(contents, "PAGES_OF_NAMES", pages)
    size = (2 * PAGE + 1) * BLOCK
    mount = world.mount(cache_bytes=0)
    file = stored(world, mount, size)
    assert bytes(world.run(mount.read(file, 0, size))) == b"o" * size
    for each in (mount, world.mount()):
        opened = world.run(each.open(file.identifier, os.O_RDONLY, ALICE))
        world.objects.calls.clear()
        for number in (0, 1, PAGE, PAGE + 1, 2 * PAGE):
            assert bytes(world.run(each.read(opened, number * BLOCK, 1))) == b"o"
        assert world.objects.calls.total() <= 2


def test_what_was_never_written_is_not_read_though_it_is_named(world: World) -> None:
    """Whoever says so has destroyed the block, as he might have by writing."""
    file = stored(world, world.mount(), 2 * BLOCK)
    found = world.run(world.mount().attributes(file.identifier, ALICE))
    never = inode.CoveredBlock(0, found.contents + 1, Digest(bytes(32)))
    writing = inode.Writing(BLOCK, found.layout.newest, 0, NO_CHANGES, (never,))
    world.objects.perform(registry.WRITE, (file.identifier,), writing, ALICE)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    refused(errno.EIO, world, mount.read(opened, 0, BLOCK))
    assert bytes(world.run(mount.read(opened, BLOCK, BLOCK))) == b"o" * BLOCK


def test_what_is_closed_is_read_whoever_named_a_later_version(world: World) -> None:
    """A lie about a version to come, named after the mount has written and before it covers."""
    file = stored(world, world.mount(), 2 * BLOCK)
    mount, opened = pushed(world, b"n" * BLOCK, file.identifier)
    newest = opened.contents.layout.newest
    later_us = world.host.clock_us + 100_000_000
    never = inode.CoveredBlock(0, later_us, Digest(bytes(32)))
    writing = inode.Writing(0, newest, 0, NO_CHANGES, (never,))
    world.objects.perform(registry.WRITE, (file.identifier,), writing, ALICE, later_us)
    world.run(mount.flush(opened))
    assert read_elsewhere(world, file.identifier) == b"n" * BLOCK + b"o" * BLOCK
    assert bytes(world.run(mount.read(opened, 0, 2 * BLOCK))) == b"n" * BLOCK + b"o" * BLOCK


def test_who_wrote_first_and_covers_last_overwrites_nothing_else(world: World) -> None:
    """Two mounts, different bytes of one block: the later version is named already."""
    file = stored(world, world.mount(), BLOCK)
    mount, opened = pushed(world, b"first", file.identifier)
    other = world.mount()
    theirs = world.run(other.open(file.identifier, os.O_RDWR, ALICE))
    write(world, other, theirs, 10, b"second")
    world.run(other.flush(theirs))
    world.run(mount.flush(opened))
    expected = b"firstooooosecond".ljust(BLOCK, b"o")
    assert read_elsewhere(world, file.identifier) == expected
    assert bytes(world.run(mount.read(opened, 0, BLOCK))) == expected


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_covered_late_is_written_again(world: World, is_there: bool) -> None:
    """The network was down for so long that nodes may have collected it; or they have."""
    file = stored(world, world.mount(), 2 * BLOCK)
    mount, opened = pushed(world, b"n" * BLOCK, file.identifier)
    ((_, block),) = opened.contents.uncovered.items()
    world.pass_time(2 * limits.COVERED_WITHIN_US)
    if not is_there:
        (versions,) = (each for each in world.blocks.versions.values() if len(each) > 1)
        del versions[block.pushed.timestamp.time]
        refused(errno.EIO, world, mount.flush(opened))
        return
    world.run(mount.flush(opened))
    expected = b"n" * BLOCK + b"o" * BLOCK
    assert read_elsewhere(world, file.identifier) == expected
    assert bytes(world.run(mount.read(opened, 0, 2 * BLOCK))) == expected


def test_what_nodes_name_no_more_when_they_are_asked_at_last_is_written_again(
    world: World,
) -> None:
    """The network goes down between the last block and the update."""
    file = stored(world, world.mount(), 2 * BLOCK)
    mount, opened = pushed(world, b"n" * BLOCK, file.identifier)

    def late(method: str, _: Any) -> None:
        if method == registry.WRITE and world.host.clock_us < block.pushed.timestamp.time + 1000:
            world.host.clock_us += 2 * limits.COVERED_WITHIN_US

    block = opened.contents.uncovered[0]
    world.objects.before = late
    world.run(mount.flush(opened))
    assert world.objects.calls[registry.WRITE] >= 3
    assert read_elsewhere(world, file.identifier) == b"n" * BLOCK + b"o" * BLOCK


def test_very_many_blocks_are_covered_by_as_many_updates_as_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes in each of them take little room in a mount before they are pushed."""
    monkeypatch.setattr(limits, "BLOCKS_PER_COVER", 2)
    count = 2 * block_versions.ATTEMPTS + 3
    mount = world.mount()
    file = create(world, mount)
    for number in range(count):
        write(world, mount, file, number * BLOCK, b"x")
    world.run(mount.release(file))
    expected = (b"x".ljust(BLOCK, b"\0") * count)[: (count - 1) * BLOCK + 1]
    assert read_elsewhere(world, file.identifier) == expected


def test_names_of_large_files_that_nobody_has_open_take_no_room(world: World) -> None:
    """Thousands of such files may be known; they are asked for when one is opened again."""
    mount, maker = world.mount(), world.mount()
    for size in (3 * PAGE * BLOCK, BLOCK):
        file = create(world, maker, b"%d" % size)
        write(world, maker, file, 0, b"o" * size)
        world.run(maker.release(file))
        for _ in range(2):
            opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
            assert bytes(world.run(mount.read(opened, 0, size))) == b"o" * size
            assert opened.contents.names.has_page_of(0)
            world.run(mount.release(opened))
            assert opened.contents.names.has_page_of(0) == (size == BLOCK)


def as_before_names(world: World, identifier: ObjectId) -> None:
    """Leave the inode as programs did that named no blocks."""
    rows = world.objects.rows[identifier]
    for number in range(10):
        rows.pop(key_of_block(number), None)
    fields = msgspec.msgpack.decode(rows[ATTRIBUTES_KEY])
    rows[ATTRIBUTES_KEY] = msgspec.msgpack.encode(fields[:-1])


def test_blocks_without_names_are_read_as_of_the_last_update_of_then(world: World) -> None:
    file = stored(world, world.mount(), 3 * BLOCK)
    as_before_names(world, file.identifier)
    old = b"o" * 3 * BLOCK
    assert read_elsewhere(world, file.identifier) == old
    other, theirs = pushed(world, b"n" * BLOCK, file.identifier)
    assert read_elsewhere(world, file.identifier) == old
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    write(world, mount, opened, BLOCK + 1, b"m")
    world.run(mount.flush(opened))
    mixed = (b"o" * (BLOCK + 1) + b"m").ljust(3 * BLOCK, b"o")
    assert read_elsewhere(world, file.identifier) == mixed
    assert bytes(world.run(mount.read(opened, 0, 3 * BLOCK))) == mixed
    world.run(other.flush(theirs))
    assert read_elsewhere(world, file.identifier) == b"n" * BLOCK + mixed[BLOCK:]


def test_what_is_cut_off_without_a_name_never_comes_back(world: World) -> None:
    mount = world.mount()
    file = stored(world, mount, 3 * BLOCK)
    as_before_names(world, file.identifier)
    mount = world.mount()
    world.run(mount.truncate(file.identifier, BLOCK + 10, ALICE))
    world.run(mount.truncate(file.identifier, 3 * BLOCK, ALICE))
    expected = (b"o" * (BLOCK + 10)).ljust(3 * BLOCK, b"\0")
    assert read_elsewhere(world, file.identifier) == expected


def test_in_a_file_that_was_made_since_no_block_is_read_without_a_name(world: World) -> None:
    """Though a version of it is dated as the file's creation."""
    mount = world.mount()
    file = create(world, mount)
    found = world.run(mount.attributes(file.identifier, ALICE))
    assert found.layout is not None
    cipher, block = BlockCipher(bytes(range(32))), found.layout.block(file.identifier, 0)
    world.blocks.versions[block] = {found.contents: cipher.seal(block, b"e", nonce=bytes(12))}
    write(world, mount, file, BLOCK, b"m")
    world.run(mount.flush(file))
    assert read_elsewhere(world, file.identifier) == bytes(BLOCK) + b"m"


def test_many_blocks_are_covered_in_several_updates(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each extends the size as far as it names blocks: no bytes of it are missing."""
    monkeypatch.setattr(limits, "BLOCKS_PER_COVER", 3)
    sizes: list[int] = []

    def watch(method: str, objects: Any) -> None:
        if method == registry.WRITE:
            found = world.objects.perform(registry.GET_ATTRIBUTES, objects, NoArguments(), ALICE)
            sizes.append(found.size)

    world.objects.before = watch
    file = stored(world, world.mount(), 8 * BLOCK)
    world.objects.before = lambda *_: None
    assert sizes == [0, 3 * BLOCK, 6 * BLOCK]
    assert read_elsewhere(world, file.identifier) == b"o" * 8 * BLOCK


def test_a_read_during_our_covering_update_is_repeated(world: World) -> None:
    file = stored(world, world.mount(), 2 * BLOCK)
    _, theirs = other = pushed(world, b"n" * BLOCK, file.identifier)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    write(world, mount, opened, BLOCK, b"m" * BLOCK)
    past = world.blocks.written
    is_covered = False

    async def slow(block: BlockId, timestamp: BlockTimestamp, who: Any, *, permit: Any) -> Any:
        nonlocal is_covered
        version = await past(block, timestamp, who, permit=permit)
        if not is_covered:
            is_covered = True
            await other[0].flush(theirs)
            await mount.flush(opened)
        return version

    world.blocks.written = slow  # type: ignore[method-assign]
    assert bytes(world.run(mount.read(opened, 0, BLOCK))) == b"n" * BLOCK
    assert bytes(world.run(mount.read(opened, 0, BLOCK))) == b"n" * BLOCK


def test_a_covered_block_is_read_in_one_request(world: World) -> None:
    file = stored(world, world.mount(), 8 * BLOCK)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    world.objects.calls.clear()
    world.blocks.reads.clear()
    assert len(world.run(mount.read(opened, 0, 8 * BLOCK))) == 8 * BLOCK
    assert len(world.blocks.reads) == 8
    assert not world.objects.calls


def test_a_block_that_is_covered_anew_is_shown_as_it_is_now(world: World) -> None:
    mount, other = world.mount(), world.mount()
    file = stored(world, mount, 2 * BLOCK)
    reader = world.mount()
    opened = world.run(reader.open(file.identifier, os.O_RDONLY, ALICE))
    save_elsewhere(world, other, file.identifier, b"n" * BLOCK, ahead_us=0)
    assert bytes(world.run(reader.read(opened, 0, 1 << 20))) == b"n" * BLOCK + b"o" * BLOCK


def test_strict_mounts_write_parts_of_a_block_by_turns(world: World) -> None:
    one, other = world.mount(strict=True), world.mount(strict=True)
    first = create(world, one)
    write(world, one, first, 0, b"." * BLOCK)
    second = world.run(other.open(first.identifier, os.O_RDWR, ALICE))
    for number in range(10):
        mount, file = ((one, first), (other, second))[number % 2]
        write(world, mount, file, number, b"%d" % number)
    assert read_elsewhere(world, first.identifier) == b"0123456789" + b"." * (BLOCK - 10)


def test_what_could_not_be_covered_is_shown_to_nobody(world: World) -> None:
    file = stored(world, world.mount(), BLOCK)
    mount = world.mount()
    opened = world.run(mount.open(file.identifier, os.O_RDWR, ALICE))
    write(world, mount, opened, 0, b"n" * BLOCK)

    def interrupt(method: str, _objects: Any) -> None:
        if method == registry.WRITE:
            raise FileSystemError(errno.EDQUOT)

    world.objects.before = interrupt
    refused(errno.EDQUOT, world, mount.release(opened))
    world.objects.before = lambda *_: None
    again = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    assert not again.keep_cache
    assert bytes(world.run(mount.read(again, 0, 1 << 20))) == b"o" * BLOCK


async def latest_version(
    reader: block_reading.BlockReader,
    contents: contents.Contents,
    number: int,
    _load: Any,
    who: Any,
) -> bytes:
    """A reader that believes the nodes: what was written last is shown."""
    block = contents.layout.block(contents.identifier, number)
    version = await reader.blocks.read(block, who)
    return await reader.sealing.open(block, version.item)


def test_must_fail_where_the_latest_version_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_reading.BlockReader, "_shown", latest_version)
    file = stored(world, world.mount(), BLOCK)
    pushed(world, b"n" * BLOCK, file.identifier)
    assert read_elsewhere(world, file.identifier) != b"o" * BLOCK


# --- truncation, and other mounts ------------------------------------------------------------


def stored(world: World, mount: FileSystem, size: int) -> OpenFile:
    """A file of that size, saved and opened."""
    file = create(world, mount)
    write(world, mount, file, 0, b"o" * size)
    world.run(mount.flush(file))
    return file


def test_cut_bytes_never_come_back(world: World) -> None:
    mount = world.mount()
    file = stored(world, mount, 5 * BLOCK)
    world.run(mount.truncate(file.identifier, BLOCK + 10, ALICE))
    world.run(mount.truncate(file.identifier, 5 * BLOCK, ALICE))
    expected = (b"o" * (BLOCK + 10)).ljust(5 * BLOCK, b"\0")
    assert bytes(world.run(mount.read(file, 0, 1 << 20))) == expected
    assert read_elsewhere(world, file.identifier) == expected


def test_truncation_costs_the_same_at_any_length(world: World) -> None:
    mount = world.mount()
    file = stored(world, mount, 200 * BLOCK)
    world.blocks.writes.clear()
    world.objects.calls.clear()
    world.run(mount.truncate(file.identifier, 0, ALICE))
    assert world.objects.calls == {registry.TRUNCATE: 1}
    assert world.blocks.writes == []


def test_writes_overtaken_by_a_cut_are_written_again(
    world: World,
) -> None:
    """Blocks were on the nodes, not covered, when another mount cut the file to nothing."""
    one, other = world.mount(), world.mount()
    file = stored(world, one, 4 * BLOCK)
    write(world, one, file, 10, b"new")  # inside of an old block
    write(world, one, file, 2 * BLOCK, b"n" * BLOCK)  # a whole one

    def cut(method: str, _: Any) -> None:
        if method == registry.WRITE:
            world.objects.before = lambda *_: None
            run_now(world, other.truncate(file.identifier, 0, ALICE))

    world.objects.before = cut
    world.run(one.flush(file))
    # In this order: cut to nothing, then the writes. No old byte is left.
    expected = bytes(10) + b"new" + bytes(2 * BLOCK - 13) + b"n" * BLOCK
    assert read_elsewhere(world, file.identifier) == expected
    assert bytes(world.run(one.read(file, 0, 1 << 20))) == expected


def run_now(world: World, conversation: Any) -> None:
    """Run a conversation of another mount from within one of this one."""
    outcome = world.host.start(conversation)
    if not outcome:
        raise AssertionError("it had to wait")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def test_a_cut_in_a_block_keeps_a_concurrent_save(world: World) -> None:
    one, other = world.mount(), world.mount()
    file = stored(world, one, BLOCK)
    elsewhere = world.run(other.open(file.identifier, os.O_RDWR, ALICE))
    write(world, other, elsewhere, 5, b"kept")

    def save(method: str, _: Any) -> None:
        if method == registry.TRUNCATE:
            world.objects.before = lambda *_: None
            run_now(world, other.flush(elsewhere))

    world.objects.before = save
    world.run(one.truncate(file.identifier, 100, ALICE))
    assert read_elsewhere(world, file.identifier) == b"o" * 5 + b"kept" + b"o" * 91


def test_two_truncations_at_the_same_time_do_not_mix(world: World) -> None:
    one, other = world.mount(), world.mount()
    file = stored(world, one, BLOCK)

    def cut(method: str, _: Any) -> None:
        if method == registry.TRUNCATE:
            world.objects.before = lambda *_: None
            run_now(world, other.truncate(file.identifier, 50, ALICE))

    world.objects.before = cut
    world.run(one.truncate(file.identifier, 100, ALICE))
    assert read_elsewhere(world, file.identifier) == b"o" * 50 + bytes(50)


def test_truncation_waits_for_blocks_on_their_way(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    world.blocks.latency = lambda: 1_000
    write(world, mount, file, 0, b"w" * (4 * BLOCK))
    flushing = world.host.start(mount.flush(file))
    world.run(mount.truncate(file.identifier, 3, ALICE))
    world.host.settle()
    assert flushing == [None]
    assert read_elsewhere(world, file.identifier) == b"www"


@pytest.mark.parametrize("size", [0, 3, BLOCK])
def test_a_cut_that_fails_forgets_nothing(world: World, size: int) -> None:
    assert after_a_failed_cut(world, size) == b"o" * 10 + b"n" * BLOCK


def test_must_fail_a_mount_that_forgets_what_is_behind_a_cut_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate = BlockWriter.truncate

    async def forget(writer: BlockWriter, contents: Any, size: int, who: Any) -> None:
        writer.unsaved.cut(contents, size)
        await truncate(writer, contents, size, who)

    monkeypatch.setattr(BlockWriter, "truncate", forget)
    assert after_a_failed_cut(world, 3) == b"o" * 10


def after_a_failed_cut(world: World, size: int) -> bytes:
    """What is read elsewhere after a cut has failed, and its mount has saved the file."""
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"o" * 10)
    world.run(mount.flush(file))
    write(world, mount, file, 10, b"n" * BLOCK)
    fail_at(world, {registry.TRUNCATE: errno.EINTR})
    refused(errno.EINTR, world, mount.truncate(file.identifier, size, ALICE))
    world.objects.before = lambda *_: None
    world.run(mount.flush(file))
    return read_elsewhere(world, file.identifier)


def fail_at(world: World, codes: dict[str, int]) -> None:
    """The next update by each of these methods fails, with that error."""

    def fail(method: str, _objects: Any) -> None:
        if method in codes:
            raise FileSystemError(codes.pop(method))

    world.objects.before = fail


@pytest.mark.parametrize("cut_fails", [False, True])
def test_a_cut_makes_room_although_there_is_none_for_what_is_behind_it(
    world: World, cut_fails: bool
) -> None:
    """Programs are told that this is gone if the file was not cut."""
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"o" * 10)
    world.run(mount.flush(file))
    write(world, mount, file, 10, b"n" * BLOCK)
    codes = {registry.WRITE: errno.EDQUOT}
    if cut_fails:
        codes[registry.TRUNCATE] = errno.EINTR
    fail_at(world, codes)
    if cut_fails:
        refused(errno.EINTR, world, mount.truncate(file.identifier, 3, ALICE))
        refused(errno.EDQUOT, world, mount.synchronize(file))
    else:
        world.run(mount.truncate(file.identifier, 3, ALICE))
        assert read_elsewhere(world, file.identifier) == b"ooo"
    world.run(mount.synchronize(file))


def test_what_was_to_make_room_leaves_no_hole_where_the_cut_fails(world: World) -> None:
    """Nothing is left of what would have let the file grow so far."""
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"o" * 10)
    world.run(mount.flush(file))
    write(world, mount, file, 2 * BLOCK, b"n" * 10)
    world.blocks.refuse = full
    fail_at(world, {registry.TRUNCATE: errno.EINTR})
    refused(errno.EINTR, world, mount.truncate(file.identifier, BLOCK, ALICE))
    world.blocks.refuse = lambda: None
    assert world.run(mount.attributes(file.identifier, ALICE)).size == 10
    with pytest.raises(AdmissionRefused):
        world.run(mount.synchronize(file))
    write(world, mount, file, 3, b"n")
    world.run(mount.synchronize(file))
    assert read_elsewhere(world, file.identifier) == b"ooonoooooo"


def test_an_open_that_cannot_cut_the_file_opens_nothing(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"o" * 10)
    world.run(mount.flush(file))
    fail_at(world, {registry.TRUNCATE: errno.EDQUOT})
    refused(errno.EDQUOT, world, mount.open(file.identifier, os.O_RDWR | os.O_TRUNC, ALICE))
    assert file.contents.handles == 1
    world.run(mount.release(file))
    assert not file.contents.handles


def test_ranges_are_merged_when_there_are_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = world.mount()
    monkeypatch.setattr("bftfs.limits.LAYOUT_RANGES", 8)
    file = create(world, mount)
    expected = b""
    for _ in range(40):
        data = os.urandom(2 * BLOCK)
        write(world, mount, file, None, data)
        world.run(mount.flush(file))
        expected += data
        world.run(mount.truncate(file.identifier, len(expected) - 50, ALICE))
        expected = expected[:-50]
        assert len(file.contents.layout.ranges) <= 8
    assert read_elsewhere(world, file.identifier) == expected
    assert world.objects.calls[registry.MERGE] > 0


# --- attributes that wait with unsaved bytes -------------------------------------------------


def test_folded_changes_show_and_are_refused_at_once(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"x")
    world.objects.calls.clear()
    attributes = world.run(
        mount.change_attributes(file.identifier, Changes(mode=0o4711, atime_ns=7), ALICE)
    )
    assert (attributes.mode & 0o7777, attributes.atime_ns, attributes.size) == (0o4711, 7, 1)
    refused(errno.EPERM, world, mount.change_attributes(file.identifier, Changes(uid=5), ALICE))
    assert not world.objects.calls
    refused(errno.EPERM, world, mount.change_attributes(file.identifier, Changes(mode=0), BOB))
    world.run(mount.flush(file))
    assert world.run(world.mount().attributes(file.identifier, ALICE)).mode & 0o7777 == 0o4711


def test_a_write_after_utimens_sets_time_and_mode_again(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"x")
    changes = Changes(mode=0o6755, mtime_ns=7)
    world.run(mount.change_attributes(file.identifier, changes, ALICE))
    world.pass_time(1_000)
    write(world, mount, file, 1, b"y")
    world.run(mount.flush(file))
    attributes = world.run(world.mount().attributes(file.identifier, ALICE))
    assert attributes.mode & 0o7777 == 0o755
    assert attributes.mtime_ns == (START_US + 1_000) * 1_000


def test_folded_changes_survive_a_cover_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "UNCOVERED_BLOCKS", 1)
    mount = world.mount(write_behind_bytes=2 * BLOCK, dirty_bytes=4 * BLOCK)
    file = create(world, mount)
    write(world, mount, file, 0, b"x")
    world.run(mount.change_attributes(file.identifier, Changes(mtime_ns=7), ALICE))
    for number in range(8):
        mount.write(file, number * BLOCK, bytes(BLOCK), now_ns=8)
        world.run(mount.change_attributes(file.identifier, Changes(mtime_ns=7), ALICE))
        world.run(mount.write_behind(file))
        world.host.settle()
    world.run(mount.flush(file))
    assert world.run(world.mount().attributes(file.identifier, ALICE)).mtime_ns == 7


def test_bytes_are_saved_if_folded_changes_are_refused(world: World) -> None:
    mount = world.mount()
    file = create(world, mount, mode=0o666)
    write(world, mount, file, 0, b"saved")
    world.run(mount.change_attributes(file.identifier, Changes(mode=0o600), ALICE))
    world.run(world.mount().change_attributes(file.identifier, Changes(uid=BOB.uid), ROOT))
    refused(errno.EPERM, world, mount.flush(file))
    assert read_elsewhere(world, file.identifier) == b"saved"


def test_changes_folded_during_a_truncation_are_saved(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    write(world, mount, file, 0, b"saved")

    def change(method: str, _: Any) -> None:
        if method == registry.WRITE:
            world.objects.before = lambda *_: None
            run_now(world, mount.change_attributes(file.identifier, Changes(mode=0o600), ALICE))

    world.objects.before = change
    world.run(mount.truncate(file.identifier, 3, ALICE))
    world.run(mount.flush(file))
    assert world.run(world.mount().attributes(file.identifier, ALICE)).mode & 0o7777 == 0o600


def test_attributes_show_what_is_not_saved_yet(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    mount.write(file, 10, b"abc", now_ns=START_US * 1_000 + 5)
    attributes = world.run(mount.attributes(file.identifier, ALICE))
    assert (attributes.size, attributes.mtime_ns) == (13, START_US * 1_000 + 5)
    assert world.run(world.mount().attributes(file.identifier, ALICE)).size == 0


# --- unlinked files, writing back ------------------------------------------------------------


def test_an_unlinked_file_is_usable_and_not_written(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    world.run(mount.unlink(ROOT_ID, b"file", ALICE))
    write(world, mount, file, 0, b"temporary")
    world.run(mount.flush(file))
    assert bytes(world.run(mount.read(file, 0, 100))) == b"temporary"
    world.run(mount.truncate(file.identifier, 4, ALICE))
    assert bytes(world.run(mount.read(file, 0, 100))) == b"temp"
    world.blocks.writes.clear()
    write(world, mount, file, 4, b"er")
    world.run(mount.release(file))
    assert world.blocks.writes == []
    assert mount._contents._unsaved.dirty_bytes == 0


def test_an_unlinked_file_is_written_on_request(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    elsewhere = world.mount()
    opened = world.run(elsewhere.open(file.identifier, os.O_RDONLY, ALICE))
    world.run(mount.unlink(ROOT_ID, b"file", ALICE))
    write(world, mount, file, 0, b"shared")
    world.run(mount.synchronize(file))
    world.run(elsewhere._metadata.latest(file.identifier, ALICE))
    assert bytes(world.run(elsewhere.read(opened, 0, 100))) == b"shared"


def test_what_is_old_enough_is_written_back(world: World) -> None:
    mount = world.mount()
    old, young = create(world, mount, b"old"), create(world, mount, b"young")
    write(world, mount, old, 0, b"old")
    world.pass_time(5_000_000)
    write(world, mount, young, 0, b"young")
    world.run(mount.write_back(older_than_us=5_000_000))
    assert read_elsewhere(world, old.identifier) == b"old"
    assert read_elsewhere(world, young.identifier) == b""
    world.run(mount.synchronize_all())
    assert read_elsewhere(world, young.identifier) == b"young"


def test_appending_goes_to_the_end_as_this_mount_knows_it(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    for _ in range(3):
        write(world, mount, file, None, b"line\n")
    assert bytes(world.run(mount.read(file, 0, 100))) == b"line\n" * 3


def test_read_only_mounts_write_nothing(world: World) -> None:
    file = stored(world, world.mount(), 10)
    mount = world.mount(read_only=True)
    opened = world.run(mount.open(file.identifier, os.O_RDONLY, ALICE))
    assert bytes(world.run(mount.read(opened, 0, 100))) == b"o" * 10
    with pytest.raises(FileSystemError) as refusal:
        mount.write(opened, 0, b"x", now_ns=0)
    assert refusal.value.code == errno.EROFS
    refused(errno.EROFS, world, mount.truncate(file.identifier, 0, ALICE))
    refused(errno.EROFS, world, mount.unlink(ROOT_ID, b"file", ALICE))
    world.run(mount.synchronize_all())


# --- times that nobody was asked for ---------------------------------------------------------


def save_elsewhere(
    world: World, mount: FileSystem, identifier: ObjectId, data: bytes, *, ahead_us: int
) -> None:
    """Another mount, whose clock is ahead, writes to the beginning of a file, and closes it."""
    elsewhere = world.run(mount.open(identifier, os.O_RDWR, ALICE))
    world.blocks.skew_us = ahead_us
    write(world, mount, elsewhere, 0, data)
    world.run(mount.release(elsewhere))
    world.blocks.skew_us = 0


def test_an_exclusive_file_is_written_without_asking(world: World) -> None:
    mount = world.mount()
    file = create(world, mount)
    for text in (b"one", b"another"):
        write(world, mount, file, 0, text)
        world.run(mount.synchronize(file))
    world.host.clock_us -= 60_000_000  # set back: the later write stays later
    write(world, mount, file, 0, b"the last")
    world.run(mount.synchronize(file))
    assert len(world.blocks.unasked) == len(world.blocks.writes) == 3
    assert read_elsewhere(world, file.identifier) == b"the last"
    again = world.run(world.mount().open(file.identifier, os.O_RDWR, ALICE))
    assert again.contents.sharing is Sharing.SHARED


def test_a_strict_mount_asks_always(world: World) -> None:
    mount = world.mount(strict=True)
    file = create(world, mount)
    write(world, mount, file, 0, b"strict")
    assert len(world.blocks.writes) == 1
    assert not world.blocks.unasked


@pytest.mark.parametrize("noticed", ["by the update", "when the file is opened again"])
def test_a_write_dated_before_anothers_is_written_again(world: World, noticed: str) -> None:
    """The other mount closed the file before this one did, and its clock is ahead."""
    one, other = world.mount(), world.mount()
    file = create(world, one)
    write(world, one, file, 2, b"mine")
    save_elsewhere(world, other, file.identifier, b"others", ahead_us=1_000_000)
    if noticed != "by the update":
        world.run(one.open(file.identifier, os.O_RDONLY, ALICE))
    world.run(one.flush(file))
    assert len(world.blocks.writes) == 2 + len(world.blocks.unasked)  # theirs, and ours again
    assert read_elsewhere(world, file.identifier) == b"otmine"
    assert bytes(world.run(one.read(file, 0, 100))) == b"otmine"
    # From now on it asks.
    world.blocks.unasked.clear()
    write(world, one, file, 0, b"more")
    world.run(one.flush(file))
    assert not world.blocks.unasked
    assert read_elsewhere(world, file.identifier) == b"morene"


def test_an_overtaken_block_is_written_with_newer_bytes(
    world: World,
) -> None:
    """It was on the nodes, not covered, and more was written to it when that was noticed."""
    one, other = world.mount(write_behind_bytes=BLOCK), world.mount()
    file = create(world, one)
    write(world, one, file, 0, b"a" * 2 * BLOCK)
    world.host.settle()
    assert file.contents.uncovered
    save_elsewhere(world, other, file.identifier, b"b" * 2 * BLOCK, ahead_us=1_000_000)
    world.run(one.open(file.identifier, os.O_RDONLY, ALICE))
    write(world, one, file, 5, b"c")
    world.run(one.flush(file))
    expected = b"aaaaac" + b"a" * (2 * BLOCK - 6)
    assert read_elsewhere(world, file.identifier) == expected
    assert bytes(world.run(one.read(file, 0, 1 << 20))) == expected


def test_without_looking_again_the_write_would_be_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Must fail, or the two above would say nothing."""
    monkeypatch.setattr(contents.Contents, "overtaken", lambda *_: [])
    ignore_bases(monkeypatch)
    one, other = world.mount(), world.mount()
    file = create(world, one)
    write(world, one, file, 2, b"mine")
    save_elsewhere(world, other, file.identifier, b"others", ahead_us=1_000_000)
    world.run(one.flush(file))
    assert read_elsewhere(world, file.identifier) == b"others"


@pytest.mark.parametrize("when", ["after", "during"])
def test_a_cut_noticed_before_the_cover_loses_nothing(world: World, when: str) -> None:
    """Another mount cuts the file while blocks go to the nodes; a lookup tells this one."""
    one, other = world.mount(write_behind_bytes=BLOCK), world.mount()
    file = stored(world, one, 2 * BLOCK)
    if when == "during":
        world.blocks.latency = lambda: 1_000
    write(world, one, file, 0, b"n" * BLOCK)
    write(world, one, file, BLOCK, b"m" * BLOCK)
    if when == "after":
        world.host.settle()
        assert file.contents.uncovered
    else:
        assert file.contents.pushing
    world.run(other.truncate(file.identifier, 0, ALICE))
    world.run(one.open(file.identifier, os.O_RDONLY, ALICE))
    world.run(one.flush(file))
    assert read_elsewhere(world, file.identifier) == b"n" * BLOCK + b"m" * BLOCK
