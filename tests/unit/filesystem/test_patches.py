"""Patches: what small writes leave of large blocks, and how these are read again."""

from __future__ import annotations

import errno
import os
import random
from functools import partial
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.crypto.cipher import BlockCipher
from bftfs.crypto.digest import Digest
from bftfs.errors import FileSystemError, MalformedMessage, QuorumUnavailable
from bftfs.filesystem import contents, inode, registry
from bftfs.filesystem.attributes import NO_CHANGES, Layout
from bftfs.filesystem.block_memory import DirtyBlock
from bftfs.filesystem.block_names import (
    OVERTAKEN,
    BlockName,
    CoveredBlock,
    CoveredPatch,
    PatchName,
    base_of,
    decode_name,
    grow,
    name_at,
    name_blocks,
)
from bftfs.filesystem.block_names import lay_patches as lay_patches_within
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.patches import composed, decode_patch, encode_patch, pays
from bftfs.identifiers import (
    WHOLE,
    ClientId,
    ObjectId,
    ObjectKind,
    block_id,
    block_number_of,
    incarnation_of,
    slot_of,
)
from bftfs.query_update.object_type import Caller, Refusal
from bftfs.read_write.timestamp import BlockTimestamp
from tests.builders import Overlay, SortedDict
from tests.unit.filesystem.world import ALICE, ROOT_ID, World, fresh

BLOCK = limits.BLOCK_BYTES_MIN
LAYOUT = Layout(BLOCK)
AUTHOR, OTHER = ClientId(b"a" * 16), ClientId(b"b" * 16)
lay_patches = partial(lay_patches_within, size=limits.FILE_BYTES)

# --- the format ------------------------------------------------------------------------------


def dirty(*pieces: tuple[int, bytes]) -> DirtyBlock:
    block = DirtyBlock()
    for start, data in pieces:
        block.write(start, data)
    return block


