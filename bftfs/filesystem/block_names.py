"""Which version of each block belongs to a file: its inode names it.

A block's version is part of the file because an update of the inode has named it, and for no other
reason: neither its time, nor how many nodes host it, nor who has completed it since. The update is
checked by every node against the file's permissions, and totally ordered with all others of the
inode. So what a writer has left at some nodes and not covered shows to nobody, whoever finishes it
and whenever. (docs/decisions/0015-named-blocks.md)

Map keys of an inode's state: b"b" + block number -> incarnation and timestamp of its version, and
perhaps how many of its bytes count. A name of another incarnation than the layout's has been cut
off, and means nothing.

Of two versions of one incarnation the later stays named, in whichever order they were covered. The
writer of the other one is told, and writes again what its programs wrote.

What lies beyond a file's end never shows, however the file grows later: nothing there can be named,
and if a file grows past its last block without that block being named anew, the block's name says
how many of its bytes belonged to the file. Nodes do not see what a client has left behind them.

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

# The errno of an update that was prepared on what others' updates have replaced since: its client
# looks at what is there now, prepares it again on that, and repeats it.
OVERTAKEN: Final = errno.EBUSY

_NAME: Final = b"b"
_INCARNATION_BYTES: Final = 8
_NAME_BYTES: Final = _INCARNATION_BYTES + TIMESTAMP_BYTES
PAGE: Final = 128  # blocks whose names a mount asks for at once

_VALID_BYTES: Final = 4

NumberField: TypeAlias = Annotated[int, Meta(ge=0, lt=limits.FILE_BYTES // limits.BLOCK_BYTES_MIN)]


# A base is there for writers that mean well: who may write the block, and has bytes of his own that
# begin alike, gains nothing by it that he could not have by overwriting the block.
BASE_BYTES: Final = 8
BaseField: TypeAlias = Annotated[bytes, Meta(max_length=BASE_BYTES)]
NO_VERSION: Final = b""  # the base of what was merged on a block that has no version yet


class CoveredBlock(Record, frozen=True):
    """A version of a block that the operation's client has written: it becomes part of the file.

    `base` is the version whose bytes it has beside those that programs wrote: the beginning of its
    verifier, or NO_VERSION. None: programs wrote all of a whole block, or nodes are not to look (as
    before there were bases).
    """

    number: NumberField
    time_us: TimeField
    verifier: DigestField
    base: BaseField | None = None


CoveredField: TypeAlias = Annotated[
    tuple[CoveredBlock, ...], Meta(max_length=limits.BLOCKS_PER_COVER)
]


class BlockName(NamedTuple):
    """The version of a block that is part of the file, and the incarnation that it belongs to."""

    incarnation: int
    timestamp: BlockTimestamp
    valid: int | None = None  # so many of its bytes count: the file grew past it; None: all

    @property
    def encoded(self) -> bytes:
        """The name as it is stored."""
        stored = self.incarnation.to_bytes(_INCARNATION_BYTES, "big") + encoded(self.timestamp)
        return stored if self.valid is None else stored + self.valid.to_bytes(_VALID_BYTES, "big")

    def names(self, incarnation: int, timestamp: BlockTimestamp) -> bool:
        """True if this is the version that it names."""
        return self.incarnation == incarnation and self.timestamp == timestamp

    def within(self, valid: int) -> BlockName:
        """The name after the file has grown, when it had `valid` bytes of the block."""
        return self._replace(valid=valid if self.valid is None else min(self.valid, valid))


def covered(number: int, timestamp: BlockTimestamp, base: bytes | None = None) -> CoveredBlock:
    """The version at `timestamp`, for an operation of its author."""
    return CoveredBlock(number, timestamp.time, timestamp.verifier, base)


def base_of(name: BlockName | None) -> bytes:
    """What a version that was merged on the named one gives as its base.

    A verifier stands for every byte: where another version has the same one, what was merged on the
    one was merged on the other.
    """
    return NO_VERSION if name is None else name.timestamp.verifier[:BASE_BYTES]


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
    timestamp = from_encoded(bytes(stored[_INCARNATION_BYTES:_NAME_BYTES]))
    valid = stored[_NAME_BYTES:]
    return BlockName(incarnation, timestamp, int.from_bytes(valid, "big") if valid else None)


def name_blocks(
    state: MutableState,
    layout: Layout,
    blocks: Iterable[CoveredBlock],
    caller: Caller,
    *,
    size: int,
) -> tuple[int, ...]:
    """Make these versions, which the caller's client has written, part of a file of this size.

    Returns the blocks of which a later version is named. Refuses a version that is later than the
    operation: a file as of a time is made of blocks that were there by then. And one that is much
    older: so nodes know what can be named no more, and collect it if others have written to the
    block since. And one beyond the end: it would show when somebody else lets the file grow.
    `OVERTAKEN` for one that was merged on another version than the named one: what others have
    written since would be lost.
    """
    behind = []
    for block in blocks:
        if block.number * layout.block_bytes >= size:
            raise Refusal(errno.EINVAL)
        if block.time_us > caller.time_us:
            raise Refusal(errno.EINVAL)
        if block.time_us + limits.COVERED_WITHIN_US < caller.time_us:
            raise Refusal(errno.EAGAIN)
        incarnation = layout.incarnation(block.number)
        timestamp = BlockTimestamp(block.time_us, caller.client, block.verifier)
        before = name_at(state, block.number)
        if not is_merged_on_latest(block, before, incarnation, timestamp):
            raise Refusal(OVERTAKEN)
        if before is None or before[:2] < (incarnation, timestamp):
            state.put(key_of_block(block.number), BlockName(incarnation, timestamp).encoded)
        elif not before.names(incarnation, timestamp):
            behind.append(block.number)
    return tuple(behind)


def is_merged_on_latest(
    block: CoveredBlock, before: BlockName | None, incarnation: int, timestamp: BlockTimestamp
) -> bool:
    """False if the version holds bytes of another version of the block than the named one."""
    if before is not None and before.incarnation != incarnation:
        before = None  # it was cut off
    if block.base is None or (before is not None and before.names(incarnation, timestamp)):
        return True
    return block.base == base_of(before)


def grow(
    state: MutableState,
    layout: Layout,
    size: int,
    blocks: Iterable[CoveredBlock],
    behind: Iterable[int] = (),
) -> None:
    """The file, of `size` bytes until now, has grown by an update that has named `blocks`.

    Unless its last block was named anew, and is not `behind`, no more of that counts than until
    now: whoever has written it may have left something behind the end.
    """
    number, valid = divmod(size, layout.block_bytes)
    is_new = number not in behind and any(block.number == number for block in blocks)
    name = None if is_new or not valid else name_at(state, number)
    if name is not None and name.within(valid) != name:
        state.put(key_of_block(number), name.within(valid).encoded)


def names_in(state: State, first: int, stop: int) -> tuple[tuple[int, bytes], ...]:
    """The stored names of the blocks in [first, stop), by number."""
    skip = len(_NAME)
    return tuple(
        (serial_from(key[skip:]), bytes(stored))
        for key, stored in state.scan(key_of_block(first), key_of_block(stop))
    )


assert _NAME_BYTES == 64
