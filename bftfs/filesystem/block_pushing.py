"""Writes dirty blocks to the nodes: whole, as patches, and again if other mounts were faster.

The situation: programs have written some bytes of a block. Nodes store whole blocks, and patches,
which lie on a version that the inode names.

The rule: a block of which little was written becomes a patch, if that pays (`patches.pays`). Else
it is written whole: the bytes that programs wrote, and beside them those of the version that
programs here were shown, its *base*. Patch and block remember their base, and the update that
covers them names it (`CoveredBlock.base`).

Why it is safe: what others have written into the block since is not overwritten by older bytes,
since nodes refuse to cover a block whose base is not the latest named version. Then `take_back`
makes dirty again what programs wrote, and nothing else, and it is merged on the newer version.
(tests/unit/filesystem/test_shared_files.py, tests/unit/filesystem/test_patches.py)

Concurrency: callers hold the file's lock, so that no block is on its way twice. Bytes that are on
their way are in `Contents.pushing` or `Contents.patching`, where programs read them.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bftfs.clock_skew import is_ahead
from bftfs.conversation import Now, Together
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, NoLongerKept
from bftfs.filesystem.block_memory import BlockCache, Buffer, DirtyBlock, Extent
from bftfs.filesystem.block_names import BlockName, base_of
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.block_versions import VersionWriter
from bftfs.filesystem.contents import Contents, Pushed, Sharing
from bftfs.filesystem.epochs import Sealing
from bftfs.filesystem.options import Options
from bftfs.filesystem.patches import encode_patch, pays
from bftfs.filesystem.unsaved import Unsaved
from bftfs.identifiers import WHOLE

Base = tuple[Buffer, bytes | None]  # of a block that is written: bytes, and `CoveredBlock.base`


class _Gone(Exception):
    """Nodes have collected an uncovered block, on which a dirty one was to be merged."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Patch(NamedTuple):
    """A patch on its way to the nodes."""

    slot: int
    under: BlockName  # what it lies on
    written: DirtyBlock  # by programs