def test_a_patch_has_the_bytes_that_were_written_and_where() -> None:
    patch = encode_patch(dirty((7, b"seven"), (100, b"hundred"), (12, b"!")))
    assert [(start, bytes(data)) for start, data in decode_patch(patch)] == [
        (7, b"seven!"),
        (100, b"hundred"),
    ]
    assert len(patch) == 2 + 2 * 8 + 13


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0",
        b"\0\1",
        b"\0\1\0\0\0\0\0\0\0\2x",  # too short
        b"\0\1\0\0\0\0\0\0\0\2xyz",  # too long
        b"\0\2\0\0\0\5\0\0\0\2\0\0\0\6\0\0\0\2wxyz",  # overlapping
        b"\0\1\x7f\xff\xff\xff\0\0\0\1x",  # behind every block
        b"\0\1\0\0\0\0\xff\xff\xff\xffx",
        (limits.PATCH_EXTENTS + 1).to_bytes(2, "big") + bytes(8 * (limits.PATCH_EXTENTS + 1)),
    ],
)
def test_what_is_no_patch_is_refused(plaintext: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_patch(plaintext)


def test_patches_lie_on_each_other_in_their_order() -> None:
    whole = [(0, memoryview(b"aaaa"))]
    one, two = [(2, memoryview(b"bbbb"))], [(1, memoryview(b"c")), (9, memoryview(b"d"))]
    assert bytes(composed([(whole, None)])) == b"aaaa"
    assert bytes(composed([(whole, None), (one, None), (two, None)])) == b"acbbbb\0\0\0d"
    # Of each, only what belonged to the file counts.
    assert bytes(composed([(whole, 1), (one, 3), (two, 4)])) == b"acb"


@pytest.mark.parametrize(
    ("written", "length", "least_saved", "expected"),
    [(100, 200, 0, True), (101, 200, 0, False), (100, 200, 100, True), (100, 200, 101, False)],
)
def test_a_patch_pays_if_it_is_small(
    written: int, length: int, least_saved: int, expected: bool
) -> None:
    assert pays(dirty((0, bytes(written))), length, least_saved) == expected


def test_a_patch_of_very_many_extents_does_not_pay() -> None:
    many = dirty(*((2 * at, b"x") for at in range(limits.PATCH_EXTENTS + 1)))
    assert not pays(many, 4_096, 0)


def test_a_patch_is_an_item_of_its_own_of_its_block() -> None:
    inode_id = fresh(ObjectKind.INODE)
    most = limits.FILE_BYTES // limits.BLOCK_BYTES_MIN - 1
    patch = block_id(inode_id, incarnation=9, number=most, slot=limits.PATCHES)
    assert (block_number_of(patch), incarnation_of(patch)) == (most, 9)
    assert slot_of(patch) == limits.PATCHES
    assert slot_of(block_id(inode_id, incarnation=9, number=most)) == WHOLE


# --- names -----------------------------------------------------------------------------------


def state() -> Any:
    """An inode's, with block 0."""
    file = Overlay(fresh(ObjectKind.INODE), SortedDict())
    name_blocks(file, LAYOUT, [CoveredBlock(0, 5, verifier(5))], caller(), size=BLOCK)
    return file


def verifier(time_us: int) -> Digest:
    return Digest(bytes([time_us]) * 32)


def caller(client: ClientId = AUTHOR, time_us: int = 100) -> Caller:
    return Caller(client, 0, 0, (), time_us)


def patch(file: Any, time_us: int, slot: int = 1, base: bytes | None = None) -> CoveredPatch:
    """On the named version, if no base is given."""
    base = base_of(name_at(file, 0)) if base is None else base
    return CoveredPatch(0, slot, time_us, verifier(time_us), base)


def parts(file: Any) -> list[tuple[int, int]]:
    """The slots and times of what block 0 is made up of."""
    name = name_at(file, 0)
    assert name is not None
    assert decode_name(name.encoded) == name
    return [(slot, timestamp.time) for slot, timestamp in name.parts()]


def test_a_patch_lies_on_what_was_named_before() -> None:
    file = state()
    assert lay_patches(file, LAYOUT, [patch(file, 6)], caller()) == ()
    assert lay_patches(file, LAYOUT, [patch(file, 7, slot=8)], caller(OTHER)) == ()
    assert parts(file) == [(WHOLE, 5), (1, 6), (8, 7)]
    lay_patches(file, LAYOUT, [patch(file, 8)], caller(OTHER))  # in place of the one in its slot
    assert parts(file) == [(WHOLE, 5), (8, 7), (1, 8)]


def test_a_version_of_the_whole_replaces_all_patches() -> None:
    file = state()
    lay_patches(file, LAYOUT, [patch(file, 6)], caller())
    lay_patches(file, LAYOUT, [patch(file, 7, slot=2)], caller())
    merged = CoveredBlock(0, 8, verifier(8), base_of(name_at(file, 0)))
    assert name_blocks(file, LAYOUT, [merged], caller(), size=BLOCK) == ()
    assert parts(file) == [(WHOLE, 8)]


def test_a_version_that_is_earlier_than_a_patch_replaces_nothing() -> None:
    """Its writer is told."""
    file = state()
    lay_patches(file, LAYOUT, [patch(file, 9)], caller())
    assert name_blocks(file, LAYOUT, [CoveredBlock(0, 8, verifier(8))], caller(), size=BLOCK) == (
        0,
    )
    assert parts(file) == [(WHOLE, 5), (1, 9)]


def test_a_patch_that_was_written_for_another_version_is_refused() -> None:
    file = state()
    stale = patch(file, 7)
    lay_patches(file, LAYOUT, [patch(file, 6)], caller(OTHER))
    for base in (stale.base, b"", b"x" * 8):
        with pytest.raises(Refusal) as refusal:
            lay_patches(file, LAYOUT, [patch(file, 7, base=base)], caller())
        assert refusal.value.code == OVERTAKEN
    assert parts(file) == [(WHOLE, 5), (1, 6)]


def test_there_is_nothing_to_lie_on_in_a_hole_or_in_what_was_cut_off() -> None:
    file = state()
    hole = CoveredPatch(3, 1, 6, verifier(6), b"")
    for layout, each in ((LAYOUT, hole), (LAYOUT.cut(0, 7), patch(file, 6))):
        with pytest.raises(Refusal) as refusal:
            lay_patches(file, layout, [each], caller())
        assert refusal.value.code == OVERTAKEN


def test_a_patch_may_be_named_again_and_counts_once() -> None:
    file = state()
    again = patch(file, 6)
    for _ in range(2):
        assert lay_patches(file, LAYOUT, [again], caller()) == ()
    assert parts(file) == [(WHOLE, 5), (1, 6)]


def test_a_patch_is_later_than_what_it_lies_on() -> None:
    file = state()
    assert lay_patches(file, LAYOUT, [patch(file, 4)], caller()) == (0,)
    assert parts(file) == [(WHOLE, 5)]


@pytest.mark.parametrize(
    ("size", "updated_us", "code"),
    [
        (0, 100, errno.EINVAL),
        (BLOCK, 5, errno.EINVAL),
        (BLOCK, 7 + limits.COVERED_WITHIN_US, errno.EAGAIN),
    ],
)
def test_a_patch_lies_in_the_file_and_is_hardly_older_than_its_update(
    size: int, updated_us: int, code: int
) -> None:
    file = state()
    with pytest.raises(Refusal) as refusal:
        lay_patches_within(file, LAYOUT, [patch(file, 6)], caller(time_us=updated_us), size=size)
    assert refusal.value.code == code


def test_when_a_file_grows_past_a_block_no_more_of_its_patches_counts() -> None:
    file = state()
    lay_patches(file, LAYOUT, [patch(file, 6)], caller())
    grown = patch(file, 7, slot=2)
    lay_patches(file, LAYOUT, [grown], caller())
    grow(file, LAYOUT, 10, (), (), [grown])
    name = name_at(file, 0)
    assert name is not None
    assert (name.valid, [each.valid for each in name.patches]) == (10, [10, None])
    assert decode_name(name.encoded) == name
    grow(file, LAYOUT, 30, ())
    name = name_at(file, 0)
    assert name is not None
    assert (name.valid, [each.valid for each in name.patches]) == (10, [10, 30])


def test_names_are_bounded() -> None:
    timestamp = BlockTimestamp(1, AUTHOR, verifier(1))
    slots = range(1, limits.PATCHES + 1)
    patches = tuple(PatchName(slot, timestamp, None) for slot in slots)
    assert len(BlockName(1 << 62, timestamp, 5, patches).encoded) < 600
    for slot in (0, limits.PATCHES + 1):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(
                msgspec.msgpack.encode([0, slot, 6, b"v" * 32, b""]), type=CoveredPatch
            )


def test_an_update_names_no_more_patches_and_blocks_together_than_it_may(world: World) -> None:
    identifier = made(world, world.mount(), b"x")
    block, each = CoveredBlock(0, 1, verifier(1)), CoveredPatch(0, 1, 1, verifier(1), b"")
    blocks = (block,) * limits.BLOCKS_PER_COVER
    writing = inode.Writing(0, 0, 0, NO_CHANGES, blocks, None, (each,))
    with pytest.raises(Refusal) as refusal:
        world.objects.perform(registry.WRITE, (identifier,), writing, ALICE)
    assert refusal.value.code == errno.EINVAL


# --- mounts ----------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, mount: FileSystem, content: bytes) -> ObjectId:
    name = f"file {len(world.blocks.versions)}".encode()
    _, file = world.run(mount.create(ROOT_ID, name, 0o644, ALICE))
    put(world, mount, file, 0, content)
    world.run(mount.release(file))
    return file.identifier


def patching(world: World, **options: Any) -> FileSystem:
    return world.mount(patch_saves_bytes=0, **options)


def opened(world: World, mount: FileSystem, identifier: ObjectId) -> OpenFile:
    return world.run(mount.open(identifier, os.O_RDWR, ALICE))


def put(world: World, mount: FileSystem, file: OpenFile, offset: int | None, data: bytes) -> None:
    if mount.write(file, offset, data, now_ns=world.host.clock_us * 1000):
        world.run(mount.write_behind(file))


def shown(world: World, mount: FileSystem, file: OpenFile) -> bytes:
    return bytes(world.run(mount.read(file, 0, 1 << 30)))


def seen(world: World, identifier: ObjectId) -> bytes:
    mount = world.mount()
    return shown(world, mount, world.run(mount.open(identifier, os.O_RDONLY, ALICE)))


def slots(world: World) -> list[int]:
    """Of what was written since the list was cleared."""
    return [slot_of(block) for block in world.blocks.writes]


def test_a_small_overwrite_writes_what_was_written_and_reads_nothing(world: World) -> None:
    mount = patching(world, cache_bytes=0)
    identifier = made(world, mount, b"o" * 3 * BLOCK)
    file = opened(world, mount, identifier)
    world.blocks.writes.clear()
    world.objects.calls.clear()
    put(world, mount, file, BLOCK + 100, b"new")
    world.run(mount.synchronize(file))
    assert slots(world) == [1]
    assert world.blocks.unasked[-1:] == world.blocks.writes  # nobody is asked for its time
    assert world.objects.calls == {registry.WRITE: 1}
    assert world.blocks.reads == []
    (item,) = world.blocks.versions[world.blocks.writes[0]].values()
    assert len(item) < 100
    expected = bytearray(b"o" * 3 * BLOCK)
    expected[BLOCK + 100 : BLOCK + 103] = b"new"
    assert seen(world, identifier) == shown(world, mount, file) == expected


def test_a_block_has_few_patches_and_is_written_whole_then(world: World) -> None:
    mount = patching(world)
    identifier = made(world, mount, bytes(BLOCK))
    file = opened(world, mount, identifier)
    expected = bytearray(BLOCK)
    world.blocks.writes.clear()
    for at in range(2 * limits.PATCHES + 2):
        expected[7 * at : 7 * at + 3] = b"new"
        put(world, mount, file, 7 * at, b"new")
        world.run(mount.synchronize(file))
        assert seen(world, identifier) == expected
    assert slots(world) == 2 * [*range(1, limits.PATCHES + 1), WHOLE]


def test_a_patch_replaces_those_of_which_nothing_would_show(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, bytes(BLOCK)))
    world.blocks.writes.clear()
    for at, data in ((0, b"one"), (50, b"fifty"), (0, b"two"), (49, b"fifties"), (0, b"three")):
        put(world, mount, file, at, data)
        world.run(mount.synchronize(file))
    assert slots(world) == [1, 2, 1, 2, 1]
    expected = b"three".ljust(49, b"\0") + b"fifties"
    assert seen(world, file.identifier) == expected.ljust(BLOCK, b"\0")


