"""The contents of all files: reading, writing behind, flushing, truncating.

Invariants: a block is written before the inode update that covers it [design §6]. Memory is bounded
in bytes: unwritten, cached, and on their way.

Concurrency: `write` is synchronous. Pushing blocks, covering them and truncating hold the inode's
turnstile, so that no block is on its way twice and covers are in order; reads and writes go on
meanwhile. Everything else is touched between awaits only, and checked again after each.
"""

from __future__ import annotations

import errno
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

from bftfs import limits
from bftfs.conversation import Compute, Draw, Event, Now, Spawn, Together, Wait
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.errors import FileSystemError, OperationFailed, PeerFault
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import NO_CHANGES, Attributes
from bftfs.filesystem.block_cache import BlockCache
from bftfs.filesystem.contents import Contents, Failure, Loading, OpenFile
from bftfs.filesystem.dirty import Buffer, DirtyBlock, Extent, part
from bftfs.filesystem.layout import INCARNATION_GAP, spans
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import MERGE, TRUNCATE, WRITE
from bftfs.filesystem.services import BlockService
from bftfs.identifiers import BlockId, ObjectId, block_id
from bftfs.query_update.object_type import Record
from bftfs.read_write.timestamp import BlockTimestamp

ATTEMPTS: Final = 32  # at an update that other mounts' truncations keep overtaking
UNCOVERED_BLOCKS: Final = 4_096  # blocks written of one file before they are covered in between
IDLE_CONTENTS: Final = 4_096  # files that nobody has open, whose blocks may be cached
FLUSHES_TOGETHER: Final = 16  # files that are written back at the same time


async def plaintext_of(cipher: BlockCipher | None, block: BlockId, item: bytes | None) -> bytes:
    """What a data-item says; empty if it was never written."""
    if item is None:
        return b""
    if cipher is None:
        return item
    try:
        plaintext: bytes = await Compute(partial(cipher.open, block, item))
    except PeerFault as fault:
        raise FileSystemError(errno.EIO, str(fault)) from fault
    return plaintext


