"""A file's bytes between a mount and the nodes: reading, pushing, covering, truncating; encryption.

`BlockReader` and `BlockWriter` say the rules, and `contents` the states that bytes pass through.
"""

from __future__ import annotations

import errno
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from bftfs import limits
from bftfs.clock_skew import is_ahead
from bftfs.conversation import Draw, Event, Now, Pause, Spawn, Together, Wait
from bftfs.credentials import Credentials
from bftfs.errors import (
    AdmissionRefused,
    FileSystemError,
    MalformedMessage,
    NoLongerKept,
    OperationFailed,
    VersionGone,
    VersionUnrecoverable,
)
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import INCARNATION_GAP, NO_CHANGES, Attributes, spans
from bftfs.filesystem.block_memory import BlockCache, Buffer, DirtyBlock, Extent, Load, part
from bftfs.filesystem.block_names import (
    OVERTAKEN,
    PAGE,
    BlockName,
    CoveredBlock,
    Part,
    base_of,
    covered,
    covered_patch,
)
from bftfs.filesystem.contents import Contents, Cover, OpenFile, Pushed, Sharing, Uncovered
from bftfs.filesystem.epochs import Sealing
from bftfs.filesystem.inode import BlockPage, NamedBlocks
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.options import Options
from bftfs.filesystem.patches import PatchExtent, composed, decode_patch, encode_patch, pays
from bftfs.filesystem.registry import MERGE, REWRITE, TRUNCATE, WRITE
from bftfs.identifiers import WHOLE, BlockId, ObjectId, block_id, block_number_of, slot_of
from bftfs.limits import STEPS_AHEAD_US
from bftfs.query_update.client import EarlierAttempt
from bftfs.query_update.object_type import Record
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.timestamp import ZERO, BlockTimestamp

ATTEMPTS: Final = 32  # at an update that other mounts' truncations keep overtaking
OVERTAKEN_ATTEMPTS: Final = 1_000  # at one of which each attempt has made way for another mount's
BACK_OFF_US: Final = 1_000  # bound of the first random pause between these; it doubles…
BACK_OFF_DOUBLINGS: Final = 2  # …so often: shorter than the time for which who succeeds steps back

Sealed = tuple[BlockId, bytes | None]  # a data-item, and what nodes have of it
Base = tuple[Buffer, bytes | None]  # of a block that is written: bytes, and `CoveredBlock.base`


class _Patch(NamedTuple):
    """A patch on its way to the nodes."""

    slot: int
    under: BlockName  # what it lies on
    written: DirtyBlock  # by programs


class _Covered(Enum):
    """The outcome of an attempt to cover blocks."""

    ALL = 0  # all that nodes held
    NOT_ALL = 1
    OVERTAKEN = 2  # nothing: other mounts have changed these blocks, or the size, meanwhile


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
        block = await self.block(contents, number, who)
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
                return with_patch_on_its_way(contents, number, block)
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
                return with_patch_on_its_way(contents, number, block)

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
        if name is not None:
            return await self.version(identifier, number, name, who)
        return await self._unnamed(contents, number, who)

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
        version = await self.blocks.read(block, who, permit=permit)
        if not is_named(version.timestamp, name, contents.attributes):
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

        EIO if the nodes do not have it: whoever had it named has not written it, or not in a way
        that can be read. What was there before is not shown in its place: it is part of no version
        since.
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

    # --- reading ahead -----------------------------------------------------------------------

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


def with_patch_on_its_way(contents: Contents, number: int, block: Buffer) -> Buffer:
    """A block with the patch that this mount is writing to the nodes, if it is."""
    patch = contents.patching.get(number)
    return block if patch is None else patch.over(block)


def is_named(timestamp: BlockTimestamp, name: BlockName | None, attributes: Attributes) -> bool:
    """True if the latest complete version of a block is the one that is part of the file."""
    if name is None:
        return timestamp == ZERO or timestamp.time <= attributes.unnamed_until_us
    return timestamp == name.timestamp