def test_of_closed_files_little_is_remembered(world: World) -> None:
    mount = patching(world)
    blocks = contents.NAMES_OF_CLOSED + 1
    file = opened(world, mount, made(world, mount, bytes(blocks * BLOCK)))
    for number in range(blocks):
        put(world, mount, file, number * BLOCK, b"x")
    world.run(mount.synchronize(file))
    assert len(file.contents.laid) == blocks
    world.run(mount.release(file))
    assert not file.contents.laid


def test_a_large_write_writes_the_block(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, bytes(BLOCK)))
    world.blocks.writes.clear()
    put(world, mount, file, 1, b"x" * (BLOCK // 2 + 1))
    world.run(mount.synchronize(file))
    assert slots(world) == [WHOLE]


def test_a_small_file_gets_no_patches(world: World) -> None:
    """With the options of a mount: it would be read in two pieces, and little is saved."""
    mount = world.mount()
    file = opened(world, mount, made(world, mount, bytes(BLOCK)))
    world.blocks.writes.clear()
    put(world, mount, file, 0, b"x")
    world.run(mount.synchronize(file))
    assert slots(world) == [WHOLE]


def test_a_hole_is_written_whole(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, b"x"))
    world.run(mount.truncate(file.identifier, 3 * BLOCK, ALICE))
    world.blocks.writes.clear()
    put(world, mount, file, BLOCK, b"x")
    world.run(mount.synchronize(file))
    assert slots(world) == [WHOLE]


def test_programs_read_what_is_on_its_way(world: World) -> None:
    mount = patching(world, cache_bytes=0)
    file = opened(world, mount, made(world, mount, b"o" * BLOCK))
    world.blocks.latency = lambda: 1_000
    put(world, mount, file, 5, b"new")
    flush = world.host.start(mount.synchronize(file))
    expected = b"ooooonew".ljust(BLOCK, b"o")
    for _ in range(12):
        assert shown(world, mount, file) == expected
        world.pass_time(500)
    assert flush == [None]


def test_a_patch_that_is_not_covered_yet_is_written_again_with_what_is_new(world: World) -> None:
    mount = patching(world, write_behind_bytes=1)
    file = opened(world, mount, made(world, mount, b"o" * BLOCK))
    world.blocks.writes.clear()
    put(world, mount, file, 0, b"one")
    put(world, mount, file, 9, b"two")
    assert slots(world) == [1, 1]
    expected = b"oneoooooo" + b"two".ljust(BLOCK - 9, b"o")
    assert shown(world, mount, file) == expected
    assert seen(world, file.identifier) == b"o" * BLOCK
    world.run(mount.release(file))
    assert seen(world, file.identifier) == expected


def test_a_patch_that_cannot_be_written_is_dirty_again(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, b"o" * BLOCK))
    failures = [QuorumUnavailable(heard=1, required=5, subject="write")]
    world.blocks.refuse = lambda: failures.pop() if failures else None
    put(world, mount, file, 3, b"new")
    with pytest.raises(QuorumUnavailable):
        world.run(mount.synchronize(file))
    expected = b"ooonew".ljust(BLOCK, b"o")
    assert shown(world, mount, file) == expected
    world.run(mount.synchronize(file))
    assert seen(world, file.identifier) == expected
    assert mount._contents._unsaved.dirty_bytes == 0


