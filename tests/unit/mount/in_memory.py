"""A mount whose cluster is a few dictionaries.

    python -m tests.unit.mount.in_memory DIRECTORY LOG OPTIONS

The file system and its methods are the real ones; there are no replicas, fragments or network. Some
extended attributes command what a test needs to happen: setting `user.stall` takes until it is
removed, `user.freeze` makes all writes of blocks wait until it is removed, and setting
`user.foreign` has another mount rewrite the file with the value, and `user.few` makes the kernel
forget files that are more than the value, and logs how many inodes it knows.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from bftfs.conversation import Event, Wait
from bftfs.credentials import ALL_RIGHTS, Credentials
from bftfs.engine import Engine
from bftfs.filesystem.capacity import Capacity
from bftfs.filesystem.inode import ExtendedName, ExtendedSetting
from bftfs.filesystem.objects import AttributesAfter, NoArguments
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import GET_ATTRIBUTES
from bftfs.identifiers import BlockId, ObjectId, ObjectKind, object_id
from bftfs.limits import SECOND_US
from bftfs.query_update.object_type import Record
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.runtime import clock
from bftfs.runtime.network import Network
from mount.operations import Operations
from mount.options import parse
from mount.serve import Mount, open_log
from tests.builders import Answer, InMemoryBlocks, InMemoryObjects

ROOT_DIRECTORY = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
SOURCE = "in, memory"
VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
STALL = b"user.stall"
STALLED = "stalled"  # what the log says then
FREEZE = b"user.freeze"
FOREIGN = b"user.foreign"
FEW = b"user.few"
KNOWN = "inodes known: "  # what the log says then, and a number


class Metadata(InMemoryObjects):
    """Objects in memory; some attributes are commands."""

    def __init__(self) -> None:
        super().__init__(clock.now_us)
        self.stalled = Event()
        self.frozen = False
        self.thawed = Event()
        self.other_mount: FileSystem | None = None
        self.operations: Operations | None = None

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
        vouch: Any = None,
        reaching: Any = None,
        earlier: Any = None,
    ) -> Answer:
        match arguments:
            case ExtendedSetting(name=name) if name == STALL:
                logging.getLogger(__name__).warning(STALLED)
                await Wait(self.stalled)
            case ExtendedName(name=name) if name == STALL:
                self.stalled.announce()
            case ExtendedSetting(name=name) if name == FREEZE:
                self.frozen = True
            case ExtendedName(name=name) if name == FREEZE:
                self.frozen = False
                self.thawed.announce()
            case ExtendedSetting(name=name, value=value) if name == FEW:
                assert self.operations is not None
                self.operations.forget_files(int(value))
                logging.getLogger(__name__).warning(f"{KNOWN}{len(self.operations._inodes)}")
            case ExtendedSetting(name=name, value=value) if name == FOREIGN:
                await self._rewrite(objects[0], value, who)
                attributes = self.perform(GET_ATTRIBUTES, objects, NoArguments(), who)
                return Answer(AttributesAfter((attributes,)))
        return await super().update(
            objects,
            method,
            arguments,
            who,
            not_before_us=not_before_us,
            vouch=vouch,
            reaching=reaching,
            earlier=earlier,
        )

    async def _rewrite(self, identifier: ObjectId, value: bytes, who: Credentials) -> None:
        """What another mount does."""
        other = self.other_mount
        assert other is not None
        file = await other.open(identifier, os.O_WRONLY | os.O_TRUNC, who)
        other.write(file, 0, value, now_ns=time.time_ns())
        await other.release(file)


class Blocks(InMemoryBlocks):
    """The latest version of each block; writes wait while they are frozen."""

    def __init__(self, metadata: Metadata) -> None:
        super().__init__()
        self.metadata = metadata

    async def capacity(self) -> Capacity:
        return Capacity(0, 1 << 40, 0)

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, bytes]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
        permit: Any = None,
    ) -> list[BlockTimestamp]:
        while self.metadata.frozen:
            await Wait(self.metadata.thawed)
        for block, _ in items:
            self.versions.pop(block, None)
        return await super().write_many(
            items, credentials, after_us=after_us, is_asking=is_asking, permit=permit
        )


class Host(Network):
    """A network without nodes: an engine."""

    def __init__(self) -> None:
        engine = Engine(
            send=lambda *_: None,
            now_us=clock.now_us,
            monotonic_us=clock.monotonic_us,
            draw=clock.draw,
        )
        links: Any = SimpleNamespace(engine=engine)
        super().__init__(links)


def main(mountpoint: str, log_path: str, words: str) -> None:
    """Mount, say `ready`, serve."""
    options = parse(words)
    metadata = Metadata()
    blocks = Blocks(metadata)

    def view(options: Options) -> FileSystem:
        root, volume = ROOT_DIRECTORY, VOLUME
        return FileSystem(metadata, blocks, blocks, None, root=root, volume=volume, options=options)

    other_mount = metadata.other_mount = view(Options())
    files = view(
        Options(
            strict=options.strict,
            read_only=options.read_only,
            attribute_timeout_us=round(options.cached_attributes_s * SECOND_US),
            entry_timeout_us=round(options.cached_entries_s * SECOND_US),
            absence_timeout_us=round(options.cached_absence_s * SECOND_US),
        )
    )

    async def session() -> None:
        host = Host()
        await host.perform(other_mount.format(Credentials(uid=0, gid=0)))
        with open_log(Path(log_path)) as log:
            mount = Mount(
                host,
                files,
                None,
                options,
                log,
                grant=ALL_RIGHTS,
                source=SOURCE,
                mountpoint=Path(mountpoint),
            )
            metadata.operations = mount._operations
            await mount.run(lambda: print("ready", flush=True))

    trio.run(session)
    print(len(blocks.versions), "blocks")


if __name__ == "__main__":
    main(*sys.argv[1:])
