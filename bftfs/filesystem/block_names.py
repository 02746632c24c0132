"""Which version of each block belongs to a file: its inode names it.

A block's version is part of the file because an update of the inode has named it, and for no other
reason: neither its time, nor how many nodes host it, nor who has completed it since. The update is
checked by every node against the file's permissions, and totally ordered with all others of the
inode. So what a writer has left at some nodes and not covered shows to nobody, whichever client
finishes it and whenever. (docs/decisions/0015-named-blocks.md)

Map keys of an inode's state: b"b" + block number -> incarnation and timestamp of its version, and
perhaps how many of its bytes count. A name of another incarnation than the layout's has been cut
off, and means nothing.

Of two versions of one incarnation the later stays named, in whichever order they were covered. The
writer of the other one is told, and writes again what its programs wrote.

A small write into a large block makes a patch instead of a version of the whole: a data-item of its
own with the bytes that programs wrote (`patches`), named beside the version that it lies on. A name
has few slots for patches; one that is named for a slot replaces the patch there, and a version of
the whole replaces all of them. Patches lie on the block in the order of their times, which is the
order in which they were named. (docs/decisions/0035-patches.md)

What lies beyond a file's end never shows, however the file grows later: nothing there can be named,
and if a file grows past its last block without that block being named anew, the block's name says
how many of its bytes belonged to the file. Nodes do not see what a client has left behind them.

Programs before this one named no blocks. What they have written is read as of the time of the last
update that they made of the inode (`Attributes.unnamed`), until it is written again.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator
from struct import Struct
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import patched_digest
from bftfs.filesystem.attributes import Layout
from bftfs.identifiers import WHOLE
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
_ALL_VALID: Final = (1 << 8 * _VALID_BYTES) - 1
_PATCH: Final = Struct(f"!B{TIMESTAMP_BYTES}sI")  # slot, timestamp, bytes that count

NumberField: TypeAlias = Annotated[int, Meta(ge=0, lt=limits.FILE_BYTES // limits.BLOCK_BYTES_MIN)]


# A base protects correct writers from each other. A client that makes two versions whose digests
# begin alike gains nothing by it: it could as well overwrite the block.
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


class CoveredPatch(Record, frozen=True):
    """A patch that the operation's client has written for this slot of a block's name.

    `base` is the version of the block that it lies on, as in `CoveredBlock`.
    """

    number: NumberField
    slot: Annotated[int, Meta(ge=1, le=limits.PATCHES)]
    time_us: TimeField
    verifier: DigestField
    base: BaseField


CoveredPatches: TypeAlias = Annotated[
    tuple[CoveredPatch, ...], Meta(max_length=limits.PATCHES_PER_COVER)
]


Part: TypeAlias = tuple[int, BlockTimestamp]  # of a block: slot, and version of what is there


class PatchName(NamedTuple):
    """A patch that is part of a block."""

    slot: int
    timestamp: BlockTimestamp
    valid: int | None = None  # so many bytes of the block count: the file grew past it; None: all


class BlockName(NamedTuple):
    """The version of a block that is part of the file, and the incarnation that it belongs to.

    Invariant: each of `patches` is later than the one before, and than the version of the whole.
    """

    incarnation: int
    timestamp: BlockTimestamp
    valid: int | None = None  # so many of its bytes count: the file grew past it; None: all
    patches: tuple[PatchName, ...] = ()

    @property
    def encoded(self) -> bytes:
        """The name as it is stored."""
        stored = self.incarnation.to_bytes(_INCARNATION_BYTES, "big") + encoded(self.timestamp)
        if self.valid is not None or self.patches:
            stored += _stored_valid(self.valid).to_bytes(_VALID_BYTES, "big")
        for patch in self.patches:
            valid = _stored_valid(patch.valid)
            stored += _PATCH.pack(patch.slot, encoded(patch.timestamp), valid)
        return stored

    @property
    def latest(self) -> Part:
        """The part that was named last: the last patch, or the whole block."""
        if self.patches:
            return self.patches[-1][:2]
        return WHOLE, self.timestamp

    def parts(self) -> Iterator[Part]:
        """The whole block's version, then its patches, in the order in which they were named."""
        yield WHOLE, self.timestamp
        for patch in self.patches:
            yield patch.slot, patch.timestamp

    def names(self, incarnation: int, timestamp: BlockTimestamp, slot: int = WHOLE) -> bool:
        """True if this version is part of what it names."""
        return self.incarnation == incarnation and (slot, timestamp) in self.parts()

    def patched(self, slot: int, timestamp: BlockTimestamp) -> BlockName:
        """The name with one more patch, the latest, in place of the one in that slot."""
        kept = tuple(patch for patch in self.patches if patch.slot != slot)
        return self._replace(patches=(*kept, PatchName(slot, timestamp)))

    def within(self, valid: int, but: Collection[int] = ()) -> BlockName:
        """The name after the file has grown, when it had `valid` bytes of the block.

        The patches in the slots `but` belong to the growth.
        """
        patches = tuple(
            patch if patch.slot in but else patch._replace(valid=_least(patch.valid, valid))
            for patch in self.patches
        )
        return self._replace(valid=_least(self.valid, valid), patches=patches)


def _stored_valid(valid: int | None) -> int:
    return _ALL_VALID if valid is None else valid