def test_what_is_cut_off_a_patched_block_does_not_come_back(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, b"o" * BLOCK))
    put(world, mount, file, 100, b"patch")
    world.run(mount.synchronize(file))
    world.run(mount.truncate(file.identifier, 102, ALICE))
    world.run(mount.truncate(file.identifier, BLOCK, ALICE))
    assert seen(world, file.identifier) == (b"o" * 100 + b"pa").ljust(BLOCK, b"\0")


def test_what_is_appended_to_a_large_block_is_a_patch(world: World) -> None:
    mount = patching(world)
    file = opened(world, mount, made(world, mount, b"o" * 1000))
    world.blocks.writes.clear()
    put(world, mount, file, None, b"line\n")
    world.run(mount.synchronize(file))
    assert slots(world) == [1]
    assert seen(world, file.identifier) == b"o" * 1000 + b"line\n"


def named(world: World, identifier: ObjectId, plaintext: bytes, slot: int, end: int = 0) -> None:
    """A hostile client writes something to block 0 and has it named."""
    found = world.run(world.mount().attributes(identifier, ALICE))
    assert found.layout is not None
    block = found.layout.block(identifier, 0, slot)
    sealed = BlockCipher(bytes(range(32))).seal(block, plaintext, nonce=bytes(12))
    writing_block = world.blocks.write_many([(block, sealed)], ALICE, after_us=found.contents)
    (timestamp,) = world.run(writing_block)
    page = world.objects.perform(registry.GET_BLOCKS, (identifier,), inode.BlockPage(0, 0), ALICE)
    (_, stored) = page.blocks[0]
    patches = blocks = ()
    if slot == WHOLE:
        blocks = (CoveredBlock(0, timestamp.time, timestamp.verifier),)
    else:
        base = base_of(decode_name(stored))
        patches = (CoveredPatch(0, slot, timestamp.time, timestamp.verifier, base),)
    writing = inode.Writing(end, found.layout.newest, 0, NO_CHANGES, blocks, None, patches)
    world.objects.perform(registry.WRITE, (identifier,), writing, ALICE, timestamp.time + 1)
    assert world.run(world.mount().attributes(identifier, ALICE)).contents == timestamp.time + 1


