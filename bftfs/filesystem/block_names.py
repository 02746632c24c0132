"""Which version of each block belongs to a file: its inode names it.

A block's version is part of the file because an update of the inode has named it, and for no other
reason: neither its time, nor how many nodes host it, nor who has completed it since. The update is
checked by every node against the file's permissions, and totally ordered with all others of the
inode. So what a writer has left at some nodes and not covered shows to nobody, whoever finishes it
and whenever. (docs/decisions/0015-named-blocks.md)

Map keys of an inode's state: b"b" + block number -> incarnation and timestamp of its version. A
name of another incarnation than the layout's has been cut off, and means nothing.

Of two versions of one incarnation the later stays named, in whichever order they were covered. The
writer of the other one is told, and writes again what its programs wrote.

Programs before this one named no blocks. What they have written is read as of the time of the last
update that they made of the inode (`Attributes.unnamed`), until it is written again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.attributes import Layout
from bftfs.query_update.object_type import (
    Caller,
    MutableState,
    Record,
    Refusal,
    State,
    serial_from,
    serial_key,
)
from bftfs.read_write.timestamp import TIMESTAMP_BYTES, BlockTimestamp, encoded, from_encoded
from bftfs.wire.codec import DigestField, TimeField

_NAME: Final = b"b"
_INCARNATION_BYTES: Final = 8
PAGE: Final = 128  # blocks whose names a mount asks for at once

NumberField: TypeAlias = Annotated[int, Meta(ge=0, lt=limits.FILE_BYTES)]


class CoveredBlock(Record, frozen=True):
    """A version of a block that the operation's client has written: it becomes part of the file."""

    number: NumberField
    time_us: TimeField
    verifier: DigestField


CoveredField: TypeAlias = Annotated[
    tuple[CoveredBlock, ...], Meta(max_length=limits.BLOCKS_PER_COVER)
]


class BlockName(NamedTuple):
    """The version of a block that is part of the file, and the incarnation that it belongs to."""

    incarnation: int
    timestamp: BlockTimestamp


def covered(number: int, timestamp: BlockTimestamp) -> CoveredBlock:
    """The version at `timestamp`, for an operation of its author."""
    return CoveredBlock(number, timestamp.time, timestamp.verifier)


def key_of_block(number: int) -> bytes:
    """The key of a block's name in the inode's state."""
    return _NAME + serial_key(number)


def name_at(state: State, number: int) -> BlockName | None:
    """The name of a block, if it was ever written and covered."""
    stored = state.get(key_of_block(number))
    return None if stored is None else decode_name(stored)


def decode_name(stored: bytes) -> BlockName:
    """A name as it is stored."""
    incarnation = int.from_bytes(stored[:_INCARNATION_BYTES], "big")
    return BlockName(incarnation, from_encoded(bytes(stored[_INCARNATION_BYTES:])))


def name_blocks(
    state: MutableState, layout: Layout, blocks: Iterable[CoveredBlock], caller: Caller
) -> tuple[int, ...]:
    """Make these versions, which the caller's client has written, part of the file.

    Returns the blocks of which a later version is named. Refuses a version that is later than the
    operation: a file as of a time is made of blocks that were there by then. And one that is much
    older: nodes may have collected it, if others have written to the block since.
    """
    behind = []
    for block in blocks:
        if block.time_us > caller.time_us:
            raise Refusal(errno.EINVAL)
        if block.time_us + limits.COVERED_WITHIN_US < caller.time_us:
            raise Refusal(errno.EAGAIN)
        incarnation = layout.incarnation(block.number)
        timestamp = BlockTimestamp(block.time_us, caller.client, block.verifier)
        before = name_at(state, block.number)
        if before is None or before < (incarnation, timestamp):
            stored = incarnation.to_bytes(_INCARNATION_BYTES, "big") + encoded(timestamp)
            state.put(key_of_block(block.number), stored)
        elif before != (incarnation, timestamp):
            behind.append(block.number)
    return tuple(behind)


def names_in(state: State, first: int, stop: int) -> tuple[tuple[int, bytes], ...]:
    """The stored names of the blocks in [first, stop), by number."""
    skip = len(_NAME)
    return tuple(
        (serial_from(key[skip:]), bytes(stored))
        for key, stored in state.scan(key_of_block(first), key_of_block(stop))
    )


assert TIMESTAMP_BYTES + _INCARNATION_BYTES == 64
