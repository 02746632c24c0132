"""A file system without nodes, on services in memory; `Host` runs conversations in virtual time."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

from bftfs import limits
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import BlockCipher
from bftfs.engine import Engine
from bftfs.filesystem.capacity import Capacity
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import FORMAT
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.simulation.world import START_US
from tests.builders import InMemoryBlocks, InMemoryObjects

Result = TypeVar("Result")

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
        """Let time pass until something happens; false if nothing ever will."""
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
        return Capacity(used_bytes=3 << 40, free_bytes=5 << 40, objects=7)


class World:
    """A formatted file system, in which several mounts can be made."""

    def __init__(self, *, seed: int = 0, block_bytes: int = limits.BLOCK_BYTES_MIN) -> None:
        self.host = Host(seed)
        self.objects = InMemoryObjects(lambda: self.host.clock_us)
        self.blocks = InMemoryBlocks()
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
