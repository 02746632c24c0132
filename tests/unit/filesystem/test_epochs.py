"""Blocks that are sealed again with the present key: what stays, what others do meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from bftfs.crypto.cipher import BlockCipher, epoch_named
from bftfs.errors import FileSystemError
from bftfs.filesystem import inode, registry
from bftfs.filesystem.attributes import Attributes, decode_attributes
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import EpochId, ObjectId
from tests.unit.filesystem.world import ALICE, BOB, ROOT, ROOT_ID, World

BLOCK = 4096
EPOCH, KEY = EpochId(b"1" * 16), b"k" * 32


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, data: bytes, mode: int = 0o644) -> ObjectId:
    """A file that was written in the first epoch."""
    mount = world.mount()
    _, file = world.run(mount.create(ROOT_ID, b"file", mode, ALICE))
    put(world, mount, file, 0, data)
    return file.identifier


def put(world: World, mount: FileSystem, file: OpenFile, offset: int, data: bytes) -> None:
    mount.write(file, offset, data, now_ns=world.host.clock_us * 1000)
    world.run(mount.flush(file))


def later(world: World) -> FileSystem:
    """A mount in the next epoch."""
    mount = world.mount(cache_bytes=0)
    assert isinstance(mount.sealing.cipher, BlockCipher)
    mount.sealing.cipher.learn(EPOCH, KEY)
    mount.sealing.cipher.present = EPOCH
    return mount


def renewed(world: World, mount: FileSystem, identifier: ObjectId, first: int = 0) -> int:
    file = world.run(mount.open(identifier, os.O_RDONLY, ALICE))
    done: int = world.run(mount.seal_again(file, first, first + 8))
    world.run(mount.release(file))
    return done


def contents(world: World, identifier: ObjectId) -> bytes:
    mount = later(world)
    file = world.run(mount.open(identifier, os.O_RDONLY, ALICE))
    return bytes(world.run(mount.read(file, 0, 1 << 30)))


def attributes(world: World, identifier: ObjectId) -> Attributes:
    found: Attributes = world.run(world.mount().attributes(identifier, ALICE))
    return found


def latest(world: World) -> list[EpochId]:
    """The epochs of the latest versions of all blocks."""
    return [epoch_named(versions[max(versions)]) for versions in world.blocks.versions.values()]


@pytest.mark.parametrize("size", [1, BLOCK, 3 * BLOCK, 3 * BLOCK + 5])
def test_the_bytes_stay_and_the_key_changes(world: World, size: int) -> None:
    data = os.urandom(size)
    identifier = made(world, data)
    before = attributes(world, identifier)
    world.pass_time(5_000_000)
    blocks = -(-size // BLOCK)
    assert renewed(world, later(world), identifier) == blocks
    assert latest(world) == [EPOCH] * blocks
    assert contents(world, identifier) == data
    after = attributes(world, identifier)
    assert (after.size, after.mtime_ns, after.mode) == (before.size, before.mtime_ns, before.mode)
    assert after.layout == before.layout


def test_what_is_done_is_left_as_it_is(world: World) -> None:
    """So it can be interrupted, and run again."""
    identifier = made(world, os.urandom(20 * BLOCK))
    assert renewed(world, later(world), identifier, first=8) == 8
    world.blocks.writes.clear()
    world.objects.calls.clear()
    assert [renewed(world, later(world), identifier, first) for first in (0, 8, 16)] == [8, 0, 4]
    assert len(world.blocks.writes) == 12
    assert world.objects.calls[registry.REWRITE] == 2


def test_the_versions_of_before_stay_as_they_were(world: World) -> None:
    identifier = made(world, b"secret")
    renewed(world, later(world), identifier)
    [versions] = world.blocks.versions.values()
    assert len(versions) == 2
    assert epoch_named(versions[min(versions)]) != EPOCH


def test_holes_stay_holes(world: World) -> None:
    mount = world.mount()
    _, file = world.run(mount.create(ROOT_ID, b"file", 0o644, ALICE))
    put(world, mount, file, 3 * BLOCK, b"end")
    world.run(mount.truncate(file.identifier, 6 * BLOCK, ALICE))
    assert renewed(world, later(world), file.identifier) == 1
    assert contents(world, file.identifier) == bytes(3 * BLOCK) + b"end".ljust(3 * BLOCK, b"\0")


def written_meanwhile(world: World, when: str) -> ObjectId:
    """Another mount writes between the reading and the writing, or between that and the naming."""
    identifier = made(world, b"a" * (2 * BLOCK))
    other, mine = later(world), later(world)
    file = world.run(other.open(identifier, os.O_RDWR, ALICE))
    opened = world.run(mine.open(identifier, os.O_RDONLY, ALICE))
    once = [True]

    def meanwhile() -> None:
        if once:
            once.clear()
            other.write(file, 10, b"theirs", now_ns=world.host.clock_us * 1000)
            flushing = world.host.start(other.flush(file))
            while not flushing:
                assert world.host.step()

    if when == "writing":
        world.blocks.refuse = meanwhile
    else:
        world.objects.before = lambda method, _: meanwhile() if method == registry.REWRITE else None
    assert world.run(mine.seal_again(opened, 0, 8)) >= 1
    assert not once
    return identifier


BOTH = b"a" * 10 + b"theirs" + b"a" * (2 * BLOCK - 16)


@pytest.mark.parametrize("when", ["writing", "naming"])
def test_nobody_elses_write_is_lost(world: World, when: str) -> None:
    assert contents(world, written_meanwhile(world, when)) == BOTH
    assert set(latest(world)) == {EPOCH}


def test_must_fail_where_the_version_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a program had written the file again, by what it has read before."""
    perform = world.objects.perform

    def careless(method: str, objects: Any, arguments: Any, *more: Any) -> Any:
        if method == registry.REWRITE:
            now = decode_attributes(world.objects.rows[objects[0]][ATTRIBUTES_KEY]).contents
            arguments = inode.Rewriting(now, arguments.blocks)
        return perform(method, objects, arguments, *more)

    monkeypatch.setattr(world.objects, "perform", careless)
    assert contents(world, written_meanwhile(world, "writing")) == b"a" * (2 * BLOCK)