@pytest.mark.parametrize("slot", [WHOLE, 1])
def test_what_was_left_behind_the_end_does_not_show_when_a_patch_lets_the_file_grow(
    world: World, slot: int
) -> None:
    mount = patching(world)
    identifier = made(world, mount, b"o" * 100)
    hidden = b"o" * 100 + b"evil" * 100
    named(world, identifier, hidden if slot == WHOLE else encode_patch(dirty((0, hidden))), slot)
    assert seen(world, identifier) == b"o" * 100
    mount = patching(world)
    file = opened(world, mount, identifier)
    put(world, mount, file, 300, b"end")
    world.run(mount.synchronize(file))
    expected = b"o" * 100 + bytes(200) + b"end"
    assert shown(world, mount, file) == expected
    assert seen(world, identifier) == expected


@pytest.mark.parametrize("slot", [WHOLE, 1])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_what_was_left_behind_the_end_does_not_show_before_the_file_has_grown(
    world: World, slot: int, cache_bytes: int
) -> None:
    """A patch is at the nodes that lets the file grow, and the inode does not know of it yet."""
    shown_, expected = uncovered_growth(world, slot, cache_bytes)
    assert shown_ == [expected, expected]


def test_must_fail_where_a_patch_lies_on_more_than_belongs_to_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents.Contents, "named_within_file", contents.Contents.named)
    shown_, expected = uncovered_growth(world, WHOLE, 1 << 20)
    assert expected not in shown_


