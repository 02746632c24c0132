"""A file system without nodes: the real methods on maps in memory, and blocks in a dictionary.

`Objects` runs the registered methods as a Q/U service would: atomically, one after the other, with
encoded arguments and answers, and nothing kept of a method that refuses. `Host` runs conversations
on the real engine in virtual time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from sortedcontainers import SortedDict

from bftfs import limits
from bftfs.conversation import Now, Pause
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import BlockCipher
from bftfs.engine import Engine
from bftfs.errors import FileSystemError
from bftfs.filesystem import object_types
from bftfs.filesystem.capacity import Capacity
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import FORMAT
from bftfs.filesystem.volume import Format
from bftfs.identifiers import BlockId, ClientId, ObjectId, ObjectKind, kind_of, object_id
from bftfs.query_update.object_type import Caller, Record, Refusal, encode_record
from bftfs.read_write.timestamp import BlockTimestamp, beginning_of

Result = TypeVar("Result")

START_US = 1_700_000_000_000_000
ROOT = Credentials(0, 0)
ALICE = Credentials(1000, 1000, (2000,))
BOB = Credentials(1001, 1001)
CAROL = Credentials(1002, 1002, (2000,))

VOLUME_ID = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
ROOT_ID = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
_unique = count(1)


def fresh(kind: ObjectKind) -> ObjectId:
    """An identifier that nothing has."""
    return object_id(kind, placement=0, unique=next(_unique).to_bytes(14, "big"))


class Overlay:
    """A state while a method runs: what it changes is kept apart, and held to the limits."""

    def __init__(self, identifier: ObjectId, rows: SortedDict) -> None:
        self.object = identifier
        self._rows = rows
        self.delta: dict[bytes, bytes | None] = {}
        self.touched = 0  # keys read, changed or passed over

    def get(self, key: bytes) -> bytes | None:
        self.touched += 1
        return self.delta[key] if key in self.delta else self._rows.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        assert not self.delta, "no method scans what it changes"
        for key in self._rows.irange(start, stop, inclusive=(True, False), reverse=reverse):
            self.touched += 1
            yield key, self._rows[key]

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= limits.STATE_KEY_BYTES
        assert key.count(0) <= len(key) // 2
        assert len(value) <= limits.STATE_VALUE_BYTES
        self.touched += 1
        self.delta[key] = value

    def delete(self, key: bytes) -> None:
        self.touched += 1
        self.delta[key] = None


@dataclass(frozen=True)
class Answer:
    answer: Any


class Objects:
    """Replicated objects without replicas. Also a `MetadataService`."""

    def __init__(self, clock: Callable[[], int] = lambda: START_US) -> None:
        self.rows: dict[ObjectId, SortedDict] = {}
        self._clock = clock
        self._types = object_types()
        self._last_us = 0
        self.calls: Counter[str] = Counter()
        self.touched = 0  # keys that the last operation touched
        self.latency: Callable[[], int] = lambda: 0
        self.before: Callable[[str, tuple[ObjectId, ...]], None] = lambda method, objects: None

    def perform(
        self,
        method_name: str,
        objects: tuple[ObjectId, ...],
        arguments: Record,
        who: Any,
        not_before_us: int = 0,
    ) -> Any:
        """The answer of a method; `Refusal` if it refuses."""
        method = self._types.method(method_name)
        assert method is not None, method_name
        assert len(objects) == len(method.kinds) <= limits.OBJECTS_PER_OPERATION
        for identifier, kinds in zip(objects, method.kinds, strict=True):
            assert kind_of(identifier) in kinds, (method_name, identifier)
        encoded = encode_record(arguments)
        assert len(encoded) + 1024 <= limits.OPERATION_BYTES
        states = {
            identifier: Overlay(identifier, self.rows.get(identifier, SortedDict()))
            for identifier in objects
        }
        time_us = self._last_us
        if method.update:
            time_us = max(self._clock(), self._last_us + 1, not_before_us)
        caller = Caller(ClientId(bytes(16)), who.uid, who.gid, who.groups, time_us)
        answer = method.invoke(
            tuple(states[identifier] for identifier in objects),
            self._types.decode_arguments(method, encoded),
            caller,
        )
        self.touched = sum(state.touched for state in states.values())
        if method.update:
            self._last_us = time_us
            for identifier, state in states.items():
                assert len(state.delta) <= limits.DELTA_ENTRIES
                rows = self.rows.setdefault(identifier, SortedDict())
                for key, value in state.delta.items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
        else:
            assert not any(state.delta for state in states.values())
        encoded_answer = encode_record(answer)
        assert len(encoded_answer) <= limits.ANSWER_BYTES
        return self._types.decode_answer(method, encoded_answer)

    async def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record, who: Credentials
    ) -> Answer:
        return await self._invoke(objects, method, arguments, who, 0)

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
    ) -> Answer:
        return await self._invoke(objects, method, arguments, who, not_before_us)

    async def _invoke(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        not_before_us: int,
    ) -> Answer:
        self.calls[method] += 1
        if latency := self.latency():
            await Pause(latency)
        self.before(method, objects)
        try:
            answer = self.perform(method, objects, arguments, who, not_before_us)
        except Refusal as refusal:
            raise FileSystemError(refusal.code) from None
        if latency := self.latency():
            await Pause(latency)
        return Answer(answer)


@dataclass(frozen=True)
class Item:
    item: bytes | None
    timestamp: BlockTimestamp


class Blocks:
    """A `BlockService` in memory."""

    def __init__(self) -> None:
        self.versions: dict[BlockId, dict[int, bytes]] = {}  # by their times
        self.unasked: list[BlockId] = []  # written without asking what time it is
        self.reads: list[BlockId] = []
        self.writes: list[BlockId] = []
        self.latency: Callable[[], int] = lambda: 0
        self.refuse: Callable[[], Exception | None] = lambda: None
        self.skew_us = 0  # how far the writers' clocks were ahead
        self.in_flight = 0
        self.most_in_flight = 0

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, bytes]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
    ) -> list[BlockTimestamp]:
        del credentials
        assert len({block for block, _ in items}) == len(items)
        self.in_flight += sum(len(item) for _, item in items)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if latency := self.latency():
                await Pause(latency)
            if failure := self.refuse():
                raise failure
            times = []
            for block, item in items:
                assert len(item) <= limits.BLOCK_BYTES_MAX + 64
                versions = self.versions.setdefault(block, {})
                known = max(versions, default=0) if is_asking else 0
                time = max(known + 1, after_us + 1, await Now() + self.skew_us)
                versions[time] = bytes(item)
                self.writes.append(block)
                if not is_asking:
                    self.unasked.append(block)
                times.append(beginning_of(time))
            if latency := self.latency():
                await Pause(latency)
            return times
        finally:
            self.in_flight -= sum(len(item) for _, item in items)

    async def read(self, block: BlockId, *, at_time_us: int | None = None) -> Item:
        self.reads.append(block)
        if latency := self.latency():
            await Pause(latency)
        versions = self.versions.get(block, {})
        times = (t for t in versions if at_time_us is None or t <= at_time_us)
        time = max(times, default=0)
        item = Item(versions.get(time), beginning_of(time))
        if latency := self.latency():
            await Pause(latency)
        return item

    async def written(self, block: BlockId, timestamp: BlockTimestamp) -> Item:
        return await self.read(block, at_time_us=timestamp.time)


class Host:
    """Runs conversations in virtual time."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.clock_us = START_US
        self.engine = Engine(
            send=self._send,
            now_us=lambda: self.clock_us,
            monotonic_us=lambda: self.clock_us,
            draw=self.random.randrange,
        )

    def _send(self, *_: Any) -> None:
        raise AssertionError("the file system sends nothing itself")

    def start(self, conversation: Coroutine[Any, Any, Result]) -> list[Result | BaseException]:
        """Begin a conversation; its outcome appears in the list."""
        outcome: list[Any] = []
        self.engine.start(
            conversation, lambda result, error: outcome.append(error if error else result)
        )
        return outcome

    def step(self) -> bool:
        """Let time pass until something happens; whether anything did."""
        deadline = self.engine.next_deadline_us()
        if deadline is None:
            return False
        self.clock_us = max(self.clock_us, deadline)
        self.engine.expire()
        return True

    def settle(self) -> None:
        """Run everything to its end."""
        while self.step():
            pass

    def run(self, conversation: Coroutine[Any, Any, Result]) -> Result:
        """The result of a conversation."""
        outcome = self.start(conversation)
        while not outcome:
            assert self.step(), "the conversation waits for something that never happens"
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


class Rooms:
    """Nodes with some room."""

    def __init__(self) -> None:
        self.asked = 0

    async def capacity(self) -> Capacity:
        self.asked += 1
        return Capacity(used_bytes=3 << 40, free_bytes=5 << 40)


class World:
    """A formatted file system, in which several mounts can be made."""

    def __init__(self, *, seed: int = 0, block_bytes: int = limits.BLOCK_BYTES_MIN) -> None:
        self.host = Host(seed)
        self.objects = Objects(lambda: self.host.clock_us)
        self.blocks = Blocks()
        self.rooms = Rooms()
        self.objects.perform(FORMAT, (VOLUME_ID, ROOT_ID), Format(block_bytes, 0o1777), ROOT)

    def mount(self, **options: Any) -> FileSystem:
        return FileSystem(
            self.objects,
            self.blocks,
            self.rooms,
            BlockCipher(bytes(range(32))),
            root=ROOT_ID,
            volume=VOLUME_ID,
            options=Options(**options),
        )

    def run(self, conversation: Coroutine[Any, Any, Result]) -> Result:
        return self.host.run(conversation)

    def pass_time(self, duration_us: int) -> None:
        self.host.clock_us += duration_us
