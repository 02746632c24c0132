"""Several mounts write one file at the same time: what each has closed is there, once.

Bytes that two mounts write at one place are not the subject: of these, one mount's count.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from bftfs import limits
from bftfs.conversation import Pause
from bftfs.errors import FileSystemError
from bftfs.filesystem import inode, registry
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import ObjectId
from tests.simulation.mutants import ignore_bases
from tests.unit.filesystem.world import ALICE, ROOT_ID, World

BLOCK = limits.BLOCK_BYTES_MIN
RECORD = 24
MODES = (
    {},
    {"strict": True},
    {"cache_bytes": 0},
    {"write_behind_bytes": BLOCK},
    {"patch_saves_bytes": 0},
    {"patch_saves_bytes": 0, "write_behind_bytes": 64},
)


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, mount: FileSystem, content: bytes) -> ObjectId:
    _, file = world.run(mount.create(ROOT_ID, b"file", 0o644, ALICE))
    put(world, mount, file, 0, content)
    world.run(mount.release(file))
    return file.identifier


def opened(world: World, mount: FileSystem, identifier: ObjectId) -> OpenFile:
    return world.run(mount.open(identifier, os.O_RDWR, ALICE))


def put(world: World, mount: FileSystem, file: OpenFile, offset: int | None, data: bytes) -> None:
    if mount.write(file, offset, data, now_ns=world.host.clock_us * 1000):
        world.run(mount.write_behind(file))


def seen(world: World, identifier: ObjectId) -> bytes:
    mount = world.mount()
    file = world.run(mount.open(identifier, os.O_RDONLY, ALICE))
    return bytes(world.run(mount.read(file, 0, 1 << 30)))


def record(name: str, number: int, size: int = RECORD) -> bytes:
    return f"[{name} {number} ".encode().ljust(size - 2, b".") + b"]\n"


def line(name: str, number: int) -> bytes:
    """Of a length of its own, and rarely longer than a block."""
    size = random.Random(f"{name}{number}").choice((12, 25, 60, 700, 5_000))
    return record(name, number, size)


# --- two mounts ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_disjoint_records_of_one_block_are_all_kept(world: World, mode: dict[str, Any]) -> None:
    one, other = world.mount(**mode), world.mount(**mode)
    identifier = made(world, one, bytes(BLOCK))
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, 0, b"one")
    put(world, other, theirs, 100, b"other")
    world.run(one.flush(mine))
    world.run(other.flush(theirs))
    put(world, one, mine, 50, b"again")
    world.run(one.flush(mine))
    expected = bytearray(BLOCK)
    expected[0:3], expected[50:55], expected[100:105] = b"one", b"again", b"other"
    assert seen(world, identifier) == expected
    for mount, file in ((one, mine), (other, theirs)):
        world.run(mount.release(file))
        again = opened(world, mount, identifier)
        assert bytes(world.run(mount.read(again, 0, BLOCK))) == expected


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("size", [0, 10, BLOCK - 2, BLOCK])
def test_appends_of_two_mounts_are_all_kept(world: World, size: int, mode: dict[str, Any]) -> None:
    one, other = world.mount(**mode), world.mount(**mode)
    identifier = made(world, one, b"x" * size)
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, None, b"<one>")
    put(world, other, theirs, None, b"<other>")
    put(world, one, mine, None, b"<more>")
    world.run(one.flush(mine))
    world.run(other.flush(theirs))
    found = seen(world, identifier)
    if mode.get("strict"):
        assert found == b"x" * size + b"<one><other><more>"
    else:
        assert found == b"x" * size + b"<one><more><other>"
    assert bytes(world.run(other.read(theirs, 0, 1 << 20))) == found
    put(world, other, theirs, None, b"<last>")
    world.run(other.release(theirs))
    assert seen(world, identifier) == found + b"<last>"


@pytest.mark.parametrize("beyond", [0, 3 * BLOCK])
def test_what_is_appended_while_its_mount_lets_the_file_grow_stays_where_it_is(
    world: World, beyond: int
) -> None:
    """Though a program writes behind it before that is covered: nobody else was there."""
    mount = world.mount()
    identifier = made(world, mount, b"x" * 100)
    file = opened(world, mount, identifier)
    put(world, mount, file, 100, b"y" * 100)
    world.objects.latency = lambda: 1_000
    covering = world.host.start(mount.flush(file))
    assert not covering
    put(world, mount, file, None, b"<appended>")
    world.objects.latency = lambda: 0
    world.host.settle()
    assert covering == [None]
    expected = (b"x" * 100 + b"y" * 100 + b"<appended>").ljust(beyond, b"\0")
    if beyond:
        put(world, mount, file, beyond, b"z")
        expected += b"z"
    world.run(mount.release(file))
    assert seen(world, identifier) == expected


def test_a_short_block_that_others_append_to_is_no_whole_one(world: World) -> None:
    """A mount that overwrites all that a block has, as it knows it, overwrites no more."""
    one, other = world.mount(), world.mount()
    identifier = made(world, one, b"x" * 100)
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, other, theirs, None, b"tail")
    world.run(other.flush(theirs))
    put(world, one, mine, 0, b"y" * 100)
    world.run(one.flush(mine))
    assert seen(world, identifier) == b"y" * 100 + b"tail"


def test_a_whole_block_needs_no_base(world: World) -> None:
    """Of two mounts that write the same whole block, the later one counts, at no more rounds."""
    one, other = world.mount(), world.mount()
    identifier = made(world, one, bytes(2 * BLOCK))
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, 0, b"a" * BLOCK)
    put(world, other, theirs, 0, b"b" * BLOCK)
    world.run(one.flush(mine))
    world.objects.calls.clear()
    world.run(other.flush(theirs))
    assert world.objects.calls == {registry.WRITE: 1}
    assert seen(world, identifier) == b"b" * BLOCK + bytes(BLOCK)


def test_an_append_that_spans_blocks_moves_as_a_whole(world: World) -> None:
    one, other = world.mount(write_behind_bytes=BLOCK), world.mount()
    identifier = made(world, one, b"x" * (BLOCK - 5))
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    long = b"".join(record("long", number) for number in range(1_000))
    put(world, one, mine, None, long)
    world.host.settle()
    assert mine.contents.uncovered  # at the nodes, at a place that it will not have
    put(world, other, theirs, None, b"<other>")
    world.run(other.flush(theirs))
    put(world, one, mine, None, b"<end>")
    world.run(one.flush(mine))
    assert seen(world, identifier) == b"x" * (BLOCK - 5) + b"<other>" + long + b"<end>"
    assert mine.contents.moves == 1
    assert not mine.contents.appends
    assert world.run(one.attributes(identifier, ALICE)).size == len(seen(world, identifier))


def seen_after_one_update(world: World) -> bytes:
    """A mount appends to a block that it overwrites and another one replaces; it ends half-way."""
    one, other = world.mount(), world.mount()
    identifier = made(world, other, b"0123456789")
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, None, b"<" + b"one" * BLOCK + b">")
    put(world, one, mine, 0, b"MINE......")  # nothing of others is left in this block

    def refuse(method: str, _objects: Any) -> None:
        if method == registry.WRITE:
            refusing.append(method)
            if len(refusing) != 2:
                raise FileSystemError(errno.EINTR)

    refusing: list[str] = []
    world.objects.before = refuse
    with pytest.raises(FileSystemError):
        world.run(one.synchronize(mine))  # the nodes have its blocks now
    world.objects.before = lambda *_: None
    put(world, other, theirs, 0, b"THEIRS....")
    world.run(other.flush(theirs))
    world.objects.before = refuse
    with pytest.raises(FileSystemError):
        world.run(one.synchronize(mine))
    world.objects.before = lambda *_: None
    between = seen(world, identifier)
    world.run(one.synchronize(mine))
    assert seen(world, identifier) == b"MINE......<" + b"one" * BLOCK + b">"
    return between


def test_of_an_append_all_or_nothing_is_there(world: World) -> None:
    assert seen_after_one_update(world) == b"THEIRS...."


def test_must_fail_where_the_beginning_of_an_append_may_be_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inode, "is_appended_whole", lambda *_: True)
    assert seen_after_one_update(world).startswith(b"THEIRS...." + bytes(10))


def test_what_is_written_into_appended_bytes_moves_with_them(world: World) -> None:
    """A program mends what it has just appended; another one writes further on, at its place."""
    one, other = world.mount(), world.mount()
    identifier = made(world, one, b"x" * 10)
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, None, b"<head>")
    put(world, one, mine, 11, b"HEAD")
    put(world, one, mine, 30, b"absolute")
    put(world, one, mine, None, b"<tail>")
    assert bytes(world.run(one.read(mine, 10, 100))) == (
        b"<HEAD>" + bytes(14) + b"absolute" + b"<tail>"
    )
    put(world, other, theirs, None, b"<other>")
    world.run(other.flush(theirs))
    world.run(one.flush(mine))
    expected = b"x" * 10 + b"<other>" + bytes(13) + b"absolute" + b"<HEAD>" + b"<tail>"
    assert seen(world, identifier) == expected
    assert bytes(world.run(one.read(mine, 0, 100))) == expected


def test_alone_appends_and_other_writes_stay_where_they_are(world: World) -> None:
    mount = world.mount()
    identifier = made(world, mount, b"x" * 10)
    file = opened(world, mount, identifier)
    put(world, mount, file, None, b"<one>")
    put(world, mount, file, 20, b"two")
    put(world, mount, file, None, b"<three>")
    expected = b"x" * 10 + b"<one>" + bytes(5) + b"two" + b"<three>"
    assert bytes(world.run(mount.read(file, 0, 100))) == expected
    world.run(mount.flush(file))
    assert seen(world, identifier) == expected
    assert file.contents.moves == 0


@pytest.mark.parametrize("size", [0, 4, 12])
def test_appending_to_what_another_mount_cuts(world: World, size: int) -> None:
    one, other = world.mount(), world.mount()
    identifier = made(world, one, b"0123456789")
    mine = opened(world, one, identifier)
    put(world, one, mine, None, b"<one>")
    world.run(other.truncate(identifier, size, ALICE))
    world.run(one.flush(mine))
    assert seen(world, identifier) == b"0123456789"[:size].ljust(size, b"\0") + b"<one>"


@pytest.mark.parametrize("size", [0, 4, 12, 40])
def test_cutting_what_was_appended_here(world: World, size: int) -> None:
    one = world.mount()
    identifier = made(world, one, b"0123456789")
    mine = opened(world, one, identifier)
    put(world, one, mine, None, b"<one>")
    world.run(one.truncate(identifier, size, ALICE))
    put(world, one, mine, None, b"<two>")
    world.run(one.flush(mine))
    expected = b"0123456789<one>"[:size].ljust(size, b"\0") + b"<two>"
    assert seen(world, identifier) == expected


@pytest.mark.parametrize("steps", range(8))
def test_what_is_appended_during_a_flush_is_covered_as_a_whole(world: World, steps: int) -> None:
    """Or not yet. Otherwise another mount's bytes could come in the middle of it."""
    one, other = world.mount(), world.mount()
    before = b"x" * (BLOCK - 10) + b"<1>"
    identifier = made(world, one, before[:-3])
    mine = opened(world, one, identifier)
    long = record("long", 1, 3 * BLOCK)
    put(world, one, mine, None, b"<1>")
    world.blocks.latency = world.objects.latency = lambda: 100
    flushed = world.host.start(one.flush(mine))
    for _ in range(steps):
        world.host.step()
    put(world, one, mine, None, long)
    while not flushed:
        world.host.step()
    closed = seen(world, identifier)
    assert closed in (before, before + long)
    theirs = opened(world, other, identifier)
    put(world, other, theirs, None, b"<other>")
    world.run(other.flush(theirs))
    world.run(one.flush(mine))
    rest = b"" if closed.endswith(long) else long
    assert seen(world, identifier) == closed + b"<other>" + rest


