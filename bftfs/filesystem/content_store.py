"""The contents of all files that a mount has open: their handles, and when writes reach the nodes.

Written bytes wait in memory until the file is closed or synced, until they are a few seconds old
(`write_back`), or until there are many: from `write_behind_bytes` on they are written in the
background, and from `dirty_bytes` on writers wait. A failure is reported once to each handle.
`contents` draws the states of a file; `block_reading` and `block_writing` do the work.

Concurrency: `write` is synchronous. Pushing, covering and truncating hold the file's lock; reads
and writes go on meanwhile. Everything else is touched between awaits only.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from functools import partial
from itertools import islice
from typing import Final

from bftfs import limits
from bftfs.conversation import Now, Spawn, Together, Wait
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.block_memory import BlockCache, Buffer
from bftfs.filesystem.block_names import Part
from bftfs.filesystem.block_pushing import BlockPusher
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.block_rewriting import BlockRewriter
from bftfs.filesystem.block_versions import VersionWriter
from bftfs.filesystem.block_writing import BlockWriter
from bftfs.filesystem.contents import Contents, Failure, OpenFile, Sharing
from bftfs.filesystem.epochs import Sealing
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.options import Options
from bftfs.filesystem.unsaved import Unsaved
from bftfs.identifiers import ObjectId
from bftfs.read_write.client import ReadWriteClient

IDLE_CONTENTS: Final = 4_096  # files that nobody has open, whose blocks may be cached
FLUSHES_TOGETHER: Final = 16  # files that are written back at the same time


class ContentStore:
    """The contents of all files that are open, or were."""

    def __init__(
        self,
        metadata: Metadata,
        blocks: ReadWriteClient,
        sealing: Sealing,
        options: Options,
        permissions: Metadata | None = None,
    ) -> None:
        """`permissions` are those of the present, if `metadata` is of a past."""
        self._options = options
        self._contents: OrderedDict[ObjectId, Contents] = OrderedDict()
        self._cache = BlockCache(0 if options.strict else options.cache_bytes)
        self._unsaved = unsaved = Unsaved()
        self._reader = reader = BlockReader(
            metadata, blocks, sealing, options, self._cache, permissions or metadata
        )
        versions = VersionWriter(metadata, blocks, self._cache)
        pusher = BlockPusher(versions, sealing, options, self._cache, reader, unsaved)
        self._rewriter = BlockRewriter(versions, sealing, options, reader, unsaved)
        self._writer = BlockWriter(versions, pusher, self._rewriter, reader, unsaved)
        self._is_writing_behind = False

    # --- handles -----------------------------------------------------------------------------

    def known(self, identifier: ObjectId) -> Contents | None:
        """The contents of the file, if the mount has them in memory."""
        return self._contents.get(identifier)

    def open(
        self,
        identifier: ObjectId,
        attributes: Attributes,
        flags: int,
        who: Credentials,
        *,
        is_new: bool = False,
    ) -> OpenFile:
        """A handle on the file whose latest attributes are given; `flags` are those of open(2).

        `is_new`: this mount has just made it, and these are its first attributes.
        """
        strict = self._options.strict
        contents = self.contents_of(identifier, attributes)
        if is_new and not strict and contents.sharing is Sharing.SHARED:
            contents.sharing = Sharing.EXCLUSIVE
            contents.names.forget(has_all=True)
        contents.handles += 1
        keep_cache = contents.is_kernel_current and not strict
        contents.is_kernel_current = True
        return OpenFile(
            contents,
            who,
            append=bool(flags & os.O_APPEND),
            reads=flags & os.O_ACCMODE != os.O_WRONLY,
            keep_cache=keep_cache,
            failures_seen=contents.failures,
            is_access_noted=bool(flags & os.O_NOATIME),
        )

    def contents_of(self, identifier: ObjectId, attributes: Attributes) -> Contents:
        """The contents of the file whose latest attributes are given."""
        if attributes.layout is None:
            raise FileSystemError(errno.EINVAL, "not a regular file")
        contents = self._contents.get(identifier)
        if contents is None:
            contents = Contents(identifier, attributes, attributes.layout, self._cache)
            self._contents[identifier] = contents
            self._drop_idle()
        else:
            contents.adopt(attributes)
            self._contents.move_to_end(identifier)
        return contents

    def _drop_idle(self) -> None:
        """Forget files that nobody has open, if there are too many; a few at a time."""
        if len(self._contents) > IDLE_CONTENTS:
            for identifier in tuple(islice(self._contents, IDLE_CONTENTS // 64)):
                contents = self._contents[identifier]
                if not contents.handles and contents.lock.is_idle:
                    del self._contents[identifier]
                    self._cache.drop_from(identifier, 0)
                else:
                    self._contents.move_to_end(identifier)

    def abandon(self, file: OpenFile) -> None:
        """Close a handle that nothing was written to."""
        file.contents.handles -= 1
        if not file.contents.handles:
            file.contents.closed()

    async def release(self, file: OpenFile) -> None:
        """Close a handle. Bytes that cannot be written are dropped with the last one."""
        contents = file.contents
        failure: Failure | None = None
        try:
            await self.flush(file)
        except (FileSystemError, OperationFailed) as unwritten:
            failure = unwritten
        contents.handles -= 1
        if not contents.handles and contents.is_unsaved:
            async with contents.lock:
                if not contents.handles:
                    self._unsaved.discard(contents)
        if not contents.handles:
            contents.closed()
        if failure is not None:
            raise failure

    # --- reading and writing -----------------------------------------------------------------

    async def read(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        return await self._reader.read(file, offset, size)

    async def require_part(
        self,
        identifier: ObjectId,
        incarnation: int,
        number: int,
        part: Part,
        who: Credentials,
    ) -> None:
        """Read a part of a block. Raises what `BlockReader.version` raises."""
        await self._reader.require_part(identifier, incarnation, number, part, who)

    async def open_named(self, identifier: ObjectId, flags: int, who: Credentials) -> OpenFile:
        """A handle on the file as the nodes have it now, with the names of its first blocks."""
        contents = self._contents.get(identifier)
        first = None
        if flags & os.O_ACCMODE == os.O_RDONLY:
            first = await self._reader.begin_first(identifier, contents, who)
        try:
            found = await self._reader.ask_names(identifier, contents, 0, who)
            file = self.open(identifier, found.attributes, flags, who)
            self._reader.take_names(file.contents, 0, found)
            contents = file.contents
        finally:
            if first is not None:
                first.end(contents)
        return file

    async def truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """Set the size; takes effect at once, for all mounts."""
        if size > limits.FILE_BYTES:
            raise FileSystemError(errno.EFBIG)
        async with contents.lock:
            await self._writer.truncate(contents, size, who)

    async def seal_again(self, file: OpenFile, first: int, stop: int) -> int:
        """Write some blocks again under the present key; how many. See `BlockRewriter`."""
        async with file.contents.lock:
            return await self._rewriter.seal_again(file.contents, first, stop, file.who)

    def write(self, file: OpenFile, offset: int | None, data: bytes, *, now_ns: int) -> bool:
        """Take `data` at `offset` (None: at the end); True if `write_behind` is to be performed.

        `data` must not change afterwards: it is not copied.
        """
        contents, unsaved, options = file.contents, self._unsaved, self._options
        self._report(file)
        is_append = offset is None
        if offset is None:
            offset = contents.size
        stop = offset + len(data)
        if stop > limits.FILE_BYTES:
            raise FileSystemError(errno.EFBIG)
        if unsaved.dirty_bytes >= 2 * options.dirty_bytes:
            raise FileSystemError(errno.EIO, "too much unwritten data that the nodes do not take")
        if not data:
            return False
        unsaved.take(contents, offset, data)
        contents.wrote(file.who, offset, stop, now_ns, is_append=is_append)
        return (
            options.strict
            or unsaved.dirty_bytes >= options.dirty_bytes
            or (unsaved.dirty_bytes >= options.write_behind_bytes and not self._is_writing_behind)
        )

    def _report(self, file: OpenFile) -> None:
        """Raise a failure that this handle has not reported yet: once, as NFS does."""
        contents = file.contents
        if file.failures_seen != contents.failures:
            file.failures_seen = contents.failures
            assert contents.failure is not None, "failures are counted where they are kept"
            raise contents.failure

    # --- writing behind ----------------------------------------------------------------------

    async def write_behind(self, file: OpenFile) -> None:
        """Start to write unwritten blocks; waits as long as there are too many of them."""
        if self._options.strict:
            await self.synchronize(file)
            return
        if not self._is_writing_behind:
            self._is_writing_behind = True
            await Spawn(self._write_behind)
        while self._unsaved.dirty_bytes >= self._options.dirty_bytes and self._is_writing_behind:
            await Wait(self._unsaved.progress)
        self._report(file)

    async def _write_behind(self) -> None:
        """Write dirty blocks, of the file that became dirty first, until there are few enough."""
        unsaved = self._unsaved
        failed: set[ObjectId] = set()
        try:
            while unsaved.dirty_bytes > self._options.write_behind_bytes // 2:
                waiting = (
                    contents
                    for contents in unsaved.files.values()
                    if contents.dirty and contents.identifier not in failed
                )
                contents = next(waiting, None)
                if contents is None:
                    return
                unsaved.files.move_to_end(contents.identifier)
                try:
                    async with contents.lock:
                        await self._writer.push(contents, self._settled(contents))
                        if len(contents.uncovered) >= contents.most_uncovered:
                            await self._writer.cover(contents)
                except (FileSystemError, OperationFailed) as failure:
                    failed.add(contents.identifier)
                    contents.fail(failure)
        finally:
            self._is_writing_behind = False
            unsaved.progress.announce()

    @staticmethod
    def _settled(contents: Contents) -> list[int]:
        """The dirty blocks, without the one that a sequential writer is in the middle of."""
        hot = (contents.end - 1) // contents.layout.block_bytes
        return [number for number in contents.dirty if number != hot] or list(contents.dirty)

    async def flush(self, file: OpenFile) -> None:
        """Make all writes durable, and visible to later opens of the file.

        A file without a name cannot be opened again: only `synchronize` saves it.
        """
        contents = file.contents
        self._reader.notice(contents)
        if contents.is_unsaved and contents.attributes.links:
            await self._save(contents, file)
        self._report(file)

    async def synchronize(self, file: OpenFile) -> None:
        """`flush` for fsync: also of a file that has no name any more."""
        if file.contents.is_unsaved:
            await self._save(file.contents, file)
        self._report(file)

    async def _save(self, contents: Contents, file: OpenFile | None = None) -> None:
        """Push and cover; a failure is recorded, and raised to the handle that asked."""
        try:
            async with contents.lock:
                await self._writer.push(contents, contents.dirty)
                await self._writer.cover(contents)
        except (FileSystemError, OperationFailed) as failure:
            contents.fail(failure)
            if file is not None:
                file.failures_seen = contents.failures
                raise

    async def write_back(self, *, older_than_us: int) -> None:
        """Save the files that have been unsaved for so long."""
        now_us = await Now()
        old = [
            contents
            for contents in self._unsaved.files.values()
            # The clock may have been set back since.
            if contents.attributes.links
            and not 0 <= now_us - contents.dirty_since_us < older_than_us
        ]
        for position in range(0, len(old), FLUSHES_TOGETHER):
            batch = old[position : position + FLUSHES_TOGETHER]
            await Together(tuple(partial(self._save, contents) for contents in batch))