@dataclass(slots=True, eq=False)
class BlockWriter:
    """Writes a file's bytes: dirty blocks are pushed to the nodes, then an inode update covers
    them.

    The rules [design §6]:

    1. A block is written before the inode update that covers it, which names its version: nobody
       else sees it before that update. It is later than what is covered already, and the update's
       time is not before its own. One update names so many blocks, in their order; each extends
       the size as far as that.
    2. The update names the newest incarnation that blocks were written under, and its answer the
       version of the contents that it found. If another mount has cut the file or changed it in
       between, what it has overtaken is written again and covered once more (`Sharing`, in
       `contents`). Only then is the write saved.
    3. A truncation gives all blocks from the cut on a fresh incarnation, under which nothing was
       ever written. A cut inside a block writes the shortened block under it first.
    4. A block that is merged on another version is covered on that version alone, and bytes are
       appended at the file's end alone: the update names both, and is refused if they are not the
       latest. Then rule 2 applies. One whose fate is unknown is repeated as it was, before
       anything else is written: it takes effect once.
    5. A block that cannot be written is dirty again, beneath newer writes. Bytes that are dirty, or
       on their way, are bounded.

    (tests/unit/filesystem/test_contents.py, for example
    `test_blocks_are_written_before_their_cover`,
    `test_a_cut_noticed_before_the_cover_loses_nothing` and
    `test_failed_writes_are_tried_again_with_newer_ones`.)

    Concurrency: callers of `push`, `cover` and `truncate` hold the file's lock, so that no block is
    on its way twice and covers are in order. Reads and `take` go on meanwhile.
    """

    metadata: Metadata
    blocks: ReadWriteClient
    sealing: Sealing
    options: Options
    cache: BlockCache
    reader: BlockReader
    unsaved: OrderedDict[ObjectId, Contents] = field(default_factory=OrderedDict)  # as they became
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
        self.unsaved.setdefault(contents.identifier, contents)

    @staticmethod
    def _dirty_block(contents: Contents, number: int) -> DirtyBlock:
        block = contents.dirty.get(number)
        if block is None:
            block = contents.dirty[number] = DirtyBlock()
        return block

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
        self._saved(contents, contents.writes)
        self.progress.announce()

    def _saved(self, contents: Contents, writes: int) -> None:
        """Take note that the first `writes` writes to the file need no further update."""
        contents.saved_writes = writes
        contents.changes = NO_CHANGES
        self.unsaved.pop(contents.identifier, None)

    # --- pushing -----------------------------------------------------------------------------

    async def push(self, contents: Contents, numbers: Iterable[int]) -> None:
        """Write dirty blocks to the nodes, and again what others have overtaken.

        Ensures: what was dirty at the beginning is uncovered at the end, up to `push_stop`.
        """
        numbers = frozenset(numbers)
        await self._settle(contents)
        await self._place_appends(contents)
        try:
            await self._push(contents, numbers)
        except AdmissionRefused as refused:
            await self._leave_behind(contents, refused)
            await self._push(contents, numbers | _held_before(contents))

    async def _push(self, contents: Contents, numbers: frozenset[int]) -> None:
        await self._write_again(contents)
        await self._push_dirty(contents, contents.dirty.keys() & numbers)

    async def _push_dirty(self, contents: Contents, numbers: Iterable[int]) -> None:
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
                if contents.dirty[number].start < _stop_in(contents, number)
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
            dirty = self._taken(contents, number)
            extents[number] = dirty.extents()
            if dirty.covers(0, layout.block_bytes):
                bases[number] = b"", None
            block = contents.pushing[number] = dirty.over(bases[number][0])
            self.dirty_bytes += len(block) - dirty.cost
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
            written = await self._write_blocks(contents, items, who, is_asking=is_asking)
        except BaseException:
            for number in numbers:
                block = contents.pushing.pop(number)
                self.dirty_bytes -= len(block)
                self._redirty(contents, number, block, extents[number])
            raise
        for number, timestamp in zip(numbers, written, strict=True):
            block = contents.pushing.pop(number)
            self.dirty_bytes -= len(block)
            self.cache.put(contents.identifier, number, block)
            version = Pushed(layout.incarnation(number), timestamp, not is_asking, bases[number][1])
            contents.pushed(number, extents[number], layout, version, block)
        self.progress.announce()

    # --- patches -----------------------------------------------------------------------------

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
        written.add(dirty, stop=_stop_in(contents, number))
        if uncovered is None:
            slot = contents.slot_for(number, under, written)
        block_bytes = contents.layout.block_bytes
        length = max(written.stop, contents.attributes.size - number * block_bytes)
        if slot == WHOLE or not pays(
            written, min(length, block_bytes), self.options.patch_saves_bytes
        ):
            return None
        dirty = self._taken(contents, number)
        self.dirty_bytes += written.cost - dirty.cost
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
            timestamps = await self._write_blocks(contents, items, who, is_asking=is_asking)
        except BaseException:
            for number, patch in patches.items():
                del contents.patching[number]
                self.dirty_bytes -= patch.written.cost
                self._redirty(contents, number, patch.written, patch.written.extents())
            raise
        for (number, (slot, under, written)), timestamp in zip(
            patches.items(), timestamps, strict=True
        ):
            del contents.patching[number]
            self.dirty_bytes -= written.cost
            block = self.cache.get(identifier, number)
            self.cache.drop(identifier, number)
            if block is not None:
                self.cache.put(identifier, number, written.over(block))
            version = Pushed(under.incarnation, timestamp, False, base_of(under), slot, under)
            contents.pushed(number, written.extents(), layout, version, written)
        self.progress.announce()

    def _taken(self, contents: Contents, number: int) -> DirtyBlock:
        """A dirty block, to be pushed; what is pushed another time remains."""
        dirty, stop = contents.dirty.pop(number), _stop_in(contents, number)
        if dirty.stop > stop:
            before = dirty.cost
            later = contents.dirty[number] = dirty.split(stop)
            self.dirty_bytes += dirty.cost + later.cost - before
        return dirty

    async def _bases(
        self, contents: Contents, numbers: list[int], who: Credentials
    ) -> dict[int, Base]:
        """The present contents of those blocks that were not written as a whole, and which."""
        incomplete = []
        for number in numbers:
            is_stopped = _stop_in(contents, number) < contents.layout.block_bytes
            if is_stopped or not contents.dirty[number].covers(0, contents.layout.block_bytes):
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
            if valid > _stop_in(contents, number) or not contents.dirty[number].covers(0, valid):
                block = await self.reader.block(contents, number, who)
            uncovered = contents.uncovered.get(number)
            if uncovered is not None:  # that block has its bytes from there
                return block, uncovered.pushed.base
            if contents.knows_name(number):
                return block, base_of(contents.named(number))
            await self.reader.refresh(contents, who, number)

    def _redirty(
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

    async def _write_blocks(
        self,
        contents: Contents,
        items: Sequence[tuple[BlockId, bytes]],
        who: Credentials,
        *,
        is_asking: bool = True,
    ) -> Sequence[BlockTimestamp]:
        """Make blocks durable, later than what is covered. Their timestamps."""
        after_us = contents.version if is_asking else max(contents.version, contents.pushed_us)
        permit = partial(self.metadata.permit_writing, contents.identifier, who)
        try:
            written = await self.blocks.write_many(
                items, who, after_us=after_us, is_asking=is_asking, permit=permit
            )
        except AdmissionRefused as refused:
            if refused.code != errno.ETIME or not is_ahead(contents.version, await Now()):
                raise
            await self._move_on(contents, who)
            written = await self.blocks.write_many(
                items, who, after_us=contents.version, permit=permit
            )
        contents.pushed_us = max(contents.pushed_us, *(timestamp.time for timestamp in written))
        return written

    async def _move_on(self, contents: Contents, who: Credentials) -> None:
        """Let a file that is ahead of all clocks go on by as much as nodes take at once.

        Its blocks have to come soon after its last version, and others have left some there.
        """
        contents.pushed_us = max(contents.pushed_us, contents.version + STEPS_AHEAD_US)
        arguments = inode.Writing(0, contents.layout.newest, contents.mtime_ns, NO_CHANGES)
        await self._update(contents, WRITE, arguments, who, {})

    async def _leave_behind(self, contents: Contents, refused: AdmissionRefused) -> None:
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
        for _ in range(ATTEMPTS):
            layout = contents.layout
            contents.pushed_us = contents.version
            blocks = -(-contents.attributes.size // layout.block_bytes)
            try:
                await self._rewrite(contents, 0, max(blocks, layout.ranges[-1][0] + 1), who)
            except FileSystemError as refusal:
                if refusal.code != errno.EAGAIN:
                    raise
                await self.reader.refresh(contents, who)
            else:
                contents.sharing = Sharing.OVERTAKEN  # what is uncovered is written again
                return
        raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

    async def _write_again(self, contents: Contents) -> None:
        """Write overtaken blocks again, so that they come after other mounts' changes.

        Only the bytes that programs here wrote are written, onto the block as it is now.
        """
        overtaken, who = contents.overtaken(), contents.writer
        if who is None:
            return  # nothing is unsaved
        batch = max(1, self.options.batch_bytes // contents.layout.block_bytes)
        for position in range(0, len(overtaken), batch):
            numbers = overtaken[position : position + batch]
            await self._take_back(contents, numbers, who)
            await self._push_dirty(contents, numbers)

    async def _take_back(
        self, contents: Contents, numbers: Iterable[int], who: Credentials
    ) -> None:
        """Make what programs wrote of uncovered blocks dirty again."""
        for number in numbers:
            block = contents.uncovered[number]
            image: Buffer | DirtyBlock | None = block.image
            if image is None:
                image = await self.reader.version(contents.identifier, number, block.name, who)
            del contents.uncovered[number]
            self.cache.drop(contents.identifier, number)  # it is not the named version
            self._redirty(contents, number, image, block.extents)

    # --- appending ---------------------------------------------------------------------------

    async def _place_appends(self, contents: Contents) -> None:
        """Put what was appended behind what other mounts have written there since.

        Programs here have seen it elsewhere: it was not closed or synced yet.
        """
        who = contents.writer
        if not contents.appends or contents.attributes.size == contents.appended_to:
            return
        assert who is not None, "what is unsaved has a writer"
        place = contents.place_of_appends()
        if len(contents.appends) == 1 and contents.appends[0][0] == place:
            contents.appended_to = contents.attributes.size
            return
        block_bytes, (first, last) = contents.layout.block_bytes, _bounds(contents.appends)
        numbers = [
            n for n in contents.uncovered if first // block_bytes <= n <= last // block_bytes
        ]
        await self._take_back(contents, numbers, who)
        appended = bytearray()  # from here on, nothing else happens in between
        for start, stop in contents.appends:
            for span in spans(start, stop - start, block_bytes):
                dirty = contents.dirty[span.number]
                appended += dirty.read(b"", span.start, span.stop)
                self.dirty_bytes += dirty.remove(span.start, span.stop)
                if not dirty.stop:
                    del contents.dirty[span.number]
        place = contents.place_of_appends()
        contents.moved(place)
        self.take(contents, place, bytes(appended))

    # --- covering ----------------------------------------------------------------------------

    async def cover(self, contents: Contents) -> None:
        """Update the inode, so that it covers all blocks that were written."""
        tries_left, overtaken = ATTEMPTS, 0
        while tries_left and overtaken < OVERTAKEN_ATTEMPTS and contents.is_unsaved:
            uncovered = len(contents.uncovered)
            match await self._cover(contents):
                case _Covered.ALL:
                    return
                case _Covered.OVERTAKEN:
                    if overtaken:
                        await Pause(
                            1 + await Draw(BACK_OFF_US << min(overtaken, BACK_OFF_DOUBLINGS))
                        )
                    overtaken += 1
                case _Covered.NOT_ALL:
                    # Of very many blocks, each update covers some: that is no failure.
                    tries_left -= len(contents.uncovered) >= uncovered
        if contents.is_unsaved:
            raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

    async def _settle(self, contents: Contents) -> None:
        """Repeat an update whose fate is unknown as it was, until that is known.

        Before anything else is written: what it has covered is not to be written again, since
        other mounts may have cut it off or overwritten it.
        """
        for _ in range(ATTEMPTS):
            if contents.cover is None:
                return
            await self._attempt(contents, contents.cover)
        raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

    async def _cover(self, contents: Contents) -> _Covered:
        """Settle what is unsettled, and make one attempt to cover the rest."""
        contents.cover = cover = await self._next_cover(contents)
        return await self._attempt(contents, cover)

    async def _attempt(self, contents: Contents, cover: Cover) -> _Covered:
        """One attempt at an update that covers blocks."""
        arguments, who = cover.arguments, cover.who
        version, size = contents.version, contents.attributes.size
        try:
            answer = await self._update(
                contents, WRITE, arguments, who, cover.names, cover.attempts
            )
        except AdmissionRefused as refused:
            if not cover.attempts:
                contents.cover = None
            await self._leave_behind(contents, refused)
            return _Covered.NOT_ALL
        except VersionGone:
            # The update has not taken effect: what is at hand of the blocks is written again.
            contents.cover = None
            await self.reader.refresh(contents, who)
            contents.must_ask(cover.names)
            return _Covered.NOT_ALL
        except FileSystemError as refusal:
            contents.cover = None
            if refusal.code == OVERTAKEN:
                await self._look_again(contents, cover)
                return _Covered.OVERTAKEN
            if refusal.code == errno.EAGAIN:
                await self.reader.refresh(contents, who)
            elif arguments.changes and refusal.code in (errno.EPERM, errno.EACCES):
                # The user has lost the right to change attributes, not to write: without these
                # changes the bytes can still be saved.
                contents.changes = NO_CHANGES
                contents.fail(refusal)
            else:
                raise
            return _Covered.NOT_ALL
        contents.cover = None
        if answer.before == version and contents.appended_to == size:
            # What was appended meanwhile was put behind all that this mount has covered now.
            contents.appended_to = answer.attributes.size
        return self._covered(contents, cover, answer)

    async def _next_cover(self, contents: Contents) -> Cover:
        """An update that covers what nodes hold, and all that was appended until now."""
        await self._settle(contents)
        await self._renew(contents)
        await self._place_appends(contents)
        contents.push_stop = contents.end  # what is appended at once is covered at once
        try:
            numbers = contents.dirty if contents.appends else _held_before(contents)
            await self.push(contents, numbers)
        finally:
            contents.push_stop = None
        assert contents.writer is not None, "what is unsaved has a writer"
        blocks = _covered_together(contents.uncovered)
        is_last = len(blocks) == len(contents.uncovered)
        # Bytes that were written since the blocks were pushed are covered another time.
        end = contents.pushed_end
        if not is_last:  # it has grown as far as blocks have names
            end = min(end, (max(blocks) + 1) * contents.layout.block_bytes)
        is_appending = any(start < end for start, _ in contents.appends)
        arguments = inode.Writing(
            end,
            contents.layout.newest,
            contents.mtime_ns,
            contents.changes,
            tuple(
                covered(number, block.pushed.timestamp, block.pushed.base)
                for number, block in blocks.items()
                if block.pushed.under is None
            ),
            contents.appended_to if is_appending else None,
            tuple(
                covered_patch(number, block.pushed.slot, block.pushed.timestamp, block.pushed.base)
                for number, block in blocks.items()
                if block.pushed.under is not None
            ),
        )
        return Cover(
            arguments,
            {number: block.name for number, block in blocks.items()},
            contents.writer,
            contents.writes,
            is_all=not contents.dirty,
            is_last=is_last,
            attempts=[],
        )

    async def _look_again(self, contents: Contents, cover: Cover) -> None:
        """Other mounts were faster: have written again what was merged on older versions."""
        await self.reader.refresh(contents, cover.who, min(cover.names, default=0))
        merged = [
            number for number, block in contents.uncovered.items() if block.pushed.base is not None
        ]
        for number in merged:
            if not contents.names.has_page_of(number):
                await self.reader.refresh(contents, cover.who, number)
        for number in merged:
            if contents.is_outdated(number):
                contents.write_again(number)

    def _covered(self, contents: Contents, cover: Cover, answer: inode.ContentsChanged) -> _Covered:
        """Take note of a cover that took effect."""
        contents.must_ask(answer.behind)
        # What it has named comes after all that it has found, and before all that came since.
        named = cover.names.keys() - set(answer.behind)
        overtaken = set(contents.overtaken()) - named
        contents.covered(cover, answer.attributes.size, overtaken)
        if contents.version != answer.attributes.contents:
            contents.covered_before_others(cover)
        if overtaken or not cover.is_last:
            return _Covered.NOT_ALL
        if contents.sharing is Sharing.OVERTAKEN:
            contents.sharing = Sharing.SHARED
        if not contents.uncovered and contents.end <= cover.arguments.end:
            contents.end = 0
        if cover.is_all and contents.writes == cover.writes:
            self._saved(contents, cover.writes)
        return _Covered.ALL

    async def _renew(self, contents: Contents) -> None:
        """Have what nodes would name no more written again, in time.

        The inode may be ahead of all clocks, by a change of its attributes, and its contents not.
        These are brought up to it first: new blocks come after them.
        """
        reached_us = max(await Now(), contents.attributes.version)
        oldest_us = reached_us - limits.COVERED_WITHIN_US // 2
        uncovered = contents.uncovered.items()
        old = [number for number, block in uncovered if block.pushed.timestamp.time < oldest_us]
        if old and max(await Now(), contents.version) < oldest_us:
            assert contents.writer is not None, "what is uncovered has a writer"
            await self._move_on(contents, contents.writer)
        contents.must_ask(old)

    async def _update(
        self,
        contents: Contents,
        method: str,
        arguments: Record,
        who: Credentials,
        names: Mapping[int, BlockName],
        attempts: list[EarlierAttempt] | None = None,
    ) -> inode.ContentsChanged:
        """Update the inode, which names these blocks from then on, but for those behind.

        At a time not before that of the blocks that were written for it.
        """
        versions = [_latest(contents.identifier, number, name) for number, name in names.items()]
        versions.sort(key=lambda version: slot_of(version[0]) != WHOLE)  # as the method lists them
        answer: inode.ContentsChanged = await self.metadata.update(
            (contents.identifier,),
            method,
            arguments,
            who,
            not_before_us=contents.pushed_us,
            vouch=partial(self.blocks.vouched, versions, who) if versions else None,
            earlier=attempts,
        )
        self.metadata.learn(contents.identifier, answer.attributes, await Now())
        size = contents.attributes.size
        contents.adopt(answer.attributes, ours_after=answer.before)
        if contents.version == answer.attributes.contents:
            number, valid = divmod(size, contents.layout.block_bytes)
            contents.names.put(names)
            if size < answer.attributes.size and valid:
                name = names.get(number)
                if name is None:
                    contents.names.limit(number, valid)
                    self.cache.drop(contents.identifier, number)
                elif name.patches:
                    contents.names.limit(number, valid, but=name.latest[0])
        return answer

    # --- sealing again ---------------------------------------------------------------------------

    async def seal_again(self, contents: Contents, first: int, stop: int, who: Credentials) -> int:
        """Write the blocks in [first, stop) again that are sealed with keys of earlier epochs.

        How many these were. The bytes stay as they are: if others change the file meanwhile, it
        begins anew. Requires: nothing is unsaved, and these are no more than one update names.
        """
        for _ in range(ATTEMPTS):
            await self.reader.refresh(contents, who, first)
            version = contents.version
            await self.sealing.refresh()
            numbers = range(first, min(stop, -(-contents.size // contents.layout.block_bytes)))
            found = await Together(
                tuple(partial(self._sealed_again, contents, number, who) for number in numbers)
            )
            items = [each for each in found if each is not None]
            try:
                if contents.version != version:
                    continue
                if items:
                    await self._name_again(contents, version, items, who)
            except FileSystemError as refusal:
                if refusal.code != errno.EAGAIN:
                    raise
            else:
                return len(items)
        raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

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
        written = await self._write_blocks(contents, items, who)
        names = {
            block_number_of(block): BlockName(layout.incarnation(block_number_of(block)), timestamp)
            for (block, _), timestamp in zip(items, written, strict=True)
        }
        arguments = inode.Rewriting(version, covered_blocks(names))
        await self._update(contents, REWRITE, arguments, who, names)

    # --- truncating --------------------------------------------------------------------------

    async def truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """Set the size; takes effect at once, for all mounts."""
        self._cut_dirty(contents, size)
        if contents.dirty or contents.uncovered or contents.changes:
            await self.push(contents, contents.dirty)
            await self.cover(contents)
        for _ in range(ATTEMPTS):
            try:
                await self._truncate(contents, size, who)
            except FileSystemError as refusal:
                if refusal.code != errno.EAGAIN:
                    raise
                await self.reader.refresh(contents, who)
            else:
                return
        raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

    def _cut_dirty(self, contents: Contents, size: int) -> None:
        """Forget dirty bytes from `size` on; those on the nodes remain to be cut there."""
        block_bytes = contents.layout.block_bytes
        for number in [n for n in contents.dirty if (n + 1) * block_bytes > size]:
            block = contents.dirty[number]
            self.dirty_bytes += block.cut(max(0, size - number * block_bytes))
            if not block.stop:
                self.dirty_bytes -= block.cost
                del contents.dirty[number]
        contents.end = max(contents.pushed_end, min(contents.end, size))
        contents.cut_appends(contents.end)
        self.progress.announce()

    async def _truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """One attempt. Requires: nothing is uncovered."""
        version, incarnation, layout = 0, 0, contents.layout
        names: dict[int, BlockName] = {}
        number, boundary = divmod(size, layout.block_bytes)
        if size < contents.attributes.size:
            if not layout.has_room_to_cut(number):
                await self._merge(contents, who)
                layout = contents.layout
            incarnation = layout.newest + 1 + await Draw(INCARNATION_GAP)
            if boundary:
                version = contents.version
                block = await self.reader.block(contents, number, who)
                if len(block):
                    target = block_id(contents.identifier, incarnation=incarnation, number=number)
                    shortened = part(block, 0, min(boundary, len(block)))
                    item = await self.sealing.seal(target, shortened)
                    (timestamp,) = await self._write_blocks(contents, (item,), who)
                    names[number] = BlockName(incarnation, timestamp)
        writes = contents.writes
        arguments = inode.Truncation(size, incarnation, version, covered_blocks(names))
        await self._update(contents, TRUNCATE, arguments, who, names)
        contents.drop_blocks(number)
        if contents.writes == writes and not contents.dirty:
            contents.end = 0
            if not contents.changes:
                self._saved(contents, writes)

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
                # What was merged on another version is no part of this one.
                block = await self.reader.covered_block(contents, number, who)
                if len(block):
                    target = block_id(contents.identifier, incarnation=incarnation, number=number)
                    items.append(await self.sealing.seal(target, block))
            if items:
                written = await self._write_blocks(contents, items, who)
                names |= {
                    block_number_of(block): BlockName(incarnation, timestamp)
                    for (block, _), timestamp in zip(items, written, strict=True)
                }
        arguments = inode.Merging(first, stop, incarnation, version, covered_blocks(names))
        await self._update(contents, MERGE, arguments, who, names)


def _held_before(contents: Contents) -> frozenset[int]:
    """Dirty blocks before the end of what nodes have held, and no update has covered.

    They were to be written again, and nodes have refused that. An update that let the file grow as
    far would show zeros in their place.
    """
    blocks = -(-contents.pushed_end // contents.layout.block_bytes)
    return frozenset(number for number in contents.dirty if number < blocks)


def _stop_in(contents: Contents, number: int) -> int:
    """Up to where a block may be pushed now."""
    block_bytes = contents.layout.block_bytes
    if contents.push_stop is None:
        return block_bytes
    return max(0, min(block_bytes, contents.push_stop - number * block_bytes))


def _covered_together(uncovered: Mapping[int, Uncovered]) -> dict[int, Uncovered]:
    """The first of these blocks, as many as one update names."""
    together, patches = {}, 0
    for number, block in islice(sorted(uncovered.items()), limits.BLOCKS_PER_COVER):
        patches += block.pushed.under is not None
        if patches > limits.PATCHES_PER_COVER:
            break
        together[number] = block
    return together


def _latest(identifier: ObjectId, number: int, name: BlockName) -> tuple[BlockId, BlockTimestamp]:
    """What was written of a block that goes by this name since."""
    slot, timestamp = name.latest
    block = block_id(identifier, incarnation=name.incarnation, number=number, slot=slot)
    return block, timestamp


def _bounds(extents: Sequence[Extent]) -> Extent:
    return extents[0][0], extents[-1][1]


def covered_blocks(names: Mapping[int, BlockName]) -> tuple[CoveredBlock, ...]:
    """The named blocks, as an update of the inode lists them."""
    return tuple(covered(number, name.timestamp) for number, name in names.items())
