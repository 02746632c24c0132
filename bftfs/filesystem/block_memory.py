"""Blocks of files in memory: bytes to be written, clean blocks, and blocks on their way there.

Nothing here performs an effect: `block_reading` and `block_writing` perform them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from bftfs.conversation import Event
from bftfs.identifiers import ObjectId

Buffer: TypeAlias = bytes | bytearray | memoryview
Extent: TypeAlias = tuple[int, int]  # [start, stop) within a block

PIECE_OVERHEAD_BYTES: Final = 160  # the cost of a piece beside its bytes
_PIECES = 64  # neighbours are joined beyond that


class DirtyBlock:
    """Disjoint pieces of one block, in order; not copied until the block is assembled."""

    __slots__ = ("_join_at", "_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Buffer] = []
        self._join_at = _PIECES

    @property
    def stop(self) -> int:
        """Where the last piece ends."""
        return self._starts[-1] + len(self._pieces[-1]) if self._starts else 0

    @property
    def cost(self) -> int:
        """The memory that the pieces take."""
        return sum(map(len, self._pieces)) + PIECE_OVERHEAD_BYTES * len(self._pieces)

    def write(self, start: int, data: Buffer) -> int:
        """Put `data` at `start`, over older pieces. Gives the growth of `cost`."""
        stop = start + len(data)
        starts, pieces = self._starts, self._pieces
        if not starts or start >= starts[-1] + len(pieces[-1]):
            starts.append(start)
            pieces.append(data)
            grown = len(data) + PIECE_OVERHEAD_BYTES
        else:
            before = self.cost
            self._splice(start, stop, data)
            grown = self.cost - before
        if len(pieces) > self._join_at:
            before = self.cost
            self._join()
            grown += self.cost - before
        return grown

    def add(self, newer: DirtyBlock, *, stop: int | None = None) -> None:
        """Put the bytes of another one over these; those before `stop`, if it is given."""
        for start, data in zip(newer._starts, newer._pieces, strict=True):
            piece = data if stop is None else data[: max(0, stop - start)]
            if len(piece):
                self.write(start, piece)

    def _splice(self, start: int, stop: int, data: Buffer) -> None:
        starts, pieces = self._starts, self._pieces
        first = bisect_left(starts, start)
        if first and starts[first - 1] + len(pieces[first - 1]) > start:
            first -= 1
        last = bisect_left(starts, stop)  # pieces in [first, last) overlap [start, stop)
        new_starts, new_pieces = [start], [data]
        if first < last:
            head_start, head = starts[first], pieces[first]
            if head_start < start:
                new_starts.insert(0, head_start)
                new_pieces.insert(0, memoryview(head)[: start - head_start])
            tail_start, tail = starts[last - 1], pieces[last - 1]
            if tail_start + len(tail) > stop:
                new_starts.append(stop)
                new_pieces.append(memoryview(tail)[stop - tail_start :])
        starts[first:last] = new_starts
        pieces[first:last] = new_pieces

    def _join(self) -> None:
        """Make one piece of each run of neighbours."""
        joined = [(start, b"".join(self._pieces_in(start, stop))) for start, stop in self.extents()]
        self._starts = [start for start, _ in joined]
        self._pieces = [data for _, data in joined]
        self._join_at = max(_PIECES, 2 * len(joined))

    def _pieces_in(self, start: int, stop: int) -> list[Buffer]:
        return self._pieces[bisect_left(self._starts, start) : bisect_left(self._starts, stop)]

    def extents(self) -> tuple[Extent, ...]:
        """The ranges of bytes that were written."""
        return united(
            (start, start + len(piece))
            for start, piece in zip(self._starts, self._pieces, strict=True)
        )

    def covers(self, start: int, stop: int) -> bool:
        """True if every byte of [start, stop) was written."""
        return start >= stop or any(
            first <= start and stop <= last for first, last in self.extents()
        )

    @property
    def start(self) -> int:
        """Where the first piece begins."""
        return self._starts[0]

    def remove(self, start: int, stop: int) -> int:
        """Forget bytes [start, stop). Gives the growth of `cost`, which may be either way."""
        before = self.cost
        starts, pieces = self._starts, self._pieces
        self._starts, self._pieces = [], []
        for at, piece in zip(starts, pieces, strict=True):
            end = at + len(piece)
            for first, last in ((at, min(end, start)), (max(at, stop), end)):
                if first < last:
                    self._starts.append(first)
                    self._pieces.append(part(piece, first - at, last - at))
        return self.cost - before

    def split(self, stop: int) -> DirtyBlock:
        """Take out the bytes from `stop` on, and give them as a block of their own."""
        later = DirtyBlock()
        for at, piece in zip(self._starts, self._pieces, strict=True):
            first, last = max(at, stop), at + len(piece)
            if first < last:
                later.write(first, part(piece, first - at, last - at))
        self.cut(stop)
        return later

    def cut(self, stop: int) -> int:
        """Forget bytes from `stop` on. Gives the growth of `cost`, which is not positive."""
        before = self.cost
        keep = bisect_left(self._starts, stop)
        del self._starts[keep:], self._pieces[keep:]
        if self.stop > stop:
            self._pieces[-1] = memoryview(self._pieces[-1])[: stop - self._starts[-1]]
        return self.cost - before

    def over(self, base: Buffer) -> Buffer:
        """The block: the pieces over `base`, as long as the longer of the two."""
        length = max(self.stop, len(base))
        if self.covers(0, length):
            return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        block = bytearray(length)
        block[: len(base)] = base
        for start, piece in zip(self._starts, self._pieces, strict=True):
            block[start : start + len(piece)] = piece
        return block

    def read(self, base: Buffer, start: int, stop: int) -> Buffer:
        """Bytes [start, stop) of the block over `base`; zeros where nothing was ever written."""
        if len(self._pieces) == 1 and self._starts[0] <= start and stop <= self.stop:
            return memoryview(self._pieces[0])[start - self._starts[0] : stop - self._starts[0]]
        result = bytearray(stop - start)
        fill(result, 0, base, start, stop)
        first = max(0, bisect_left(self._starts, start) - 1)
        for position in range(first, bisect_left(self._starts, stop)):
            fill(result, self._starts[position], self._pieces[position], start, stop)
        return result


def united(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """The extents that some of these cover, with neighbours joined."""
    result: list[Extent] = []
    for start, stop in sorted(extents):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], stop))
        else:
            result.append((start, stop))
    return tuple(result)


def without(extents: Iterable[Extent], others: Iterable[Extent]) -> tuple[Extent, ...]:
    """The bytes of `extents` that are in none of `others`."""
    left = list(extents)
    for start, stop in others:
        left = [
            piece
            for first, last in left
            for piece in ((first, min(last, start)), (max(first, stop), last))
            if piece[0] < piece[1]
        ]
    return tuple(left)


def fill(target: bytearray, at: int, data: Buffer, start: int, stop: int) -> None:
    """Copy into `target`, which stands for [start, stop), the part that `data` at `at` covers."""
    begin = max(at, start)
    end = min(at + len(data), stop)
    if begin < end:
        target[begin - start : end - start] = memoryview(data)[begin - at : end - at]


def part(block: Buffer, start: int, stop: int) -> Buffer:
    """Bytes [start, stop) of a block, with zeros beyond its end; a view where that is enough."""
    if stop <= len(block):
        return block if start == 0 and stop == len(block) else memoryview(block)[start:stop]
    return bytes(memoryview(block)[start:]) + bytes(stop - max(start, len(block)))


_ENTRY_OVERHEAD_BYTES: Final = 256


@dataclass(slots=True, eq=False)
class Load:
    """A block that is being read from the nodes, once for all its readers."""

    done: Event
    block: Buffer | None = None  # once it is READ
    drops: int = 0  # how often the cache had dropped blocks when this one was read
    is_outdated: bool = False


class BlockCache:
    """Clean blocks in memory, least recently used dropped first, and those on their way into it.

    Plaintext by (inode, block number), bounded in bytes.

    A load has one of three states:

        READING ──finish──► READ: cached, and given to those who wait for it
           │
           └──drop──► OUTDATED: thrown away; those who wait for it read again

    `drop` and `drop_from` are called when a block is written, cut, or changed by another mount.
    They remove it from the cache and make a load of it OUTDATED, so that a slow answer from the
    nodes never brings back what the block was before.

    A reader that waits for a load may resume some time after the end of the load. If a block was
    dropped in between, `result` gives None, and the reader tries again.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._blocks: OrderedDict[tuple[ObjectId, int], Buffer] = OrderedDict()
        self._numbers: dict[ObjectId, set[int]] = {}
        self._loads: dict[tuple[ObjectId, int], Load] = {}
        self._drops = 0

    def get(self, inode: ObjectId, number: int) -> Buffer | None:
        """The block, if it is there."""
        block = self._blocks.get((inode, number))
        if block is not None:
            self._blocks.move_to_end((inode, number))
        return block

    def put(self, inode: ObjectId, number: int, block: Buffer) -> None:
        """Keep the block, in place of others."""
        if not self._capacity_bytes:
            return
        self._remove(inode, number)
        self._blocks[inode, number] = block
        self._numbers.setdefault(inode, set()).add(number)
        self._bytes += len(block) + _ENTRY_OVERHEAD_BYTES
        while self._bytes > self._capacity_bytes:
            self._remove(*next(iter(self._blocks)))

    def _remove(self, inode: ObjectId, number: int) -> None:
        block = self._blocks.pop((inode, number), None)
        if block is not None:
            self._bytes -= len(block) + _ENTRY_OVERHEAD_BYTES
            numbers = self._numbers[inode]
            numbers.discard(number)
            if not numbers:
                del self._numbers[inode]

    def drop(self, inode: ObjectId, number: int) -> None:
        """Forget a block, since it has changed."""
        self._drops += 1
        self._remove(inode, number)
        load = self._loads.get((inode, number))
        if load is not None:
            load.is_outdated = True

    def drop_from(self, inode: ObjectId, first: int) -> None:
        """Forget the inode's blocks from `first` on, since they have changed."""
        self._drops += 1
        for number in sorted(self._numbers.get(inode, ())):
            if number >= first:
                self._remove(inode, number)
        for (file, number), load in self._loads.items():
            if file == inode and number >= first:
                load.is_outdated = True

    # --- loads -------------------------------------------------------------------------------

    def load(self, inode: ObjectId, number: int) -> Load | None:
        """The load of the block that is in progress, if one is."""
        return self._loads.get((inode, number))

    def begin(self, inode: ObjectId, number: int) -> Load:
        """A new load of a block of which none is in progress; `finish` ends it."""
        load = self._loads[inode, number] = Load(Event())
        return load

    def finish(self, inode: ObjectId, number: int, load: Load, block: Buffer | None) -> None:
        """The end of a load; without a `block`, those who wait for it read again."""
        del self._loads[inode, number]
        if block is not None and not load.is_outdated:
            load.block, load.drops = block, self._drops
            self.put(inode, number, block)
        load.done.announce()

    def result(self, load: Load) -> Buffer | None:
        """The block that was read; None if it may have changed since."""
        return load.block if load.drops == self._drops else None