def uncovered_growth(world: World, slot: int, cache_bytes: int) -> tuple[list[bytes], bytes]:
    """What a mount shows before and after it has covered such a patch, and what it should show."""
    mount = patching(world)
    identifier = made(world, mount, b"o" * 100)
    hidden = b"o" * 100 + b"evil" * 100
    named(world, identifier, hidden if slot == WHOLE else encode_patch(dirty((0, hidden))), slot)
    mount = patching(world, cache_bytes=cache_bytes)
    file = opened(world, mount, identifier)
    put(world, mount, file, 300, b"end")
    world.run(mount._contents._writer.push(file.contents, tuple(file.contents.dirty)))
    assert file.contents.uncovered[0].pushed.under is not None
    before = shown(world, mount, file)
    world.run(mount.synchronize(file))
    return [before, shown(world, mount, file)], b"o" * 100 + bytes(200) + b"end"


def test_a_patch_that_is_none_destroys_its_block_and_nothing_else(world: World) -> None:
    mount = patching(world)
    identifier = made(world, mount, b"o" * 2 * BLOCK)
    named(world, identifier, b"\xff" * 9, 1)
    mount = patching(world)
    file = opened(world, mount, identifier)
    with pytest.raises(FileSystemError) as failure:
        world.run(mount.read(file, 0, BLOCK))
    assert failure.value.code == errno.EIO
    assert bytes(world.run(mount.read(file, BLOCK, BLOCK))) == b"o" * BLOCK
    put(world, mount, file, 0, b"n" * BLOCK)
    world.run(mount.release(file))
    assert seen(world, identifier) == b"n" * BLOCK + b"o" * BLOCK


def test_a_patch_whose_version_is_gone_is_asked_for_again(world: World) -> None:
    """Another mount has written the block whole, and nodes have collected what it was before."""
    mount, other = patching(world, cache_bytes=0), patching(world)
    identifier = made(world, mount, b"o" * BLOCK)
    file = opened(world, mount, identifier)
    put(world, mount, file, 0, b"patch")
    world.run(mount.synchronize(file))
    patch_item = world.blocks.writes[-1]
    theirs = opened(world, other, identifier)
    put(world, other, theirs, 0, b"n" * BLOCK)
    world.run(other.release(theirs))
    del world.blocks.versions[patch_item]
    assert shown(world, mount, file) == b"n" * BLOCK


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", [{}, {"strict": True}, {"cache_bytes": 0}], ids=str)
def test_any_writes_of_two_mounts_leave_what_they_would_leave_in_memory(
    world: World, mode: dict[str, Any], seed: int
) -> None:
    """In turns; each saves what it wrote, now and then not at once."""
    draw = random.Random(seed)
    mounts = [patching(world, **mode), patching(world, write_behind_bytes=64, **mode)]
    identifier = made(world, mounts[0], b"o" * 2 * BLOCK)
    expected = bytearray(b"o" * 2 * BLOCK)
    for _ in range(12):
        mount = draw.choice(mounts)
        file = opened(world, mount, identifier)
        for _ in range(draw.randrange(1, 6)):
            size = draw.choice((1, 10, 300, BLOCK // 2, BLOCK, BLOCK + 50))
            at = draw.choice((0, 50, len(expected), draw.randrange(3 * BLOCK)))
            if draw.random() < 0.1:
                world.run(mount.truncate(identifier, at, ALICE))
                del expected[at:]
                expected.extend(bytes(at - len(expected)))
                continue
            data = bytes([draw.randrange(1, 256)]) * size
            put(world, mount, file, at, data)
            expected.extend(bytes(max(0, at - len(expected))))
            expected[at : at + size] = data
            if draw.random() < 0.4:
                world.run(mount.synchronize(file))
            assert shown(world, mount, file) == expected
        world.run(mount.release(file))
        assert seen(world, identifier) == expected