def interrupted(world: World, one: FileSystem, other: FileSystem) -> bytes:
    """What there is after a cover whose answer was late, and a look at the file meanwhile."""
    identifier = made(world, one, b"0123456789")
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, 0, b"mine")
    world.objects.calls.clear()
    latencies = [1, 100]
    world.objects.latency = lambda: latencies.pop(0) if latencies else 0
    flushed = world.host.start(one.flush(mine))
    while latencies:
        world.host.step()
    assert not flushed  # the cover has taken effect
    world.run(other.truncate(identifier, 0, ALICE))
    put(world, other, theirs, None, b"other mount's")
    world.run(other.flush(theirs))
    reader = opened(world, one, identifier)
    world.run(one.read(reader, 0, 100))
    world.host.settle()
    assert flushed == [None]
    put(world, one, mine, None, b"<more>")
    world.run(one.flush(mine))
    return seen(world, identifier)


def test_a_block_that_others_have_replaced_is_not_shown_any_more(world: World) -> None:
    """Who covers it hears of the change before the answer, and is read by a program meanwhile."""
    assert interrupted(world, world.mount(), world.mount()) == b"other mount's<more>"


def test_must_fail_who_goes_on_showing_a_block_that_others_have_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contents, "covered_before_others", lambda *_: None)
    assert b"other" not in interrupted(world, world.mount(), world.mount())


