"""Clean blocks in memory, and those on their way into it.

A load has one of three states:

    READING ──finish──► READ: cached, and given to those who wait for it
       │
       └──drop──► OUTDATED: thrown away; those who wait for it read again

`drop` and `drop_from` are called when a block is written, cut, or changed by another mount. They
remove it from the cache and make a load of it OUTDATED, so that a slow answer from the nodes never
brings back what the block was before.

A reader that waits for a load may resume some time after the end of the load. If a block was
dropped in between, `result` gives None, and the reader tries again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from bftfs.conversation import Event
from bftfs.filesystem.dirty import Buffer
from bftfs.identifiers import ObjectId

_ENTRY_OVERHEAD_BYTES: Final = 256


@dataclass(slots=True, eq=False)
class Load:
    """A block that is being read from the nodes, once for all its readers."""

    done: Event
    block: Buffer | None = None  # once it is READ
    drops: int = 0  # how often the cache had dropped blocks when this one was read
    is_outdated: bool = False


class BlockCache:
    """Plaintext by (inode, block number), least recently used dropped first, bounded in bytes."""

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