def test_a_file_that_is_cut_meanwhile_stays_cut(world: World) -> None:
    identifier = made(world, b"a" * (2 * BLOCK))
    other = later(world)
    once = [True]

    def meanwhile(method: str, _: object) -> None:
        if method == registry.REWRITE and once:
            once.clear()
            cutting = world.host.start(other.truncate(identifier, 5, ALICE))
            while not cutting:
                assert world.host.step()

    world.objects.before = meanwhile
    renewed(world, later(world), identifier)
    assert not once
    assert contents(world, identifier) == b"aaaaa"


def test_who_may_not_write_the_file_does_not_write_it_again(world: World) -> None:
    identifier = made(world, b"secret")
    mount = later(world)
    file = world.run(mount.open(identifier, os.O_RDONLY, BOB))
    with pytest.raises(FileSystemError) as refusal:
        world.run(mount.seal_again(file, 0, 8))
    assert refusal.value.code == errno.EACCES


def test_a_program_keeps_its_privileges_if_root_does_it(world: World) -> None:
    identifier = made(world, b"program")
    mount = later(world)
    for who, mode in ((ROOT, 0o4755), (ALICE, 0o755)):
        world.run(world.mount().change_attributes(identifier, _mode(0o4755), ROOT))
        file = world.run(mount.open(identifier, os.O_RDONLY, who))
        assert isinstance(mount.sealing.cipher, BlockCipher)
        world.run(mount.seal_again(file, 0, 8))
        assert stat.S_IMODE(attributes(world, identifier).mode) == mode
        epoch = EpochId(b"2" * 16)
        mount.sealing.cipher.learn(epoch, KEY)
        mount.sealing.cipher.present = epoch


def _mode(mode: int) -> inode.Changes:
    return inode.Changes(mode=mode)