def test_a_new_incarnation_has_what_the_inode_names(world: World) -> None:
    """And nothing that this mount has merged on an older version, and not covered."""
    one, other = world.mount(), world.mount()
    identifier = made(world, one, bytes(100))
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, 0, b"mine")
    writer = one._contents._writer
    world.run(writer.push(mine.contents, tuple(mine.contents.dirty)))
    put(world, other, theirs, 50, b"theirs")
    world.run(other.flush(theirs))
    world.run(writer.reader.refresh(mine.contents, ALICE))
    world.run(writer.rewriter._rewrite(mine.contents, 0, 1, ALICE))
    assert seen(world, identifier) == bytes(50) + b"theirs" + bytes(44)
    world.run(one.flush(mine))
    assert seen(world, identifier) == b"mine" + bytes(46) + b"theirs" + bytes(44)


# --- many attempts -------------------------------------------------------------------


def test_an_append_is_made_anew_if_it_was_refused(world: World) -> None:
    """`EAGAIN` for a thousand times: the bytes are kept, and the program is told."""
    one, other = world.mount(), world.mount()
    identifier = made(world, one, b"x")
    mine, theirs = opened(world, one, identifier), opened(world, other, identifier)
    put(world, one, mine, None, b"<one>")

    def in_between(method: str, _: Any) -> None:
        if method == registry.WRITE:
            world.objects.before = lambda *_: None
            put(world, other, theirs, None, b"o")
            world.run(other.flush(theirs))
            world.objects.before = in_between

    world.objects.before = in_between
    with pytest.raises(FileSystemError) as refusal:
        world.run(one.flush(mine))
    assert refusal.value.code == errno.EAGAIN
    world.objects.before = lambda *_: None
    world.run(one.flush(mine))
    assert seen(world, identifier).endswith(b"o<one>")


