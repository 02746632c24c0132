"""Reading a file's bytes: from memory, from the nodes, and ahead of sequential readers.

A version of a file is its blocks as of the time of the inode update that last changed the contents
[design §4]: so size and blocks belong together, and blocks that no update covers are not shown.
The latest version of a block nearly always is the covered one, so it is asked for first. If its
time is later than the inode's, the inode is asked for again; if the version is still not covered,
the block is read as of the inode's time. A mount shows its own uncovered blocks to its programs.
(tests/unit/filesystem/test_contents.py, from
`test_what_is_not_covered_is_shown_to_its_mount_alone` on.)

Concurrency: everything is touched between awaits only, and checked again after each.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial

from bftfs.conversation import Compute, Draw, Spawn, Together, Wait
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.errors import FileSystemError, OperationFailed, PeerFault
from bftfs.filesystem.attributes import spans
from bftfs.filesystem.block_cache import BlockCache, Load
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.filesystem.dirty import Buffer, part
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.services import BlockService, Options
from bftfs.identifiers import BlockId


@dataclass(slots=True, eq=False)
class BlockReader:
    """Reads the blocks of files, as this mount's programs see them."""

    metadata: Metadata
    blocks: BlockService
    cipher: BlockCipher | None
    options: Options
    cache: BlockCache
    prefetching_bytes: int = 0

    async def read(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        contents = file.contents
        if self.options.strict:
            await self.refresh(contents, file.who)
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

    async def refresh(self, contents: Contents, who: Credentials) -> None:
        """Ask the nodes for the file's attributes."""
        contents.adopt(await self.metadata.latest(contents.identifier, who))

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
                return block
            if not contents.valid_bytes(number):
                return b""
            load = cache.load(inode, number)
            if load is not None:
                await Wait(load.done)
            else:
                load = await self._load(contents, number, who)
            block = cache.result(load)
            if block is not None:
                return block

    async def _load(self, contents: Contents, number: int, who: Credentials) -> Load:
        """Read a block from the nodes into the cache."""
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
    ) -> bytes | None:
        """The version of a block that programs may see; None if it is on its way to the nodes."""
        block = contents.layout.block(contents.identifier, number)
        version = await self.blocks.read(block)
        if version.timestamp.time > contents.shown_us(number):
            # Another mount has written it, and has covered that since, or not yet, or never will.
            await self.refresh(contents, who)
            if number in contents.pushing:
                return None
            load.is_outdated = False  # what was dropped so far: the block is read again now
            if version.timestamp.time > contents.shown_us(number):
                contents.saw_uncovered_elsewhere(number)
            block = contents.layout.block(contents.identifier, number)
            version = await self.blocks.read(block, at_time_us=contents.shown_us(number))
        return await plaintext_of(self.cipher, block, version.item)

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
                await self._load(contents, number, who)
        except (FileSystemError, OperationFailed):
            pass  # a reader of the block will meet the failure itself
        finally:
            self.prefetching_bytes -= contents.layout.block_bytes


async def plaintext_of(cipher: BlockCipher | None, block: BlockId, item: bytes | None) -> bytes:
    """The contents of a data-item; empty if it was never written."""
    if item is None:
        return b""
    if cipher is None:
        return item
    try:
        plaintext: bytes = await Compute(partial(cipher.open, block, item))
    except PeerFault as fault:
        raise FileSystemError(errno.EIO, str(fault)) from fault
    return plaintext


async def sealed(
    cipher: BlockCipher | None, block: BlockId, plaintext: Buffer
) -> tuple[BlockId, bytes]:
    """The block with the data-item to write for it."""
    if cipher is None:
        return block, bytes(plaintext)
    nonce = (await Draw(1 << 8 * NONCE_BYTES)).to_bytes(NONCE_BYTES, "big")
    view = plaintext if isinstance(plaintext, bytes) else memoryview(plaintext)
    return block, await Compute(partial(cipher.seal, block, view, nonce=nonce))
