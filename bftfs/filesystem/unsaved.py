"""Bytes that programs have written and no update of an inode covers yet: how many, of which files.

Bytes that are dirty, or on their way to the nodes, are counted here and nowhere else: writers wait
while there are too many (`ContentStore.write_behind`). `BlockPusher` takes dirty blocks out, and
puts back what it could not write.

Concurrency: nothing here performs an effect.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from bftfs.conversation import Event
from bftfs.filesystem.attributes import NO_CHANGES, spans
from bftfs.filesystem.block_memory import Buffer, DirtyBlock, Extent, part
from bftfs.filesystem.contents import Contents
from bftfs.identifiers import ObjectId


@dataclass(slots=True, eq=False)
class Unsaved:
    """The files with something unsaved, and how many bytes of them wait to be written."""

    files: OrderedDict[ObjectId, Contents] = field(default_factory=OrderedDict)  # as they became
    dirty_bytes: int = 0  # dirty, or on their way
    progress: Event = field(default_factory=Event)  # fewer bytes are dirty

    def take(self, contents: Contents, offset: int, data: bytes) -> None:
        """Make `data` dirty; it must not change afterwards, since it is not copied."""
        block_bytes = contents.layout.block_bytes
        number, start = divmod(offset, block_bytes)
        if start + len(data) <= block_bytes:
            self.dirty_bytes += self._dirty_block(contents, number).write(start, data)
        else:
            view = memoryview(data)
            for span in spans(offset, len(data), block_bytes):
                length = span.stop - span.start
                block = self._dirty_block(contents, span.number)
                self.dirty_bytes += block.write(span.start, view[:length])
                view = view[length:]
        self.files.setdefault(contents.identifier, contents)

    @staticmethod
    def _dirty_block(contents: Contents, number: int) -> DirtyBlock:
        block = contents.dirty.get(number)
        if block is None:
            block = contents.dirty[number] = DirtyBlock()
        return block

    def take_out(self, contents: Contents, number: int) -> DirtyBlock:
        """A dirty block, to be pushed; what is pushed another time remains."""
        dirty, stop = contents.dirty.pop(number), contents.stop_in(number)
        if dirty.stop > stop:
            before = dirty.cost
            later = contents.dirty[number] = dirty.split(stop)
            self.dirty_bytes += dirty.cost + later.cost - before
        return dirty

    def put_back(
        self,
        contents: Contents,
        number: int,
        block: Buffer | DirtyBlock,
        extents: tuple[Extent, ...],
    ) -> None:
        """Make extents of a block dirty again, beneath newer writes."""
        newer = contents.dirty.get(number)
        dirty = contents.dirty[number] = DirtyBlock()
        for start, stop in extents:
            if isinstance(block, DirtyBlock):
                piece = block.read(b"", start, stop)
            else:
                piece = part(block, start, stop)
            self.dirty_bytes += dirty.write(start, piece)
        if newer is not None:
            self.dirty_bytes -= newer.cost
            for start, stop in newer.extents():
                self.dirty_bytes += dirty.write(start, newer.read(b"", start, stop))

    def take_appended(self, contents: Contents) -> bytes:
        """Take out all bytes that were appended, in their order. Requires: they are dirty."""
        appended = bytearray()
        for start, stop in contents.appends:
            for span in spans(start, stop - start, contents.layout.block_bytes):
                appended += contents.dirty[span.number].read(b"", span.start, span.stop)
            self._remove(contents, (start, stop))
        return bytes(appended)

    def _remove(self, contents: Contents, extent: Extent) -> None:
        """Forget the dirty bytes in an extent of the file."""
        start, stop = extent
        for span in spans(start, stop - start, contents.layout.block_bytes):
            dirty = contents.dirty.get(span.number)
            if dirty is not None:
                self.dirty_bytes += dirty.remove(span.start, span.stop)
                if not dirty.stop:
                    del contents.dirty[span.number]

    def lose(self, contents: Contents, number: int) -> list[int]:
        """Forget an uncovered block that is gone, and all that was appended with it.

        Gives the blocks at the nodes that hold a part of that beside other bytes: they are to be
        written again. Requires: nothing of the file is on its way.
        """
        torn, beside = contents.lose(number)
        for extent in torn:
            self._remove(contents, extent)
        contents.find_ends()
        self.progress.announce()
        return beside

    def cut(self, contents: Contents, size: int) -> None:
        """Forget dirty bytes from `size` on; those on the nodes remain to be cut there.

        Requires: nothing of the file is on its way.
        """
        block_bytes = contents.layout.block_bytes
        for number in [n for n in contents.dirty if (n + 1) * block_bytes > size]:
            block = contents.dirty[number]
            self.dirty_bytes += block.cut(max(0, size - number * block_bytes))
            if not block.stop:
                self.dirty_bytes -= block.cost
                del contents.dirty[number]
        contents.find_ends()
        contents.cut_appends(contents.end)
        self.progress.announce()

    def discard(self, contents: Contents) -> None:
        """Forget all that is unsaved of a file that nobody has open."""
        for block in contents.dirty.values():
            self.dirty_bytes -= block.cost
        contents.dirty.clear()
        if contents.uncovered:  # no other mount was shown them, and this one stops showing them
            contents.uncovered.clear()
            contents.drop_blocks(0)
            contents.is_kernel_current = False
        contents.end = contents.pushed_end = 0
        contents.appends = ()
        contents.cover = None
        self.saved(contents, contents.writes)
        self.progress.announce()

    def saved(self, contents: Contents, writes: int) -> None:
        """Take note that the first `writes` writes to the file need no further update."""
        contents.saved_writes = writes
        contents.changes = NO_CHANGES
        self.files.pop(contents.identifier, None)
