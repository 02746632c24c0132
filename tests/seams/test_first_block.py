"""The first block of a file is read while the file is opened: one round less, and nothing else.

Nodes answer the read with the latest version, whether an inode names it or not. What programs are
shown is the version that the inode names when it answers the open.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest

from bftfs.errors import FileSystemError
from bftfs.filesystem import block_reading
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.identifiers import ObjectId
from tests.seams.world import BLOCK_BYTES, STRANGER, STRANGERS_GRANT, World, now

DELAY_US = 25_000  # one way
ROUND_US = 2 * DELAY_US
HERE_US = 5_000  # what nodes and clients need for a round themselves, at most

OLD, NEW = b"o" * BLOCK_BYTES, b"n" * BLOCK_BYTES


class Place(NamedTuple):
    """A world with a file, a mount that writes it, and one that has looked it up."""

    world: World
    writer: Any
    reader: Any
    identifier: ObjectId
    writing: FileSystem
    reading: FileSystem


@pytest.fixture
def place() -> Place:
    world = World(delay_us=(DELAY_US, DELAY_US))
    writer, reader = world.user("writer"), world.user("reader")
    writer.format()
    identifier = writer.make("file", OLD.decode())
    mounts = [each.filesystem(Options(access_times=False)) for each in (writer, reader)]
    for user, files in zip((writer, reader), mounts, strict=True):
        user.run(files.attributes(identifier, user.who))
    return Place(world, writer, reader, identifier, *mounts)


async def shown(files: FileSystem, identifier: ObjectId, who: Any) -> tuple[bytes, int]:
    """A file's first block, as a program reads it that opens the file; and how long that takes."""
    begun_us = await now()
    file = await files.open(identifier, os.O_RDONLY, who)
    found = bytes(await files.read(file, 0, BLOCK_BYTES))
    took_us = await now() - begun_us
    await files.release(file)
    return found, took_us


def seen(place: Place) -> tuple[bytes, int]:
    who = place.reader.who
    found: tuple[bytes, int] = place.reader.run(shown(place.reading, place.identifier, who))
    return found


def write(place: Place, *, is_covered: bool) -> None:
    """Another mount writes the block: its version is the latest that nodes have."""

    async def written() -> None:
        files = place.writing
        file = await files.open(place.identifier, os.O_RDWR, place.writer.who)
        files.write(file, 0, NEW, now_ns=await now() * 1_000)
        if is_covered:
            await files.release(file)
        else:
            await files._contents._writer.push(file.contents, (0,))

    place.writer.run(written())
    place.world.run_for(4 * ROUND_US)


def test_a_file_is_opened_and_read_in_one_round(place: Place) -> None:
    found, took_us = seen(place)
    assert found == OLD
    assert took_us <= ROUND_US + HERE_US


def test_what_was_closed_before_the_open_is_shown(place: Place) -> None:
    write(place, is_covered=True)
    assert seen(place)[0] == NEW


def test_what_no_update_has_named_is_not_shown(place: Place) -> None:
    write(place, is_covered=False)
    assert seen(place)[0] == OLD


def test_must_fail_names_are_not_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, is_covered=False)
    monkeypatch.setattr(block_reading, "_name_of", lambda contents, *_: contents.name(0))
    assert seen(place)[0] == NEW


def test_a_file_that_cannot_be_opened_leaves_nothing_behind(place: Place) -> None:
    stranger = place.world.user("stranger", STRANGER, grant=STRANGERS_GRANT)
    files = stranger.filesystem(Options(access_times=False))
    stranger.run(files.attributes(place.identifier, STRANGER))
    with pytest.raises(FileSystemError, match="EACCES"):
        stranger.run(files.open(place.identifier, os.O_RDONLY, STRANGER))
    place.world.run_for(4 * ROUND_US)
    cache = files._contents._cache
    assert cache.load(place.identifier, 0) is None
    assert cache.get(place.identifier, 0) is None
    place.writer.chmod(place.identifier, 0o644)
    found, _ = stranger.run(shown(files, place.identifier, STRANGER))
    assert found == OLD
