"""The attributes of a directory or inode, and requests to change them.

`Attributes` is stored as one map entry of the object's state. Every answer carries it, so that a
client knows the object's attributes after each operation.

The layout of a file says its block size, and the valid incarnation of each block. A data-item is
named by inode, incarnation and block number. Truncation gives all blocks from the cut on a fresh
incarnation, under which nothing was ever written. So it costs the same at any length, and the old
bytes can never come back. A layout lists ranges of blocks with their incarnations.

Invariants: `version` grows with every change of the object, and `contents` with every change of
a file's bytes (which blocks, how many); both are times of the updates that made them,
which strictly increase along an object's versions. Ranges start at block 0 and ascend; an
incarnation is greater than all that the file had before, so none is ever used again; there are at
most `limits.LAYOUT_RANGES` ranges.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.identifiers import (
    WHOLE,
    BlockId,
    ObjectId,
    block_id,
    block_number_of,
    incarnation_of,
)
from bftfs.query_update.object_type import Record
from bftfs.wire.codec import UserField

# Incarnations are drawn this far apart, so that two clients that truncate at the same time do not
# prepare the same one. No farther: one near the end of all numbers would be the file's last.
INCARNATION_GAP: Final = 1 << 32


class Layout(Record, frozen=True):
    """Block size of a file, and its (first block, incarnation) ranges."""

    block_bytes: int
    ranges: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def newest(self) -> int:
        """The greatest incarnation in use; the file never had a greater one."""
        return max(incarnation for _, incarnation in self.ranges)

    def incarnation(self, number: int) -> int:
        """The incarnation under which block `number` is valid."""
        ranges = self.ranges
        if len(ranges) == 1:
            return ranges[0][1]
        return ranges[bisect_right(ranges, number, key=lambda entry: entry[0]) - 1][1]

    def block(self, inode: ObjectId, number: int, slot: int = WHOLE) -> BlockId:
        """The data-item that holds block `number` of `inode`, or a patch of it."""
        incarnation = self.incarnation(number)
        return block_id(inode, incarnation=incarnation, number=number, slot=slot)

    def has(self, block: BlockId) -> bool:
        """True if the block is valid in this layout: no cut has given it a later incarnation."""
        return self.incarnation(block_number_of(block)) == incarnation_of(block)

    def cut(self, first: int, incarnation: int) -> Layout:
        """This layout with a fresh incarnation for all blocks from `first` on."""
        kept = tuple(entry for entry in self.ranges if entry[0] < first)
        return Layout(self.block_bytes, (*kept, (first, incarnation)))

    def merged(self, first: int, stop: int, incarnation: int) -> Layout:
        """This layout with one incarnation for the ranges from block `first` up to `stop`.

        Requires: ranges begin at `first` and, unless it lies beyond the last, at `stop`.
        """
        before = tuple(entry for entry in self.ranges if entry[0] < first)
        after = tuple(entry for entry in self.ranges if entry[0] >= stop)
        return Layout(self.block_bytes, (*before, (first, incarnation), *after))

    def has_room_to_cut(self, first: int) -> bool:
        """True if `cut` at that block keeps the bound on ranges; else merge some first."""
        return sum(start < first for start, _ in self.ranges) < limits.LAYOUT_RANGES

    def cheapest_merge(self, size: int) -> tuple[int, int]:
        """`first` and `stop` of the two neighbouring ranges with the fewest blocks of `size` bytes.

        Requires: at least two ranges.
        """
        starts = [first for first, _ in self.ranges]
        end = max(-(-size // self.block_bytes), starts[-1] + 1)
        bounds = [*starts, end]
        cheapest = min(range(len(starts) - 1), key=lambda at: bounds[at + 2] - bounds[at])
        return bounds[cheapest], bounds[cheapest + 2]


class Span(NamedTuple):
    """A part of a block: [start, stop) within it."""

    number: int
    start: int
    stop: int


def spans(offset: int, length: int, block_bytes: int) -> Iterator[Span]:
    """The parts of blocks that make up `length` bytes from `offset` on, in order."""
    end = offset + length
    while offset < end:
        number, start = divmod(offset, block_bytes)
        stop = min(block_bytes, start + end - offset)
        yield Span(number, start, stop)
        offset += stop - start


PERMISSION_BITS: Final = 0o7777
NOW: Final = -1  # a time to set: stands for that of the operation

ACCESS_ACL: Final = 1  # flag: the object has an access ACL beyond its permission bits
DEFAULT_ACL: Final = 2  # flag: the directory has a default ACL

# Nanoseconds since the epoch, from 1901 to 2242; NOW is taken out of the range.
SetTimeField: TypeAlias = Annotated[int, Meta(ge=-(1 << 61), le=(1 << 63) - 1)]
ModeField: TypeAlias = Annotated[int, Meta(ge=0, le=0o177777)]


class Attributes(Record, frozen=True):
    """The attributes of a directory or inode. Times are in nanoseconds since the epoch."""

    mode: int  # file type and permission bits
    uid: int
    gid: int
    links: int  # names of an inode; 2 + subdirectories of a directory; 0 once removed
    size: int  # bytes of a regular file or symlink
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    previous: int = 0  # the version before, on which the change of `version` was made
    contents: int = 0
    flags: int = 0
    device: int = 0
    extended: int = 0  # extended attributes, their number and bytes
    extended_bytes: int = 0
    parent: ObjectId = ObjectId(b"")  # of a directory
    entries: int = 0  # of a directory: the number of names in it
    next_serial: int = 0  # of a directory: the serial of its next entry
    layout: Layout | None = None  # of a regular file
    # The version of the contents up to which blocks without a name are part of a file. 0 in all
    # files that programs make which name blocks; None: in an older file that was not changed since.
    unnamed: int | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def unnamed_until_us(self) -> int:
        """The time as of which a block without a name is read; 0: it was never written."""
        return self.contents if self.unnamed is None else self.unnamed

    @property
    def file_type(self) -> int:
        """As in a directory entry: DT_REG, DT_DIR …"""
        return self.mode >> 12


class Changes(Record, frozen=True):
    """A request of chmod, chown or utimens; None leaves a field as it is."""

    mode: ModeField | None = None  # permission bits; the type is ignored
    uid: UserField | None = None
    gid: UserField | None = None
    atime_ns: SetTimeField | None = None
    mtime_ns: SetTimeField | None = None

    def __bool__(self) -> bool:
        return self != NO_CHANGES


NO_CHANGES: Final = Changes()

encode_attributes = msgspec.msgpack.Encoder().encode
decode_attributes = msgspec.msgpack.Decoder(Attributes).decode


def inode_number(identifier: ObjectId) -> int:
    """A positive 63-bit number for `st_ino`; the mount resolves collisions."""
    return int.from_bytes(identifier[8:16], "big") >> 1 or 1