def _found_valid(stored: int) -> int | None:
    return None if stored == _ALL_VALID else stored


def _least(valid: int | None, other: int) -> int:
    return other if valid is None else min(valid, other)


def covered(number: int, timestamp: BlockTimestamp, base: bytes | None = None) -> CoveredBlock:
    """The version at `timestamp`, for an operation of its author."""
    return CoveredBlock(number, timestamp.time, timestamp.verifier, base)


def covered_patch(
    number: int, slot: int, timestamp: BlockTimestamp, base: bytes | None
) -> CoveredPatch:
    """The patch at `timestamp`, for an operation of its author."""
    assert base is not None, "a patch lies on a version"
    return CoveredPatch(number, slot, timestamp.time, timestamp.verifier, base)


def base_of(name: BlockName | None) -> bytes:
    """The base that a cover gives for a version, or a patch, that was made on the named version.

    A verifier stands for every byte: where another version has the same one, what was merged on the
    one was merged on the other. Of a block with patches, a digest of all verifiers, in their order.
    """
    if name is None:
        return NO_VERSION
    if not name.patches:
        return name.timestamp.verifier[:BASE_BYTES]
    return patched_digest(timestamp.verifier for _, timestamp in name.parts())[:BASE_BYTES]


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
    if len(stored) == _NAME_BYTES:
        return BlockName(incarnation, timestamp)
    patched = _NAME_BYTES + _VALID_BYTES
    valid = _found_valid(int.from_bytes(stored[_NAME_BYTES:patched], "big"))
    patches = tuple(
        PatchName(slot, from_encoded(patch), _found_valid(count))
        for slot, patch, count in _PATCH.iter_unpack(stored[patched:])
    )
    return BlockName(incarnation, timestamp, valid, patches)


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
        _require_in_file(block, layout, caller, size)
        incarnation = layout.incarnation(block.number)
        timestamp = BlockTimestamp(block.time_us, caller.client, block.verifier)
        before = name_at(state, block.number)
        if not is_merged_on_latest(block, before, incarnation, timestamp):
            raise Refusal(OVERTAKEN)
        if before is None or (before.incarnation, before.latest[1]) < (incarnation, timestamp):
            state.put(key_of_block(block.number), BlockName(incarnation, timestamp).encoded)
        elif not before.names(incarnation, timestamp):
            behind.append(block.number)
    return tuple(behind)


def _require_in_file(
    block: CoveredBlock | CoveredPatch, layout: Layout, caller: Caller, size: int
) -> None:
    if block.number * layout.block_bytes >= size or block.time_us > caller.time_us:
        raise Refusal(errno.EINVAL)
    if block.time_us + limits.COVERED_WITHIN_US < caller.time_us:
        raise Refusal(errno.EAGAIN)


def lay_patches(
    state: MutableState,
    layout: Layout,
    patches: Iterable[CoveredPatch],
    caller: Caller,
    *,
    size: int,
) -> tuple[int, ...]:
    """Make these patches, which the caller's client has written, part of a file of this size.

    Returns the blocks of which a later version is named. Refuses what `name_blocks` refuses.
    `OVERTAKEN` for a patch that was written for another version than the named one: it would take
    the slot of a patch that others have written since, or bytes from a block that was cut.
    """
    behind = []
    for patch in patches:
        _require_in_file(patch, layout, caller, size)
        timestamp = BlockTimestamp(patch.time_us, caller.client, patch.verifier)
        before = name_at(state, patch.number)
        incarnation = layout.incarnation(patch.number)
        if before is None or before.incarnation != incarnation:
            raise Refusal(OVERTAKEN)  # there is nothing to lie on
        if before.names(incarnation, timestamp, patch.slot):
            continue
        if not is_laid_on_latest(patch, before):
            raise Refusal(OVERTAKEN)
        if timestamp <= before.latest[1]:
            behind.append(patch.number)
        else:
            patched = before.patched(patch.slot, timestamp)
            state.put(key_of_block(patch.number), patched.encoded)
    return tuple(behind)


def is_laid_on_latest(patch: CoveredPatch, before: BlockName) -> bool:
    """False if the patch was written for another version of the block than the named one."""
    return patch.base == base_of(before)


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
    patches: Iterable[CoveredPatch] = (),
) -> None:
    """The file, of `size` bytes until now, has grown by an update that has named these.

    Unless its last block was named anew, and is not `behind`, no more of that counts than until
    now: its writer may have left something behind the end. The same holds for each of
    its patches.
    """
    number, valid = divmod(size, layout.block_bytes)
    is_new = number not in behind and any(block.number == number for block in blocks)
    name = None if is_new or not valid else name_at(state, number)
    if name is None:
        return
    new = {patch.slot for patch in patches if patch.number == number and number not in behind}
    limited = name.within(valid, new)
    if limited != name:
        state.put(key_of_block(number), limited.encoded)


def names_in(state: State, first: int, stop: int) -> tuple[tuple[int, bytes], ...]:
    """The stored names of the blocks in [first, stop), by number."""
    skip = len(_NAME)
    return tuple(
        (serial_from(key[skip:]), bytes(stored))
        for key, stored in state.scan(key_of_block(first), key_of_block(stop))
    )


assert _NAME_BYTES == 64