# --- many mounts at the same time ------------------------------------------------------------


def working(
    world: World, mount: FileSystem, identifier: ObjectId, name: str, count: int, slots: int
) -> Iterator[Any]:
    """A program that writes its records, appends its lines, and syncs or closes each."""
    index = int(name)

    async def work() -> None:
        file = await mount.open(identifier, os.O_RDWR, ALICE)
        for number in range(count):
            offset = ((number * slots) + index) * RECORD
            for at, data in ((offset, record(name, number)), (None, line(name, number))):
                if mount.write(file, at, data, now_ns=world.host.clock_us * 1000):
                    await mount.write_behind(file)
            if world.host.random.random() < 0.5:
                await mount.synchronize(file)
            else:
                await mount.release(file)
                file = await mount.open(identifier, os.O_RDWR, ALICE)
            await Pause(1 + world.host.random.randrange(3_000))
        await mount.release(file)

    return work()


def lost(world: World, modes: tuple[dict[str, Any], ...], *, count: int = 8) -> list[bytes]:
    """What is not there exactly once, after that many programs, one in each mount or two."""
    slots = 2 * len(modes)
    identifier = made(world, world.mount(), bytes(slots * count * RECORD))
    delay = world.host.random.randrange
    world.objects.latency = lambda: 1 + delay(400)
    world.blocks.latency = lambda: 1 + delay(400)
    outcomes = []
    for position, mode in enumerate(modes):
        mount = world.mount(**mode)
        for index in (2 * position, 2 * position + 1):
            work = working(world, mount, identifier, str(index), count, slots)
            outcomes.append(world.host.start(work))
    while not all(outcomes):
        assert world.host.step()
    assert [outcome for (outcome,) in outcomes] == [None] * len(outcomes)
    found = seen(world, identifier)
    fixed = slots * count * RECORD
    missing = []
    for index in range(slots):
        for number in range(count):
            at = ((number * slots) + index) * RECORD
            wanted = record(str(index), number)
            if found[at : at + RECORD] != wanted:
                missing.append(wanted)
            if found.count(line(str(index), number), fixed) != 1:
                missing.append(line(str(index), number))
    if not missing:
        lines = sum(len(line(str(i), n)) for i in range(slots) for n in range(count))
        assert len(found) == fixed + lines
    return missing


@pytest.mark.parametrize("seed", range(6))
def test_everything_that_many_mounts_write_is_there_once(seed: int) -> None:
    modes = ({}, {"strict": True}, {"write_behind_bytes": BLOCK, "cache_bytes": 0}, {})
    assert lost(World(seed=seed), modes) == []


def test_must_fail_where_bases_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    ignore_bases(monkeypatch)
    assert lost(World(), ({}, {}))
    assert lost(World(), ({"strict": True}, {"strict": True}))
