"""Writes blocks again that no program has written: to cut the file, or to replace all its versions.

The situation: the bytes of a file are to stay as they are, or to end earlier, and yet its blocks
need other versions:

- a *cut* gives all blocks from the cut on a fresh incarnation, under which nothing was ever
  written, so that bytes behind the cut never come back; the block that is cut inside is written
  shortened under it;
- a layout with too many ranges is *merged*: two of them get one incarnation;
- a file whose blocks have times that nodes refuse *leaves them behind* in a new incarnation;
- blocks that are sealed with the key of an earlier epoch are *sealed again*.

The rule: blocks are read as the inode names them, written, and named by one update that is bound
to the version of the contents that was read.

Why it is safe: if another mount changes the contents meanwhile, the inode's method refuses with
EAGAIN and nothing has changed; the attempt is repeated on the newer version (`_until_current`).
(tests/unit/filesystem/test_contents.py, tests/unit/filesystem/test_epochs.py,
tests/seams/test_clock_jumps.py)

Concurrency: callers hold the file's lock.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from bftfs import limits
from bftfs.conversation import Draw, Together
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused, FileSystemError, VersionGone
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import INCARNATION_GAP
from bftfs.filesystem.block_memory import part
from bftfs.filesystem.block_names import BlockName, CoveredBlock, covered
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.block_versions import ATTEMPTS, VersionWriter, kept_overtaking
from bftfs.filesystem.contents import Contents, Sharing
from bftfs.filesystem.epochs import Sealing
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import MERGE, REWRITE, TRUNCATE
from bftfs.filesystem.unsaved import Unsaved
from bftfs.identifiers import BlockId, block_id, block_number_of

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class BlockRewriter:
    """Writes blocks of a file anew, and has the inode name them instead of the present ones."""

    versions: VersionWriter
    sealing: Sealing
    options: Options
    reader: BlockReader
    unsaved: Unsaved

    async def cut(self, contents: Contents, size: int, who: Credentials) -> None:
        """Set the size. Requires: nothing is uncovered."""
        await self._until_current(contents, who, partial(self._cut, contents, size, who))

    async def _until_current(
        self,
        contents: Contents,
        who: Credentials,
        attempt: Callable[[], Awaitable[T]],
        number: int = 0,
    ) -> T:
        """Repeat an attempt until no other mount changes the file meanwhile.

        Names are asked for again in the page of block `number`.
        """
        for _ in range(ATTEMPTS):
            version = contents.version
            try:
                return await attempt()
            except VersionGone:
                await self.reader.refresh(contents, who, number)
            except FileSystemError as refusal:
                if refusal.code != errno.EAGAIN:
                    raise
                await self.look_again(contents, version, who, number)
        raise kept_overtaking()

    async def look_again(
        self, contents: Contents, version: int, who: Credentials, number: int = 0
    ) -> None:
        """Ask for names again: the inode has refused with EAGAIN what was to follow `version`.

        If nobody has changed the contents, the update would have come too long after its blocks:
        the inode is ahead of all clocks, by a barrier and a copy, which its attributes do not tell.
        Then its contents are brought up to it. (docs/decisions/0017-clock-jumps.md)
        """
        await self.reader.refresh(contents, who, number)
        if contents.version == version:
            await self.versions.move_on(contents, who)

    async def _cut(self, contents: Contents, size: int, who: Credentials) -> None:
        """One attempt of `cut`."""
        contents.require_version()
        version, incarnation, layout = contents.on_version or 0, 0, contents.layout
        names: dict[int, BlockName] = {}
        number, boundary = divmod(size, layout.block_bytes)
        if size < contents.attributes.size:
            if not layout.has_room_to_cut(number):
                await self._merge(contents, who)
                layout, version = contents.layout, contents.on_version or 0
            incarnation = layout.newest + 1 + await Draw(INCARNATION_GAP)
            if boundary:
                version = contents.version
                block = await self.reader.block(contents, number, who)
                if len(block):
                    target = block_id(contents.identifier, incarnation=incarnation, number=number)
                    shortened = part(block, 0, min(boundary, len(block)))
                    item = await self.sealing.seal(target, shortened)
                    (timestamp,) = await self.versions.write(contents, (item,), who)
                    names[number] = BlockName(incarnation, timestamp)
        writes = contents.writes
        arguments = inode.Truncation(size, incarnation, version, _covered_blocks(names))
        await self.versions.name(contents, TRUNCATE, arguments, who, names)
        contents.drop_blocks(number)
        if contents.writes == writes and not contents.dirty:
            contents.end = 0
            if not contents.changes:
                self.unsaved.saved(contents, writes)

    async def _merge(self, contents: Contents, who: Credentials) -> None:
        """Make room in the layout: give the blocks of two ranges one incarnation."""
        first, stop = contents.layout.cheapest_merge(contents.attributes.size)
        await self._rewrite(contents, first, stop, who)

    async def _rewrite(self, contents: Contents, first: int, stop: int, who: Credentials) -> None:
        """Give the blocks from `first` up to `stop`, where ranges begin, a new incarnation."""
        layout, version = contents.layout, contents.version
        if stop - first > limits.BLOCKS_PER_COVER:
            raise FileSystemError(errno.ENOSPC, "too many blocks would have to be written again")
        in_file = -(-contents.attributes.size // layout.block_bytes)  # nothing behind has a name
        incarnation = layout.newest + 1 + await Draw(INCARNATION_GAP)
        names: dict[int, BlockName] = {}
        batch = max(1, self.options.batch_bytes // layout.block_bytes)
        for position in range(first, stop, batch):
            items = []
            for number in range(position, min(position + batch, stop, in_file)):
                # Bytes merged on another version do not belong to this one.
                block = await self.reader.covered_block(contents, number, who)
                if len(block):
                    target = block_id(contents.identifier, incarnation=incarnation, number=number)
                    items.append(await self.sealing.seal(target, block))
            if items:
                written = await self.versions.write(contents, items, who)
                names |= {
                    block_number_of(block): BlockName(incarnation, timestamp)
                    for (block, _), timestamp in zip(items, written, strict=True)
                }
        arguments = inode.Merging(first, stop, incarnation, version, _covered_blocks(names))
        await self.versions.name(contents, MERGE, arguments, who, names)

    # --- times that nodes refuse ------------------------------------------------------------------

    async def leave_behind(self, contents: Contents, refused: AdmissionRefused) -> None:
        """Give all blocks of the file a new incarnation, if nodes refuse their times as too late.

        This happens to blocks that were written while all clocks were ahead, and not covered before
        the clocks were set back: nodes accept no later version of them, nor an update that covers
        them. In a new incarnation the blocks have no versions yet, so they can be written at the
        present time. (docs/decisions/0017-clock-jumps.md)

        If this mount's own clock is wrong, nodes refuse the new incarnation as well.
        """
        if refused.code != errno.ETIME:
            raise refused
        who = contents.writer
        assert who is not None, "what is written has a writer"
        await self._until_current(contents, who, partial(self._move_to_new, contents, who))
        contents.sharing = Sharing.OVERTAKEN  # what is uncovered is written again

    async def _move_to_new(self, contents: Contents, who: Credentials) -> None:
        """One attempt to give all blocks a new incarnation."""
        layout = contents.layout
        contents.pushed_us = contents.version
        blocks = -(-contents.attributes.size // layout.block_bytes)
        await self._rewrite(contents, 0, max(blocks, layout.ranges[-1][0] + 1), who)

    # --- sealing again ----------------------------------------------------------------------------

    async def seal_again(self, contents: Contents, first: int, stop: int, who: Credentials) -> int:
        """Write the blocks in [first, stop) again that are sealed with keys of earlier epochs.

        How many these were. The bytes stay as they are: if others change the file meanwhile, it
        begins anew. Requires: nothing is unsaved, and these are no more than one update names.
        """
        await self.reader.refresh(contents, who, first)
        attempt = partial(self._seal_again, contents, first, stop, who)
        return await self._until_current(contents, who, attempt, first)

    async def _seal_again(self, contents: Contents, first: int, stop: int, who: Credentials) -> int:
        """One attempt of `seal_again`."""
        version = contents.version
        await self.sealing.refresh()
        numbers = range(first, min(stop, -(-contents.size // contents.layout.block_bytes)))
        found = await Together(
            tuple(partial(self._sealed_again, contents, number, who) for number in numbers)
        )
        items = [each for each in found if each is not None]
        if contents.version != version:
            raise kept_overtaking()
        if items:
            await self._name_again(contents, version, items, who)
        return len(items)

    async def _sealed_again(
        self, contents: Contents, number: int, who: Credentials
    ) -> tuple[BlockId, bytes] | None:
        """A block to be written with the key of the present epoch; None if it has been."""
        if not contents.knows_name(number):
            await self.reader.refresh(contents, who, number)
        name = contents.name(number)
        if name is not None:
            sealed = await self.reader.sealed_version(contents.identifier, number, name, who)
            items = [item for _, item in sealed if item is not None]
            if all(map(self.sealing.is_present, items)):
                return None
            plaintext = await self.reader.opened(number, name, sealed)
        elif not contents.attributes.unnamed_until_us:
            return None  # a hole
        else:  # what a program may have written that named no blocks
            plaintext = await self.reader.block(contents, number, who)
            if not plaintext:
                return None
        return await self.sealing.seal(
            contents.layout.block(contents.identifier, number),
            part(plaintext, 0, min(len(plaintext), contents.valid_bytes(number))),
        )

    async def _name_again(
        self,
        contents: Contents,
        version: int,
        items: Sequence[tuple[BlockId, bytes]],
        who: Credentials,
    ) -> None:
        """Write blocks, and have the file named them, if it is as it was."""
        layout = contents.layout
        written = await self.versions.write(contents, items, who)
        names = {
            block_number_of(block): BlockName(layout.incarnation(block_number_of(block)), timestamp)
            for (block, _), timestamp in zip(items, written, strict=True)
        }
        arguments = inode.Rewriting(version, _covered_blocks(names))
        await self.versions.name(contents, REWRITE, arguments, who, names)


def _covered_blocks(names: Mapping[int, BlockName]) -> tuple[CoveredBlock, ...]:
    """The named blocks, as an update of the inode lists them."""
    return tuple(covered(number, name.timestamp) for number, name in names.items())
