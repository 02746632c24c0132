"""Reads a file's bytes: from memory, from the nodes, and ahead of sequential readers.

`BlockReader` says which version of a block programs are shown, and why it is the right one.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from bftfs.conversation import Event, Spawn, Together, Wait
from bftfs.credentials import Credentials
from bftfs.errors import (
    AdmissionRefused,
    FileSystemError,
    MalformedMessage,
    NoLongerKept,
    OperationFailed,
    VersionUnrecoverable,
)
from bftfs.filesystem.attributes import Attributes, spans
from bftfs.filesystem.block_memory import BlockCache, Buffer, DirtyBlock, Load, part
from bftfs.filesystem.block_names import PAGE, BlockName, Part
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.filesystem.epochs import Sealing
from bftfs.filesystem.inode import BlockPage, NamedBlocks
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.options import Options
from bftfs.filesystem.patches import PatchExtent, composed, decode_patch
from bftfs.identifiers import WHOLE, BlockId, ObjectId, block_id, block_number_of
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.timestamp import ZERO, BlockTimestamp

_DELETED = "the file was deleted, and what it held is gone"

Sealed = tuple[BlockId, bytes | None]  # a data-item, and what nodes have of it


@dataclass(slots=True, eq=False)
class FirstBlock:
    """A file's first block, which is read while the mount asks which version of it is named."""

    identifier: ObjectId
    block: BlockId  # by the layout that the mount has heard of
    load: Load
    is_opening: bool = True
    opened: Event = field(default_factory=Event)  # announced when that is over
    contents: Contents | None = None  # once it is open; its names are those of now

    def end(self, contents: Contents | None) -> None:
        """The file is open, or could not be opened."""
        self.is_opening, self.contents = False, contents
        self.opened.announce()


