"""Blocks that one side wrote, and the other's update of the inode, or none, brought to light.

What a client has written to a file's blocks is seen when an update of the inode covers it, and
that may be anybody's next one: a program of an intruder's own need send none. So a version of a
file is not all the work of whose update made it. Where a block of the client's is shown by
another's update, or one of another's by the client's, that is a stray: it counts for its author.

A block that no update covers yet waits for the next one; the client's are strays, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final

from bftfs.conversation import Together
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import Change
from bftfs.identifiers import BlockId, ClientId, ObjectId, block_number_of, inode_of
from bftfs.read_write.authorship import Authored
from bftfs.restoration.sight import Sight

_TOGETHER: Final = 32  # blocks that are looked at at the same time


@dataclass(frozen=True, slots=True)
class Stray:
    """A version of a block. `after_us` is when the one that had been seen before was."""

    block: BlockId
    time_us: int
    is_own: bool  # by the client in question
    shown_by: Change | None  # the update that covered it
    after_us: int


async def strays_among(
    sight: Sight,
    written: Sequence[Authored],
    changes: dict[ObjectId, list[Change]],
    *,
    client: ClientId,
    since_us: int,
) -> dict[ObjectId, list[Stray]]:
    """The strays among all versions of blocks of some files since then. `changes` are ascending."""
    blocks = [
        (block, sorted({(each.time_us, each.author == client) for each in versions}))
        for block, versions in groupby(sorted(written, key=_place), key=attrgetter("block"))
    ]
    present: dict[ObjectId, Attributes | None] = {}
    for identifier in dict.fromkeys(inode_of(block) for block, _ in blocks):
        try:
            present[identifier] = await sight.files.attributes(identifier, sight.who)
        except FileSystemError:
            present[identifier] = None  # it is gone
    found: dict[ObjectId, list[Stray]] = defaultdict(list)
    for position in range(0, len(blocks), _TOGETHER):
        searches = tuple(
            partial(
                _strays_of_block,
                sight,
                block,
                versions,
                changes.get(inode_of(block), []),
                present[inode_of(block)],
                client,
                since_us,
            )
            for block, versions in blocks[position : position + _TOGETHER]
        )
        for strays in await Together(searches):
            for stray in strays:
                found[inode_of(stray.block)].append(stray)
    return dict(found)


def _place(written: Authored) -> tuple[BlockId, int]:
    return written.block, written.time_us


async def _strays_of_block(
    sight: Sight,
    block: BlockId,
    versions: list[tuple[int, bool]],
    changes: list[Change],
    present: Attributes | None,
    client: ClientId,
    since_us: int,
) -> list[Stray]:
    strays: list[Stray] = []
    shown_us = since_us - 1  # no version up to here comes to light any more
    for change in changes:
        after = change.attributes
        if after is None or after.contents != change.time_us or not _has(after, block):
            continue
        sides = {is_own for time_us, is_own in versions if shown_us < time_us <= change.time_us}
        if sides - {change.client == client}:
            stamp = await sight.history.block_stamp(block, change.time_us)
            is_own = stamp.client == client
            if stamp.time > shown_us and is_own != (change.client == client):
                strays.append(Stray(block, stamp.time, is_own, change, shown_us))
        shown_us = change.time_us
    if (
        present is not None
        and present.layout is not None
        and present.layout.has(block)
        and any(is_own and time_us > shown_us for time_us, is_own in versions)
    ):
        stamp = await sight.history.block_stamp(block, None)
        if stamp.time > shown_us and stamp.client == client:
            strays.append(Stray(block, stamp.time, True, None, shown_us))
    return strays


def _has(attributes: Attributes, block: BlockId) -> bool:
    """Whether a block is one of the file's."""
    layout = attributes.layout
    return (
        layout is not None
        and layout.has(block)
        and block_number_of(block) * layout.block_bytes < attributes.size
    )


async def without(
    sight: Sight, contents: bytes, strays: Sequence[Stray], client: ClientId, block_bytes: int
) -> bytes:
    """The contents with these blocks as they would be if only the other side had written."""
    patched = bytearray(contents)
    for stray in strays:
        start = block_number_of(stray.block) * block_bytes
        stop = min(start + block_bytes, len(patched))
        block = await _others(sight, stray, client)
        patched[start:stop] = block[: stop - start].ljust(stop - start, b"\0")
    return bytes(patched)


async def _others(sight: Sight, stray: Stray, client: ClientId) -> bytes:
    """What stood in the block before whoever wrote the stray wrote to it."""
    time_us = stray.time_us - 1
    while True:
        stamp, block = await sight.history.block_at(stray.block, time_us)
        if stamp.time <= stray.after_us or (stamp.client == client) != stray.is_own:
            return block
        time_us = stamp.time - 1
