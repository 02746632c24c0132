"""A mount whose cluster is a few dictionaries.

    python -m tests.unit.mount.in_memory DIRECTORY LOG OPTIONS

The file system and its methods are the real ones; there are no replicas, fragments or network. Some
extended attributes command what a test needs to happen: setting `user.stall` takes until it is
removed, `user.freeze` makes all writes of blocks wait until it is removed, and setting
`user.foreign` has another mount rewrite the file with the value.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from sortedcontainers import SortedDict

from bftfs.conversation import Conversation, Event, Wait
from bftfs.credentials import Credentials
from bftfs.engine import Engine, Outcome, Running
from bftfs.errors import FileSystemError
from bftfs.filesystem import object_types
from bftfs.filesystem.capacity import Capacity
from bftfs.filesystem.extended_attributes import ExtendedName, ExtendedSetting
from bftfs.filesystem.objects import AttributesAfter, NoArguments
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import GET_ATTRIBUTES
from bftfs.identifiers import BlockId, ClientId, ObjectId, ObjectKind, object_id
from bftfs.limits import SECOND_US
from bftfs.query_update.object_type import Caller, Record, Refusal, encode_record
from bftfs.read_write.timestamp import ZERO, BlockTimestamp
from bftfs.runtime import clock
from mount.logs import open_log
from mount.options import parse
from mount.session import Mount

ROOT_DIRECTORY = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
SOURCE = "in, memory"
VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
STALL = b"user.stall"
STALLED = "stalled"  # what the log says then
FREEZE = b"user.freeze"
FOREIGN = b"user.foreign"


@dataclass
class Answered:
    answer: Any


class State:
    """An object's map, as an update in progress sees it."""

    def __init__(self, identifier: ObjectId, rows: SortedDict) -> None:
        self.object = identifier
        self.rows = rows

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key in self.rows.irange(start, stop, inclusive=(True, False), reverse=reverse):
            yield key, self.rows[key]

    def put(self, key: bytes, value: bytes) -> None:
        self.rows[key] = value

    def delete(self, key: bytes) -> None:
        self.rows.pop(key, None)


class Metadata:
    """Objects in one dictionary each."""

    def __init__(self) -> None:
        self.types = object_types()
        self.objects: dict[ObjectId, SortedDict] = {}
        self.time_us = 0
        self.stalled = Event()
        self.frozen = False
        self.thawed = Event()
        self.other_mount: FileSystem | None = None

    async def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record, who: Credentials
    ) -> Answered:
        return self._invoke(objects, method, arguments, who)

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
    ) -> Answered:
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
            case ExtendedSetting(name=name, value=value) if name == FOREIGN:
                await self._rewrite(objects[0], value, who)
                method, arguments = GET_ATTRIBUTES, NoArguments()
                return Answered(
                    AttributesAfter((self._invoke(objects, method, arguments, who).answer,))
                )
        self.time_us = max(self.time_us + 1, not_before_us, clock.now_us())
        return self._invoke(objects, method, arguments, who)

    async def _rewrite(self, identifier: ObjectId, value: bytes, who: Credentials) -> None:
        """What another mount does."""
        other = self.other_mount
        assert other is not None
        file = await other.open(identifier, os.O_WRONLY | os.O_TRUNC, who)
        other.write(file, 0, value, now_ns=time.time_ns())
        await other.release(file)

    def _invoke(
        self, objects: tuple[ObjectId, ...], name: str, arguments: Record, who: Credentials
    ) -> Answered:
        method = self.types.method(name)
        assert method is not None
        states: dict[ObjectId, State] = {}
        for identifier in objects:
            rows = self.objects.get(identifier, SortedDict())
            # Directories may be large; only small objects are copied, to be able to refuse.
            states[identifier] = State(identifier, rows.copy() if len(rows) < 64 else rows)
        caller = Caller(ClientId(bytes(16)), who.uid, who.gid, who.groups, self.time_us)
        decoded = self.types.decode_arguments(method, encode_record(arguments))
        try:
            answer = method.invoke(tuple(states[each] for each in objects), decoded, caller)
        except Refusal as refusal:
            raise FileSystemError(refusal.code) from None
        if method.update:
            for identifier, state in states.items():
                self.objects[identifier] = state.rows
        return Answered(self.types.decode_answer(method, encode_record(answer)))


@dataclass
class Version:
    item: bytes | None
    timestamp: BlockTimestamp


class Blocks:
    """The latest version of each block."""

    def __init__(self, metadata: Metadata) -> None:
        self.items: dict[BlockId, bytes] = {}
        self.metadata = metadata

    async def capacity(self) -> Capacity:
        return Capacity(0, 1 << 40)

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, bytes]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
    ) -> Sequence[BlockTimestamp]:
        while self.metadata.frozen:
            await Wait(self.metadata.thawed)
        for block, item in items:
            self.items[block] = bytes(item)
        return [ZERO] * len(items)

    async def read(self, block: BlockId, *, at_time_us: int | None = None) -> Version:
        return Version(self.items.get(block), ZERO)

    async def written(self, block: BlockId, timestamp: BlockTimestamp) -> Version:
        return await self.read(block)


class Host:
    """An engine whose timers run on trio."""

    def __init__(self) -> None:
        self.engine = Engine(
            send=lambda *_: None,
            now_us=clock.now_us,
            monotonic_us=clock.monotonic_us,
            draw=clock.draw,
        )

    def start(self, conversation: Conversation[Any], outcome: Outcome) -> Running:
        return self.engine.start(conversation, outcome)

    async def perform(self, conversation: Conversation[Any]) -> Any:
        ended: list[tuple[Any, BaseException | None]] = []
        done = trio.Event()

        def end(result: Any, error: BaseException | None) -> None:
            ended.append((result, error))
            done.set()

        self.engine.start(conversation, end)
        await done.wait()
        result, error = ended[0]
        if error is not None:
            raise error
        return result


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
                host, files, None, options, log, source=SOURCE, mountpoint=Path(mountpoint)
            )
            await mount.run(lambda: print("ready", flush=True))

    trio.run(session)
    print(len(blocks.items), "blocks")


if __name__ == "__main__":
    main(*sys.argv[1:])
