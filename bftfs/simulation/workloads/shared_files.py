"""Clients that write two files together, as mounts of either consistency do."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from random import Random
from typing import Final

from bftfs import limits
from bftfs.conversation import Conversation, Now, Pause
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import ObjectId
from bftfs.simulation.checkers.shared_files import SharedFiles
from bftfs.simulation.deployment import CREDENTIALS

TABLE: Final = b"table"
LOG: Final = b"log"
LINES: Final = (8, 30, 30, 500, limits.BLOCK_BYTES_MIN + 100)  # sizes
PAUSE_US: Final = 30_000  # between two writes to an open file, at most


async def make_shared_files(system: FileSystem, root: ObjectId) -> None:
    """Make both, empty."""
    for name in (TABLE, LOG):
        await system.make_node(root, name, stat.S_IFREG | 0o600, CREDENTIALS)


def use_shared_files(
    system: FileSystem, root: ObjectId, shared: SharedFiles, random: Random, name: str
) -> Conversation[None]:
    """Write some records or lines, and sync or close them."""
    appends = random.random() < 0.5
    pauses = [random.randrange(PAUSE_US) for _ in range(random.choice((1, 1, 2, 4)))]
    sizes = random.choices(LINES, k=len(pauses))
    is_synced = random.random() < 0.3
    written: list[tuple[int | None, bytes]] = [
        (None, shared.new_line(name, size)) if appends else shared.new_record(name)
        for size in sizes
    ]

    async def use() -> None:
        found = await system.lookup(root, LOG if appends else TABLE, CREDENTIALS)
        file = await system.open(found.identifier, os.O_RDWR, CREDENTIALS)
        try:
            for pause_us, (offset, content) in zip(pauses, written, strict=True):
                await Pause(pause_us)
                if system.write(file, offset, content, now_ns=await Now() * 1_000):
                    await system.write_behind(file)
            if is_synced:
                await system.synchronize(file)
                shared.closed.update(content for _, content in written)
        except (FileSystemError, OperationFailed):
            with suppress(FileSystemError, OperationFailed):
                await system.release(file)  # as a kernel does for a program that has been told
            raise
        await system.release(file)
        shared.closed.update(content for _, content in written)

    return use()


async def read_shared_files(system: FileSystem, root: ObjectId, shared: SharedFiles) -> None:
    """Take down what both contain."""
    shared.table, shared.log = [await _contents(system, root, name) for name in (TABLE, LOG)]


async def _contents(system: FileSystem, root: ObjectId, name: bytes) -> bytes:
    try:
        found = await system.lookup(root, name, CREDENTIALS)
    except FileSystemError as refusal:
        if refusal.code != errno.ENOENT:
            raise
        return b""
    file = await system.open(found.identifier, os.O_RDONLY, CREDENTIALS)
    contents = bytes(await system.read(file, 0, found.attributes.size + limits.MIB))
    await system.release(file)
    return contents