@dataclass(slots=True, eq=False)
class BlockReader:
    """Reads a file's bytes: from memory, from the nodes, and ahead of sequential readers.

    The inode names the version of each block that is part of the file (`block_names`). A mount asks
    for the names of a page of blocks at once, those of the first page when it opens the file. The
    latest version of a block nearly always is the named one, so it is asked for first. If it is
    another one, the names are asked for again, and then the named version: so size and blocks
    belong together, and what no update has named is not shown, whatever the nodes host. A mount
    shows its own uncovered blocks to its programs.
    (tests/unit/filesystem/test_contents.py, from
    `test_what_is_not_covered_is_shown_to_its_mount_alone` on.)

    Concurrency: everything is touched between awaits only, and checked again after each.
    """

    metadata: Metadata
    blocks: ReadWriteClient
    sealing: Sealing
    options: Options
    cache: BlockCache
    permissions: Metadata  # of the present, if `metadata` is of a past
    prefetching_bytes: int = 0

    async def read(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        contents = file.contents
        if self.options.strict:
            await self.refresh(contents, file.who, offset // contents.layout.block_bytes)
        else:
            self.notice(contents)
        stop = min(offset + size, contents.size)
        if stop <= offset:
            return b""
        if not self.options.strict:
            await self._read_ahead(file, offset, stop)
        wanted = tuple(spans(offset, stop - offset, contents.layout.block_bytes))
        if len(wanted) == 1:
            return await self._span(contents, *wanted[0], file.who)
        pieces = await Together(
            tuple(partial(self._span, contents, *span, file.who) for span in wanted)
        )
        return b"".join(pieces)

    def notice(self, contents: Contents) -> None:
        """Take note of the newest attributes that the mount has heard of."""
        attributes = self.metadata.known(contents.identifier)
        if attributes is not None:
            contents.adopt(attributes)

    async def refresh(self, contents: Contents, who: Credentials, number: int = 0) -> None:
        """Ask the nodes for the file's attributes, and the names in the page of a block."""
        found = await self.ask_names(contents.identifier, contents, number, who)
        contents.adopt(found.attributes)
        self.take_names(contents, number, found)

    async def ask_names(
        self, identifier: ObjectId, contents: Contents | None, number: int, who: Credentials
    ) -> NamedBlocks:
        """Ask the nodes for both; for no names if `contents` has those of the latest version."""
        known = 0
        if contents is not None and contents.names.has_page_of(number):
            known = contents.version
        page = BlockPage(number - number % PAGE, known)
        return await self.metadata.blocks(identifier, page, who)

    @staticmethod
    def take_names(contents: Contents, number: int, found: NamedBlocks) -> None:
        """Take note of names, if they are those of the version that `contents` has."""
        if found.blocks is not None and found.attributes.contents == contents.version:
            contents.names.learn(number, found.blocks)

    async def _span(
        self, contents: Contents, number: int, start: int, stop: int, who: Credentials
    ) -> Buffer:
        """Bytes [start, stop) of a block, as programs see it."""
        dirty = contents.dirty.get(number)
        if dirty is not None and dirty.covers(start, stop):
            return dirty.read(b"", start, stop)
        try:
            block = await self.block(contents, number, who)
        except NoLongerKept as gone:
            if self.options.is_past or contents.attributes.links:
                raise
            raise FileSystemError(errno.ESTALE, _DELETED) from gone
        dirty = contents.dirty.get(number)  # perhaps another one by now
        return part(block, start, stop) if dirty is None else dirty.read(block, start, stop)

    async def block(self, contents: Contents, number: int, who: Credentials) -> Buffer:
        """A block without its dirty pieces; perhaps shorter than a whole one."""
        cache, inode = self.cache, contents.identifier
        while True:
            block = contents.pushing.get(number)
            if block is None:
                block = cache.get(inode, number)
            if block is not None:
                return _with_patch_on_its_way(contents, number, block)
            if not contents.valid_bytes(number):
                return b""
            load = cache.load(inode, number)
            if load is not None:
                await Wait(load.done)
            elif not contents.knows_name(number):
                await self.refresh(contents, who, number)
                continue
            else:
                load = await self._load(contents, number, who)
            block = cache.result(load)
            if block is not None:
                return _with_patch_on_its_way(contents, number, block)

    async def _load(self, contents: Contents, number: int, who: Credentials) -> Load:
        """Read a block from the nodes into the cache. Requires: its name is known."""
        load = self.cache.begin(contents.identifier, number)
        block: Buffer | None = None
        try:
            block = await self._shown(contents, number, load, who)
            if block is not None and len(block) > contents.valid_bytes(number):
                block = memoryview(block)[: contents.valid_bytes(number)]
        finally:
            self.cache.finish(contents.identifier, number, load, block)
        return load

    async def _shown(
        self, contents: Contents, number: int, load: Load, who: Credentials
    ) -> Buffer | None:
        """The version of a block that programs see; None if that has changed meanwhile."""
        identifier, name = contents.identifier, contents.name(number)
        # The past does not change: what is named in it is asked for at once.
        if not self.options.is_past and number not in contents.uncovered:
            block = await self._if_there(contents, number, name, who)
            if block is not None:
                return block
            # Another mount has written it, and has covered that since, or not yet, or never will.
            await self.refresh(contents, who, number)
            if number in contents.pushing or not contents.knows_name(number):
                return None
            load.is_outdated = False  # what was dropped so far: the block is read again now
            name = contents.name(number)
        try:
            if name is None:
                return await self._unnamed(contents, number, who)
            return await self.version(identifier, number, name, who)
        except NoLongerKept:
            if number in contents.uncovered:
                return await self._on_what_is_named(contents, number, who)
            if self.options.is_past or not await self._has_changed(contents, number, who):
                raise
            return None

    async def _has_changed(self, contents: Contents, number: int, who: Credentials) -> bool:
        """True if the inode names another version of a block than this mount has believed.

        Of the one that it has believed nodes have collected something: so it is no part of the file
        any more, unless nodes have lost it. A read may be held up for longer than the past is kept.
        Raises FileSystemError (ESTALE) if the contents went since the file was deleted.
        """
        name = contents.name(number)
        await self.refresh(contents, who, number)
        if not contents.knows_name(number) or contents.name(number) != name:
            return True
        if not contents.attributes.links:
            raise FileSystemError(errno.ESTALE, _DELETED)
        return False

    async def _on_what_is_named(
        self, contents: Contents, number: int, who: Credentials
    ) -> Buffer | None:
        """A block with this mount's patch, which is not covered, on what the inode names now.

        Others have replaced what the patch was written for, and nodes have collected that since.
        None if the block was covered meanwhile. Raises NoLongerKept if it is no patch.
        """
        await self.refresh(contents, who, number)
        block = await self.covered_block(contents, number, who)
        uncovered = contents.uncovered.get(number)
        if uncovered is None:
            return None
        if not isinstance(uncovered.image, DirtyBlock):
            raise NoLongerKept(subject=f"block {number}", at_us=contents.version)
        return uncovered.image.over(block)

    async def _if_there(
        self, contents: Contents, number: int, name: BlockName | None, who: Credentials
    ) -> Buffer | None:
        """A block by its name, as far as that is known; None if that is perhaps not the latest."""
        if name is not None and name.patches:
            try:
                return await self.version(contents.identifier, number, name, who)
            except (FileSystemError, NoLongerKept, VersionUnrecoverable):
                return None
        block = contents.layout.block(contents.identifier, number)
        permit = partial(self.permissions.permit_reading, contents.identifier, who)
        try:
            version = await self.blocks.read(block, who, permit=permit, is_named=name is not None)
        except AdmissionRefused as refusal:
            # Some node has not heard of what was written since, or lies. Its name decides.
            if name is None or refusal.code != errno.ESTALE:
                raise
            return None
        if not _is_named(version.timestamp, name, contents.attributes):
            return None
        plaintext = await self.sealing.open(block, version.item)
        return plaintext if name is None else plaintext[: name.valid]

    async def _unnamed(self, contents: Contents, number: int, who: Credentials) -> bytes:
        """A block without a name, which a program before there were names may have written."""
        unnamed_us = contents.attributes.unnamed_until_us
        if not unnamed_us:
            return b""
        block = contents.layout.block(contents.identifier, number)
        permit = partial(self.permissions.permit_reading, contents.identifier, who)
        version = await self.blocks.read(block, who, at_time_us=unnamed_us, permit=permit)
        return await self.sealing.open(block, version.item)

    async def covered_block(self, contents: Contents, number: int, who: Credentials) -> Buffer:
        """A block as all mounts see it: without what this one has not covered yet."""
        if number not in contents.uncovered:
            return await self.block(contents, number, who)
        while not contents.names.has_page_of(number):
            await self.refresh(contents, who, number)
        size = contents.attributes.size - number * contents.layout.block_bytes
        name = contents.named(number)
        block: Buffer
        if name is None:
            block = await self._unnamed(contents, number, who)
        else:
            block = await self.version(contents.identifier, number, name, who)
        return block[: max(0, size)]

    async def version(
        self, identifier: ObjectId, number: int, name: BlockName, who: Credentials
    ) -> Buffer:
        """The plaintext of a named version of a block of a file.

        EIO if the nodes do not have it: the client that had it named has not written it, or not in
        a way that can be read. What was there before is not shown in its place: it is part of no
        version since.
        """
        sealed = await self.sealed_version(identifier, number, name, who)
        return await self.opened(number, name, sealed)

    async def opened(self, number: int, name: BlockName, sealed: Sequence[Sealed]) -> Buffer:
        """The plaintext of what `sealed_version` gives. Raises what `version` raises."""
        opened = [await self.sealing.open(block, item) for block, item in sealed]
        if len(opened) == 1:
            return opened[0][: name.valid]
        extents = map(partial(self._extents, number), name.parts(), opened)
        limits_of_parts = (name.valid, *(patch.valid for patch in name.patches))
        return composed(zip(extents, limits_of_parts, strict=True))

    async def sealed_version(
        self, identifier: ObjectId, number: int, name: BlockName, who: Credentials
    ) -> list[Sealed]:
        """A named version of a block as nodes have it, and its patches. Raises as `version`."""
        reads = tuple(
            partial(self._sealed_part, identifier, name.incarnation, number, part, who)
            for part in name.parts()
        )
        return [await reads[0]()] if len(reads) == 1 else list(await Together(reads))

    async def _sealed_part(
        self, identifier: ObjectId, incarnation: int, number: int, part: Part, who: Credentials
    ) -> Sealed:
        slot, timestamp = part
        block = block_id(identifier, incarnation=incarnation, number=number, slot=slot)
        permit = partial(self.permissions.permit_reading, identifier, who)
        found = await self.blocks.written(block, timestamp, who, permit=permit)
        if found.timestamp != timestamp:
            raise FileSystemError(errno.EIO, f"block {number} was named and never written")
        return block, found.item

    async def require_part(
        self, identifier: ObjectId, incarnation: int, number: int, part: Part, who: Credentials
    ) -> None:
        """Read a named version of a block, or one patch. Raises what `version` raises."""
        sealed = await self._sealed_part(identifier, incarnation, number, part, who)
        self._extents(number, part, await self.sealing.open(*sealed))

    @staticmethod
    def _extents(number: int, part: Part, plaintext: bytes) -> list[PatchExtent]:
        """Those of a patch; of a whole block, it."""
        if part[0] == WHOLE:
            return [(0, memoryview(plaintext))]
        try:
            return decode_patch(plaintext)
        except MalformedMessage as fault:
            raise FileSystemError(errno.EIO, f"block {number}: {fault}") from fault

    # --- reading ahead ----------------------------------------------------------------------------

    async def begin_first(
        self, identifier: ObjectId, contents: Contents | None, who: Credentials
    ) -> FirstBlock | None:
        """Start to read the first block of a file that is being opened, to spare a round.

        Nearly every program that opens a file for reading reads it. What is read is shown only if
        it is the version that the inode names when it answers the open, as for any other read.
        """
        known = self.metadata.known(identifier)
        if (
            known is None
            or known.layout is None
            or not known.size
            or self.options.is_past
            or self.options.strict
            or self.cache.load(identifier, 0) is not None
            or self.cache.get(identifier, 0) is not None
            or (contents is not None and (0 in contents.pushing or 0 in contents.uncovered))
        ):
            return None
        block = known.layout.block(identifier, 0)
        first = FirstBlock(identifier, block, self.cache.begin(identifier, 0))
        await Spawn(partial(self._first, first, who))
        return first

    async def _first(self, first: FirstBlock, who: Credentials) -> None:
        shown: Buffer | None = None
        try:
            permit = partial(self.permissions.permit_reading, first.identifier, who)
            version = await self.blocks.read(first.block, who, permit=permit)
            while first.is_opening:
                await Wait(first.opened)
            contents = first.contents
            if contents is not None and (
                name := _name_of(contents, first.block, version.timestamp)
            ):
                plaintext = await self.sealing.open(first.block, version.item)
                shown = plaintext[: name.valid][: contents.valid_bytes(0)]
        except (FileSystemError, OperationFailed):
            pass  # a reader of the block will meet the failure itself
        finally:
            self.cache.finish(first.identifier, 0, first.load, shown)

    async def _read_ahead(self, file: OpenFile, offset: int, stop: int) -> None:
        """Start to read the blocks that a sequential reader will want next."""
        block_bytes = file.contents.layout.block_bytes
        # The kernel reads ahead itself, and its requests may overtake each other a little.
        if file.expected - file.window <= offset <= file.expected + file.window:
            if offset:
                window = max(2 * file.window, 2 * block_bytes)
                file.window = min(window, self.options.read_ahead_bytes)
            file.expected = max(file.expected, stop)
            file.ahead = max(file.ahead, stop)
        else:
            file.window = 0
            file.expected = file.ahead = stop
        if file.ahead - stop > file.window // 2:
            return
        end = min(stop + file.window, file.contents.attributes.size)
        first = -(-file.ahead // block_bytes)
        for number in range(first, -(-end // block_bytes)):
            if self.prefetching_bytes >= self.options.prefetch_bytes:
                return
            file.ahead = (number + 1) * block_bytes
            if self._is_absent(file.contents, number):
                self.prefetching_bytes += block_bytes
                await Spawn(partial(self._prefetch, file.contents, number, file.who))

    def _is_absent(self, contents: Contents, number: int) -> bool:
        """True if the block is neither in memory nor on its way there."""
        return (
            number not in contents.pushing
            and self.cache.load(contents.identifier, number) is None
            and self.cache.get(contents.identifier, number) is None
        )

    async def _prefetch(self, contents: Contents, number: int, who: Credentials) -> None:
        try:
            if self._is_absent(contents, number) and contents.valid_bytes(number):
                await self.block(contents, number, who)
        except (FileSystemError, OperationFailed):
            pass  # a reader of the block will meet the failure itself
        finally:
            self.prefetching_bytes -= contents.layout.block_bytes


def _with_patch_on_its_way(contents: Contents, number: int, block: Buffer) -> Buffer:
    """A block with the patch that this mount is writing to the nodes, if it is."""
    patch = contents.patching.get(number)
    return block if patch is None else patch.over(block)


def _name_of(contents: Contents, block: BlockId, timestamp: BlockTimestamp) -> BlockName | None:
    """The name of this version of a block, if programs are shown it alone, without patches."""
    number = block_number_of(block)
    if (
        number in contents.uncovered
        or not contents.knows_name(number)
        or not contents.layout.has(block)
    ):
        return None
    name = contents.name(number)
    if name is None or name.patches or name.timestamp != timestamp:
        return None
    return name


def _is_named(timestamp: BlockTimestamp, name: BlockName | None, attributes: Attributes) -> bool:
    """True if the latest complete version of a block is the one that is part of the file."""
    if name is None:
        return timestamp == ZERO or timestamp.time <= attributes.unnamed_until_us
    return timestamp == name.timestamp
