"""Clean blocks in memory, least recently used dropped first, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from bftfs.filesystem.dirty import Buffer
from bftfs.identifiers import ObjectId

_ENTRY_OVERHEAD_BYTES: Final = 256


class BlockCache:
    """Plaintext by (inode, block number). Whose block is still valid is its user's business."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._blocks: OrderedDict[tuple[ObjectId, int], Buffer] = OrderedDict()
        self._numbers: dict[ObjectId, set[int]] = {}

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
        self.drop(inode, number)
        self._blocks[inode, number] = block
        self._numbers.setdefault(inode, set()).add(number)
        self._bytes += len(block) + _ENTRY_OVERHEAD_BYTES
        while self._bytes > self._capacity_bytes:
            self.drop(*next(iter(self._blocks)))

    def drop(self, inode: ObjectId, number: int) -> None:
        """Forget one block."""
        block = self._blocks.pop((inode, number), None)
        if block is not None:
            self._bytes -= len(block) + _ENTRY_OVERHEAD_BYTES
            numbers = self._numbers[inode]
            numbers.discard(number)
            if not numbers:
                del self._numbers[inode]

    def drop_from(self, inode: ObjectId, first: int) -> None:
        """Forget the inode's blocks from `first` on."""
        for number in sorted(self._numbers.get(inode, ())):
            if number >= first:
                self.drop(inode, number)