@dataclass(slots=True, eq=False)
class BlockPusher:
    """Writes dirty blocks to the nodes, whole or as patches."""

    versions: VersionWriter
    sealing: Sealing
    options: Options
    cache: BlockCache
    reader: BlockReader
    unsaved: Unsaved

    async def push(self, contents: Contents, numbers: Iterable[int]) -> None:
        """Write dirty blocks, those of `numbers`, to the nodes."""
        wanted = set(numbers)
        while True:
            try:
                await self._push(contents, contents.dirty.keys() & wanted)
            except _Gone as gone:  # what was on its way is dirty again
                assert contents.writer is not None, "what is uncovered has a writer"
                wanted |= await self.take_back(contents, (gone.number,), contents.writer)
            else:
                return

    async def _push(self, contents: Contents, numbers: Iterable[int]) -> None:
        queue = deque(sorted(numbers))
        batch = max(1, self.options.batch_bytes // contents.layout.block_bytes)
        workers = min(self.options.batches_in_flight, -(-len(queue) // batch))
        if workers == 1:
            await self._push_batches(contents, queue, batch)
        elif workers:
            await Together((partial(self._push_batches, contents, queue, batch),) * workers)

    async def _push_batches(self, contents: Contents, queue: deque[int], batch: int) -> None:
        while queue:
            numbers = [queue.popleft() for _ in range(min(batch, len(queue)))]
            numbers = [
                number
                for number in numbers
                if contents.dirty[number].start < contents.stop_in(number)
            ]
            if numbers:
                await self._push_batch(contents, numbers)

    async def _push_batch(self, contents: Contents, numbers: list[int]) -> None:
        """Write some dirty blocks. Those that fail are dirty again."""
        who = contents.writer
        assert who is not None, "a dirty block has a writer"
        for number in numbers:
            is_whole = contents.dirty[number].covers(0, contents.layout.block_bytes)
            if not is_whole and not contents.knows_name(number):
                await self.reader.refresh(contents, who, number)
        patches = {number: patch for number in numbers if (patch := self._patch(contents, number))}
        wholes = [number for number in numbers if number not in patches]
        if patches:
            await self._push_patches(contents, patches, who)
        if wholes:
            await self._push_blocks(contents, wholes, who)

    async def _push_blocks(self, contents: Contents, numbers: list[int], who: Credentials) -> None:
        """Write dirty blocks whole."""
        layout = contents.layout
        bases = await self._bases(contents, numbers, who)
        extents: dict[int, tuple[Extent, ...]] = {}
        for number in numbers:
            dirty = self.unsaved.take_out(contents, number)
            extents[number] = dirty.extents()
            if dirty.covers(0, layout.block_bytes) and contents.on_version is None:
                bases[number] = b"", None
            block = contents.pushing[number] = dirty.over(bases[number][0])
            self.unsaved.dirty_bytes += len(block) - dirty.cost
            self.cache.drop(contents.identifier, number)
        # A clock that the file is far ahead of tells no time for its blocks.
        is_alone = contents.sharing is Sharing.EXCLUSIVE
        is_asking = not is_alone or is_ahead(contents.version, await Now())
        try:
            items = [
                await self.sealing.seal(
                    layout.block(contents.identifier, number),
                    contents.pushing[number],
                )
                for number in numbers
            ]
            written = await self.versions.write(contents, items, who, is_asking=is_asking)
        except BaseException:
            for number in numbers:
                block = contents.pushing.pop(number)
                self.unsaved.dirty_bytes -= len(block)
                self.unsaved.put_back(contents, number, block, extents[number])
            raise
        for number, timestamp in zip(numbers, written, strict=True):
            block = contents.pushing.pop(number)
            self.unsaved.dirty_bytes -= len(block)
            self.cache.put(contents.identifier, number, block)
            version = Pushed(layout.incarnation(number), timestamp, not is_asking, bases[number][1])
            contents.pushed(number, extents[number], layout, version, block)
        self.unsaved.progress.announce()

    async def _bases(
        self, contents: Contents, numbers: list[int], who: Credentials
    ) -> dict[int, Base]:
        """The present contents of those blocks that were not written as a whole, and which.

        Of all, if they may replace no other versions than the present ones.
        """
        incomplete = []
        for number in numbers:
            is_stopped = contents.stop_in(number) < contents.layout.block_bytes
            is_bound = is_stopped or contents.on_version is not None
            if is_bound or not contents.dirty[number].covers(0, contents.layout.block_bytes):
                incomplete.append(number)
        if not incomplete:
            return {}
        if len(incomplete) == 1:
            return {incomplete[0]: await self._base(contents, incomplete[0], who)}
        bases = await Together(
            tuple(partial(self._base, contents, number, who) for number in incomplete)
        )
        return dict(zip(incomplete, bases, strict=True))

    async def _base(self, contents: Contents, number: int, who: Credentials) -> Base:
        """The bytes of a block that are put beside those that programs wrote, and their version.

        Of the latter, `CoveredBlock.base`. The bytes may be left out if programs wrote all of them.
        """
        while True:
            valid = contents.valid_bytes(number)
            block: Buffer = b""
            if valid > contents.stop_in(number) or not contents.dirty[number].covers(0, valid):
                try:
                    block = await self.reader.block(contents, number, who)
                except (FileSystemError, NoLongerKept) as gone:
                    if number not in contents.uncovered or not _is_final(gone):
                        raise
                    raise _Gone(number) from gone
            uncovered = contents.uncovered.get(number)
            if uncovered is not None:  # that block has its bytes from there
                return block, uncovered.pushed.base
            if contents.knows_name(number):
                return block, base_of(contents.named(number))
            await self.reader.refresh(contents, who, number)

    # --- patches ----------------------------------------------------------------------------------

    def _patch(self, contents: Contents, number: int) -> _Patch | None:
        """Take what is dirty of a block, to be written as a patch; None if that does not pay.

        One that was written and is not covered yet is written again, with all that is new.
        """
        uncovered, dirty = contents.uncovered.get(number), contents.dirty[number]
        under, written = None, DirtyBlock()
        if uncovered is not None:
            under, slot = uncovered.pushed.under, uncovered.pushed.slot
            if not isinstance(uncovered.image, DirtyBlock):
                return None
            written.add(uncovered.image)
        elif contents.knows_name(number):
            under = contents.named_within_file(number)
        if under is None or under.incarnation != contents.layout.incarnation(number):
            return None
        written.add(dirty, stop=contents.stop_in(number))
        if uncovered is None:
            slot = contents.slot_for(number, under, written)
        block_bytes = contents.layout.block_bytes
        length = max(written.stop, contents.attributes.size - number * block_bytes)
        if slot == WHOLE or not pays(
            written, min(length, block_bytes), self.options.patch_saves_bytes
        ):
            return None
        dirty = self.unsaved.take_out(contents, number)
        self.unsaved.dirty_bytes += written.cost - dirty.cost
        contents.patching[number] = written
        return _Patch(slot, under, written)

    async def _push_patches(
        self, contents: Contents, patches: Mapping[int, _Patch], who: Credentials
    ) -> None:
        """Write patches to the nodes. Their times are not asked for: nobody is shown them by these.

        They are later than what they lie on, and the update that names them is refused if that is
        not the latest.
        """
        layout, identifier = contents.layout, contents.identifier
        try:
            items = [
                await self.sealing.seal(
                    layout.block(identifier, number, patch.slot), encode_patch(patch.written)
                )
                for number, patch in patches.items()
            ]
            is_asking = is_ahead(contents.version, await Now())
            timestamps = await self.versions.write(contents, items, who, is_asking=is_asking)
        except BaseException:
            for number, patch in patches.items():
                del contents.patching[number]
                self.unsaved.dirty_bytes -= patch.written.cost
                self.unsaved.put_back(contents, number, patch.written, patch.written.extents())
            raise
        for (number, (slot, under, written)), timestamp in zip(
            patches.items(), timestamps, strict=True
        ):
            del contents.patching[number]
            self.unsaved.dirty_bytes -= written.cost
            block = self.cache.get(identifier, number)
            self.cache.drop(identifier, number)
            if block is not None:
                self.cache.put(identifier, number, written.over(block))
            version = Pushed(under.incarnation, timestamp, False, base_of(under), slot, under)
            contents.pushed(number, written.extents(), layout, version, written)
        self.unsaved.progress.announce()

    # --- writing again ----------------------------------------------------------------------------

    async def write_again(self, contents: Contents) -> None:
        """Write overtaken blocks again, so that they come after other mounts' changes.

        Only the bytes that programs here wrote are written, onto the block as it is now.
        """
        overtaken, who = contents.overtaken(), contents.writer
        if who is None:
            return  # nothing is unsaved
        batch = max(1, self.options.batch_bytes // contents.layout.block_bytes)
        for position in range(0, len(overtaken), batch):
            numbers = overtaken[position : position + batch]
            await self.push(contents, await self.take_back(contents, numbers, who))

    async def take_back(
        self, contents: Contents, numbers: Iterable[int], who: Credentials
    ) -> frozenset[int]:
        """Make what programs wrote of uncovered blocks dirty again; the numbers of those blocks.

        What is not at hand, and nodes have collected, is lost: every handle reports that, once. All
        that was appended in one stretch with it is lost as well (`Contents.lose`), and the blocks
        that hold some of that are taken back, too. Requires: nothing of the file is on its way.
        """
        taken = set()
        queue = deque(numbers)
        while queue:
            number = queue.popleft()
            block = contents.uncovered.get(number)
            if block is None:
                continue  # it was taken back, or lost together with another one
            image: Buffer | DirtyBlock | None = block.image
            if image is None:
                try:
                    image = await self.reader.version(contents.identifier, number, block.name, who)
                except (FileSystemError, NoLongerKept) as gone:
                    if not _is_final(gone):
                        raise
                    queue.extend(self.unsaved.lose(contents, number))
                    contents.fail(gone)
                    continue
            del contents.uncovered[number]
            self.cache.drop(contents.identifier, number)  # it is not the named version
            self.unsaved.put_back(contents, number, image, block.extents)
            taken.add(number)
        return frozenset(taken)


def _is_final(failure: FileSystemError | NoLongerKept) -> bool:
    """True if nodes have collected what was read."""
    return isinstance(failure, NoLongerKept) or failure.code == errno.EIO