class ContentStore:
    """The contents of all files that are open, or were."""

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockService,
        cipher: BlockCipher | None,
        options: Options,
    ) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._cipher = cipher
        self._options = options
        self._contents: OrderedDict[ObjectId, Contents] = OrderedDict()
        self._unsaved: OrderedDict[ObjectId, Contents] = OrderedDict()  # by when they became so
        self._cache = BlockCache(0 if options.strict else options.cache_bytes)
        self._dirty_bytes = 0  # dirty or on their way
        self._prefetching_bytes = 0
        self._is_writing_behind = False
        self._progress = Event()  # fewer bytes are dirty, or writing behind has ended

    # --- handles -----------------------------------------------------------------------------

    def known(self, identifier: ObjectId) -> Contents | None:
        """What is known of the file's contents, if anything."""
        return self._contents.get(identifier)

    def open(
        self,
        identifier: ObjectId,
        attributes: Attributes,
        who: Credentials,
        *,
        append: bool,
        is_new: bool = False,
    ) -> OpenFile:
        """A handle on the file whose latest attributes are given.

        `is_new`: this mount has just made it, and these are its first attributes.
        """
        contents = self.contents_of(identifier, attributes)
        contents.is_ours |= is_new and not self._options.strict
        contents.handles += 1
        keep_cache = contents.opened_version == contents.version and not self._options.strict
        contents.opened_version = contents.version
        return OpenFile(contents, who, append=append, keep_cache=keep_cache)

    def contents_of(self, identifier: ObjectId, attributes: Attributes) -> Contents:
        """The contents of the file whose latest attributes are given."""
        if attributes.layout is None:
            raise FileSystemError(errno.EINVAL, "not a regular file")
        contents = self._contents.get(identifier)
        if contents is None:
            contents = Contents(identifier, attributes, attributes.layout)
            self._contents[identifier] = contents
            self._drop_idle()
        else:
            self._adopt(contents, attributes)
            self._contents.move_to_end(identifier)
        return contents

    async def release(self, file: OpenFile) -> None:
        """The handle's end. What cannot be written is dropped with the last handle."""
        contents = file.contents
        failure: Failure | None = None
        try:
            await self.flush(file)
        except (FileSystemError, OperationFailed) as unwritten:
            failure = unwritten
        contents.handles -= 1
        if not contents.handles and contents.is_unsaved:
            async with contents.turnstile:
                if not contents.handles:
                    self._discard_unsaved(contents)
        if failure is not None:
            raise failure

    def _discard_unsaved(self, contents: Contents) -> None:
        """Forget what nobody can ask for any more."""
        for block in contents.dirty.values():
            self._dirty_bytes -= block.cost
        contents.dirty.clear()
        if contents.uncovered:  # nobody else has seen them, nor shall this mount
            contents.uncovered.clear()
            self._invalidate(contents, 0)
            contents.opened_version = -1
        contents.end = contents.pushed_end = 0
        contents.changes = NO_CHANGES
        contents.saved_writes = contents.writes
        self._unsaved.pop(contents.identifier, None)
        self._progress.announce()

    def _drop_idle(self) -> None:
        """Forget files that nobody has open, if there are too many; a few at a time."""
        if len(self._contents) > IDLE_CONTENTS:
            for identifier in tuple(islice(self._contents, IDLE_CONTENTS // 64)):
                contents = self._contents[identifier]
                if not contents.handles and contents.turnstile.is_idle:
                    del self._contents[identifier]
                    self._cache.drop_from(identifier, 0)
                else:
                    self._contents.move_to_end(identifier)

    # --- what others changed -----------------------------------------------------------------

    def notice(self, contents: Contents) -> None:
        """Take note of the newest attributes that the mount has heard of."""
        attributes = self._metadata.known(contents.identifier)
        if attributes is not None:
            self._adopt(contents, attributes)

    def _adopt(self, contents: Contents, attributes: Attributes, *, ours_after: int = -1) -> None:
        """Take note of `attributes`; cached blocks stay valid if only we changed the contents.

        `ours_after` is the version of the contents before an update of our own.
        """
        if attributes.version <= contents.seen:
            return
        contents.seen = attributes.version
        contents.links = attributes.links
        if attributes.contents == contents.version or attributes.layout is None:
            return
        if ours_after != contents.version:
            self._invalidate(contents, 0)
            contents.opened_version = -1
            contents.is_ours, contents.is_overtaken = False, True
        elif contents.opened_version == contents.version:
            contents.opened_version = attributes.contents
        if contents.hidden:
            self._unveil(contents)
        contents.version = attributes.contents
        contents.layout = attributes.layout
        contents.covered = attributes.size

    def _invalidate(self, contents: Contents, first: int) -> None:
        """Forget clean blocks from `first` on."""
        contents.revision += 1
        contents.hidden = {number for number in contents.hidden if number < first}
        self._cache.drop_from(contents.identifier, first)
        for number, loading in contents.loading.items():
            if number >= first:
                loading.stale = True

    def _unveil(self, contents: Contents) -> None:
        """Forget blocks of which a later version was seen: our own update covers it as well."""
        contents.revision += 1
        contents.opened_version = -1
        for number in contents.hidden:
            self._cache.drop(contents.identifier, number)
            loading = contents.loading.get(number)
            if loading is not None:
                loading.stale = True
        contents.hidden.clear()

    async def _refresh(self, contents: Contents, who: Credentials) -> None:
        """Ask what the file looks like now."""
        self._adopt(contents, await self._metadata.latest(contents.identifier, who))

    # --- reading -----------------------------------------------------------------------------

    async def read(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        contents = file.contents
        if self._options.strict:
            await self._refresh(contents, file.who)
        else:
            self.notice(contents)
        stop = min(offset + size, contents.size)
        if stop <= offset:
            return b""
        if not self._options.strict:
            await self._read_ahead(file, offset, stop)
        wanted = tuple(spans(offset, stop - offset, contents.layout.block_bytes))
        if len(wanted) == 1:
            return await self._span(contents, *wanted[0], file.who)
        pieces = await Together(
            tuple(partial(self._span, contents, *span, file.who) for span in wanted)
        )
        return b"".join(pieces)

    async def _span(
        self, contents: Contents, number: int, start: int, stop: int, who: Credentials
    ) -> Buffer:
        """Bytes [start, stop) of a block, as programs see it."""
        dirty = contents.dirty.get(number)
        if dirty is not None and dirty.covers(start, stop):
            return dirty.read(b"", start, stop)
        block = await self._block(contents, number, who)
        dirty = contents.dirty.get(number)  # perhaps another one by now
        return part(block, start, stop) if dirty is None else dirty.read(block, start, stop)

    async def _block(self, contents: Contents, number: int, who: Credentials) -> Buffer:
        """A block without what is dirty of it; perhaps shorter than a whole one."""
        while True:
            block = contents.pushing.get(number)
            if block is None:
                block = self._cache.get(contents.identifier, number)
            if block is not None:
                return block
            if not contents.valid_bytes(number):
                return b""
            loading = contents.loading.get(number)
            if loading is not None:
                await Wait(loading.done)
            else:
                loading = await self._load(contents, number, who)
            if loading.data is not None and loading.revision == contents.revision:
                return loading.data

    async def _load(self, contents: Contents, number: int, who: Credentials) -> Loading:
        """Read a block from the nodes into the cache."""
        loading = contents.loading[number] = Loading()
        try:
            block = await self._shown(contents, number, loading, who)
            if block is None:
                return loading
            valid = contents.valid_bytes(number)
            loading.data = block if len(block) <= valid else memoryview(block)[:valid]
            if not loading.stale:
                loading.revision = contents.revision
                self._cache.put(contents.identifier, number, loading.data)
        finally:
            del contents.loading[number]
            loading.done.announce()
        return loading

    async def _shown(
        self, contents: Contents, number: int, loading: Loading, who: Credentials
    ) -> bytes | None:
        """What the nodes hold of a block and programs may see; None if it is on its way there.

        The latest version is asked for, since it is nearly always the one that is covered.
        """
        block = contents.layout.block(contents.identifier, number)
        version = await self._blocks.read(block)
        if version.timestamp.time > contents.shown_us(number):
            # Somebody has written to it, and has covered that since, or not yet, or never will.
            await self._refresh(contents, who)
            if number in contents.pushing:
                return None
            loading.stale = False  # whatever was written or cut: from here on it counts
            if version.timestamp.time > contents.shown_us(number):
                if len(contents.hidden) >= UNCOVERED_BLOCKS:
                    self._unveil(contents)
                contents.hidden.add(number)
            block = contents.layout.block(contents.identifier, number)
            version = await self._blocks.read(block, at_time_us=contents.shown_us(number))
        return await plaintext_of(self._cipher, block, version.item)

    async def _read_ahead(self, file: OpenFile, offset: int, stop: int) -> None:
        """Start to read what a sequential reader will want."""
        block_bytes = file.contents.layout.block_bytes
        # The kernel reads ahead itself, and its requests may overtake each other a little.
        if file.expected - file.window <= offset <= file.expected + file.window:
            if offset:
                window = max(2 * file.window, 2 * block_bytes)
                file.window = min(window, self._options.read_ahead_bytes)
            file.expected = max(file.expected, stop)
            file.ahead = max(file.ahead, stop)
        else:
            file.window = 0
            file.expected = file.ahead = stop
        if file.ahead - stop > file.window // 2:
            return
        end = min(stop + file.window, file.contents.covered)
        first = -(-file.ahead // block_bytes)
        for number in range(first, -(-end // block_bytes)):
            if self._prefetching_bytes >= self._options.prefetch_bytes:
                return
            file.ahead = (number + 1) * block_bytes
            if self._is_absent(file.contents, number):
                self._prefetching_bytes += block_bytes
                await Spawn(partial(self._prefetch, file.contents, number, file.who))

    def _is_absent(self, contents: Contents, number: int) -> bool:
        return (
            number not in contents.pushing
            and number not in contents.loading
            and self._cache.get(contents.identifier, number) is None
        )

    async def _prefetch(self, contents: Contents, number: int, who: Credentials) -> None:
        try:
            if self._is_absent(contents, number) and contents.valid_bytes(number):
                await self._load(contents, number, who)
        except (FileSystemError, OperationFailed):
            pass  # whoever reads the block will be told
        finally:
            self._prefetching_bytes -= contents.layout.block_bytes

    # --- writing -----------------------------------------------------------------------------

    def write(self, file: OpenFile, offset: int | None, data: bytes, *, now_ns: int) -> bool:
        """Take `data` at `offset` (None: at the end); whether `write_behind` is to be performed.

        `data` must not change afterwards: it is not copied.
        """
        contents = file.contents
        self._report(file)
        if offset is None:
            offset = contents.size
        stop = offset + len(data)
        if stop > limits.FILE_BYTES:
            raise FileSystemError(errno.EFBIG)
        if self._dirty_bytes >= 2 * self._options.dirty_bytes:
            raise FileSystemError(errno.EIO, "too much unwritten data that the nodes do not take")
        if not data:
            return False
        block_bytes = contents.layout.block_bytes
        number, start = divmod(offset, block_bytes)
        if start + len(data) <= block_bytes:
            self._dirty_bytes += self._dirty_block(contents, number).write(start, data)
        else:
            view = memoryview(data)
            for span in spans(offset, len(data), block_bytes):
                length = span.stop - span.start
                block = self._dirty_block(contents, span.number)
                self._dirty_bytes += block.write(span.start, view[:length])
                view = view[length:]
        contents.wrote(file.who, stop, now_ns)
        self._unsaved.setdefault(contents.identifier, contents)
        return (
            self._options.strict
            or self._dirty_bytes >= self._options.dirty_bytes
            or (
                self._dirty_bytes >= self._options.write_behind_bytes
                and not self._is_writing_behind
            )
        )

    @staticmethod
    def _dirty_block(contents: Contents, number: int) -> DirtyBlock:
        block = contents.dirty.get(number)
        if block is None:
            block = contents.dirty[number] = DirtyBlock()
        return block

    async def write_behind(self, file: OpenFile) -> None:
        """Start to write unwritten blocks; waits as long as there are too many of them."""
        if self._options.strict:
            await self.synchronize(file)
            return
        await self._start_writing_behind()
        while self._dirty_bytes >= self._options.dirty_bytes and self._is_writing_behind:
            await Wait(self._progress)
        self._report(file)

    async def _start_writing_behind(self) -> None:
        if not self._is_writing_behind:
            self._is_writing_behind = True
            await Spawn(self._write_behind)

    async def _write_behind(self) -> None:
        """Write dirty blocks, of the file that became dirty first, until there are few enough."""
        failed: list[ObjectId] = []
        try:
            while self._dirty_bytes > self._options.write_behind_bytes // 2:
                contents = next(
                    (
                        contents
                        for contents in self._unsaved.values()
                        if contents.dirty and contents.identifier not in failed
                    ),
                    None,
                )
                if contents is None:
                    return
                self._unsaved.move_to_end(contents.identifier)
                try:
                    async with contents.turnstile:
                        await self._push(contents, self._settled(contents))
                        if len(contents.uncovered) >= UNCOVERED_BLOCKS:
                            await self._cover(contents)
                except (FileSystemError, OperationFailed) as failure:
                    failed.append(contents.identifier)
                    contents.fail(failure)
        finally:
            self._is_writing_behind = False
            self._progress.announce()

    @staticmethod
    def _settled(contents: Contents) -> list[int]:
        """The dirty blocks, without the one that a sequential writer is in the middle of."""
        hot = (contents.end - 1) // contents.layout.block_bytes
        return [number for number in contents.dirty if number != hot] or list(contents.dirty)

    def _report(self, file: OpenFile) -> None:
        """Tell the handle of a failure that it has not heard of. Once, as NFS does."""
        contents = file.contents
        if file.failures_seen != contents.failures:
            file.failures_seen = contents.failures
            assert contents.failure is not None, "failures are counted where they are kept"
            raise contents.failure

    async def flush(self, file: OpenFile) -> None:
        """Make everything written durable, and visible to who opens the file after this.

        A file without a name cannot be opened again, so that this is `synchronize`'s business.
        """
        contents = file.contents
        self.notice(contents)
        if contents.is_unsaved and contents.links:
            await self._save(contents, file)
        self._report(file)

    async def synchronize(self, file: OpenFile) -> None:
        """`flush` for fsync: also of a file that has no name any more."""
        if file.contents.is_unsaved:
            await self._save(file.contents, file)
        self._report(file)

    async def _save(self, contents: Contents, file: OpenFile | None = None) -> None:
        """Push and cover; a failure is recorded, and raised to the one who asked."""
        try:
            async with contents.turnstile:
                await self._push(contents, contents.dirty)
                await self._cover(contents)
        except (FileSystemError, OperationFailed) as failure:
            contents.fail(failure)
            if file is not None:
                file.failures_seen = contents.failures
                raise

    async def write_back(self, *, older_than_us: int) -> None:
        """Save what has been unsaved for so long."""
        now_us = await Now()
        old = [
            contents
            for contents in self._unsaved.values()
            # The clock may have been set back since.
            if contents.links and not 0 <= now_us - contents.dirty_since_us < older_than_us
        ]
        for position in range(0, len(old), FLUSHES_TOGETHER):
            batch = old[position : position + FLUSHES_TOGETHER]
            await Together(tuple(partial(self._save, contents) for contents in batch))

    # --- pushing: the turnstile is held ------------------------------------------------------

    async def _push(self, contents: Contents, numbers: Iterable[int]) -> None:
        """Write dirty blocks to the nodes, and again what others have overtaken.

        Ensures: what was dirty at the beginning is uncovered at the end.
        """
        await self._write_again(contents)
        await self._push_dirty(contents, numbers)

    async def _push_dirty(self, contents: Contents, numbers: Iterable[int]) -> None:
        queue = deque(sorted(numbers))
        batch = max(1, self._options.batch_bytes // contents.layout.block_bytes)
        workers = min(self._options.batches_in_flight, -(-len(queue) // batch))
        if workers == 1:
            await self._push_batches(contents, queue, batch)
        elif workers:
            await Together((partial(self._push_batches, contents, queue, batch),) * workers)

    async def _push_batches(self, contents: Contents, queue: deque[int], batch: int) -> None:
        while queue:
            numbers = [queue.popleft() for _ in range(min(batch, len(queue)))]
            await self._push_batch(contents, numbers)

    async def _push_batch(self, contents: Contents, numbers: list[int]) -> None:
        """Write some dirty blocks. Those that fail are dirty again."""
        who, layout = contents.writer, contents.layout
        assert who is not None, "a dirty block has a writer"
        incomplete = [number for number in numbers if not self._is_complete(contents, number)]
        bases: dict[int, Buffer] = {}
        if incomplete:
            blocks = await Together(
                tuple(partial(self._block, contents, number, who) for number in incomplete)
            )
            bases = dict(zip(incomplete, blocks, strict=True))
        extents: dict[int, tuple[Extent, ...]] = {}
        for number in numbers:
            dirty = contents.dirty.pop(number)
            extents[number] = dirty.extents()
            block = dirty.over(bases.get(number, b""))
            contents.pushing[number] = block
            contents.revision += 1
            self._cache.drop(contents.identifier, number)
            self._dirty_bytes += len(block) - dirty.cost
            loading = contents.loading.get(number)
            if loading is not None:
                loading.stale = True
        is_asking = not contents.is_ours
        try:
            items = [
                await self._sealed(
                    layout.block(contents.identifier, number), contents.pushing[number]
                )
                for number in numbers
            ]
            written = await self._write_blocks(contents, items, who, is_asking=is_asking)
        except BaseException:
            for number in numbers:
                self._restore(contents, number, extents[number])
            raise
        for number, timestamp in zip(numbers, written, strict=True):
            block = contents.pushing.pop(number)
            self._dirty_bytes -= len(block)
            self._cache.put(contents.identifier, number, block)
            contents.pushed(number, extents[number], layout, timestamp, is_unasked=not is_asking)
        self._progress.announce()

    def _is_complete(self, contents: Contents, number: int) -> bool:
        """Whether a dirty block says everything that the block is to hold."""
        return contents.dirty[number].covers(0, contents.valid_bytes(number))

    async def _sealed(self, block: BlockId, plaintext: Buffer) -> tuple[BlockId, bytes]:
        cipher = self._cipher
        if cipher is None:
            return block, bytes(plaintext)
        nonce = (await Draw(1 << 8 * NONCE_BYTES)).to_bytes(NONCE_BYTES, "big")
        view = plaintext if isinstance(plaintext, bytes) else memoryview(plaintext)
        return block, await Compute(partial(cipher.seal, block, view, nonce=nonce))

    def _restore(self, contents: Contents, number: int, extents: tuple[Extent, ...]) -> None:
        """A block could not be written: it is dirty again, beneath what was written since."""
        block = contents.pushing.pop(number)
        self._dirty_bytes -= len(block)
        self._redirty(contents, number, block, extents)

    def _redirty(
        self, contents: Contents, number: int, block: Buffer, extents: tuple[Extent, ...]
    ) -> None:
        """Make extents of a block dirty, beneath what is."""
        newer = contents.dirty.get(number)
        dirty = contents.dirty[number] = DirtyBlock()
        for start, stop in extents:
            self._dirty_bytes += dirty.write(start, part(block, start, stop))
        if newer is not None:
            self._dirty_bytes -= newer.cost
            for start, stop in newer.extents():
                self._dirty_bytes += dirty.write(start, newer.read(b"", start, stop))

    async def _cover(self, contents: Contents) -> None:
        """Update the inode, so that it covers all blocks that were written."""
        for _ in range(ATTEMPTS):
            if not contents.is_unsaved:
                return
            await self._write_again(contents)
            who, changes, writes = contents.writer, contents.changes, contents.writes
            assert who is not None, "what is unsaved has a writer"
            # Bytes that were written since the blocks were pushed are covered another time.
            end = contents.pushed_end
            is_all = not contents.dirty
            arguments = inode.Writing(end, contents.layout.newest, contents.mtime_ns, changes)
            try:
                await self._update(contents, WRITE, arguments, who)
            except FileSystemError as refusal:
                if refusal.code == errno.EAGAIN:
                    await self._refresh(contents, who)
                elif changes and refusal.code in (errno.EPERM, errno.EACCES):
                    # Somebody else took the right to change attributes, not to write: without them
                    # the bytes can still be saved.
                    contents.changes = NO_CHANGES
                    contents.fail(refusal)
                else:
                    raise
                continue
            if contents.overtaken():
                continue  # as the update has told
            contents.uncovered.clear()
            contents.is_overtaken = False
            contents.pushed_end = 0
            if contents.end <= end:
                contents.end = 0
            if is_all and contents.writes == writes:
                contents.saved_writes = writes
                contents.changes = NO_CHANGES
                self._unsaved.pop(contents.identifier, None)
            return
        raise FileSystemError(errno.EAGAIN, "other mounts keep truncating the file")

    async def _write_blocks(
        self,
        contents: Contents,
        items: Sequence[tuple[BlockId, bytes]],
        who: Credentials,
        *,
        is_asking: bool = True,
    ) -> Sequence[BlockTimestamp]:
        """Make blocks durable, and remember until when they are. Their timestamps.

        They are later than what is covered already: nobody is to see them before the next update.
        """
        after_us = contents.version if is_asking else max(contents.version, contents.pushed_us)
        written = await self._blocks.write_many(items, who, after_us=after_us, is_asking=is_asking)
        contents.pushed_us = max(contents.pushed_us, *(timestamp.time for timestamp in written))
        return written

    async def _update(
        self, contents: Contents, method: str, arguments: Record, who: Credentials
    ) -> None:
        """Update the inode, at a time not before that of the blocks that were written for it.

        A version of a file is its blocks as of the version's time. [design §4]
        """
        answer: inode.ContentsChanged = await self._metadata.update(
            (contents.identifier,), method, arguments, who, not_before_us=contents.pushed_us
        )
        attributes = answer.attributes
        self._metadata.learn(contents.identifier, attributes, await Now())
        self._adopt(contents, attributes, ours_after=answer.before)

    async def _write_again(self, contents: Contents) -> None:
        """Write what others have overtaken, so that it comes after what they have changed.

        Only the bytes that were written here are, to the block as it is now.
        """
        overtaken = contents.overtaken()
        batch = max(1, self._options.batch_bytes // contents.layout.block_bytes)
        for position in range(0, len(overtaken), batch):
            numbers = overtaken[position : position + batch]
            for number in numbers:
                block = contents.uncovered[number]
                target = block_id(contents.identifier, incarnation=block.incarnation, number=number)
                # Not as of its time: somebody else may have written at the same one.
                version = await self._blocks.written(target, block.timestamp)
                written = await plaintext_of(self._cipher, target, version.item)
                del contents.uncovered[number]
                self._redirty(contents, number, written, block.extents)
            await self._push_dirty(contents, numbers)

    # --- truncating --------------------------------------------------------------------------

    async def truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """Set the size; takes effect at once, for all mounts."""
        if size > limits.FILE_BYTES:
            raise FileSystemError(errno.EFBIG)
        async with contents.turnstile:
            self._cut_dirty(contents, size)
            if contents.dirty or contents.uncovered or contents.changes:
                await self._push(contents, contents.dirty)
                await self._cover(contents)
            for _ in range(ATTEMPTS):
                try:
                    await self._truncate(contents, size, who)
                except FileSystemError as refusal:
                    if refusal.code != errno.EAGAIN:
                        raise
                    await self._refresh(contents, who)
                else:
                    return
        raise FileSystemError(errno.EAGAIN, "other mounts keep changing the file")

    def _cut_dirty(self, contents: Contents, size: int) -> None:
        """Forget dirty bytes from `size` on; those on the nodes remain to be cut there."""
        block_bytes = contents.layout.block_bytes
        for number in [n for n in contents.dirty if (n + 1) * block_bytes > size]:
            block = contents.dirty[number]
            self._dirty_bytes += block.cut(max(0, size - number * block_bytes))
            if not block.stop:
                self._dirty_bytes -= block.cost
                del contents.dirty[number]
        contents.end = max(contents.pushed_end, min(contents.end, size))
        self._progress.announce()

    async def _truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """One attempt. Requires: nothing is uncovered."""
        version, incarnation, layout = 0, 0, contents.layout
        number, boundary = divmod(size, layout.block_bytes)
        if size < contents.covered:
            if not layout.has_room_to_cut(number):
                await self._merge(contents, who)
                layout = contents.layout
            incarnation = layout.newest + 1 + await Draw(INCARNATION_GAP)
            if boundary:
                version = contents.version
                block = await self._block(contents, number, who)
                if len(block):
                    item = await self._sealed(
                        block_id(contents.identifier, incarnation=incarnation, number=number),
                        part(block, 0, min(boundary, len(block))),
                    )
                    await self._write_blocks(contents, (item,), who)
        writes = contents.writes
        arguments = inode.Truncation(size, incarnation, version)
        await self._update(contents, TRUNCATE, arguments, who)
        self._invalidate(contents, number)
        if contents.writes == writes and not contents.dirty:
            contents.end = 0
            contents.saved_writes = writes
            self._unsaved.pop(contents.identifier, None)

    async def _merge(self, contents: Contents, who: Credentials) -> None:
        """Make room in the layout: give the blocks of two ranges one incarnation."""
        layout = contents.layout
        version = contents.version
        first, stop = layout.cheapest_merge(contents.covered)
        incarnation = layout.newest + 1 + await Draw(INCARNATION_GAP)
        batch = max(1, self._options.batch_bytes // layout.block_bytes)
        for position in range(first, stop, batch):
            items = []
            for number in range(position, min(position + batch, stop)):
                block = await self._block(contents, number, who)
                if len(block):
                    target = block_id(contents.identifier, incarnation=incarnation, number=number)
                    items.append(await self._sealed(target, block))
            if items:
                await self._write_blocks(contents, items, who)
        arguments = inode.Merging(first, stop, incarnation, version)
        await self._update(contents, MERGE, arguments, who)
