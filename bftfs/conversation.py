"""Conversations: the effects that client procedures and nodes' background work may await.

A conversation is an `async def` that awaits only the effects below; it knows no sockets, clocks or
schedulers. `bftfs.engine` interprets the effects, hosted by mounts and tools (`bftfs.runtime`), by
a node's loop (`nodes.loop`) and by the seeded simulator (`bftfs.simulation`). Tests may answer each
effect themselves.

Invariants: to await anything else is a programming error, on which the engine raises. A host closes
a conversation that it abandons.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from bftfs.crypto.digest import Body
from bftfs.identifiers import NodeId

Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Effect(Generic[Answer]):
    """A request to the engine. Awaiting it gives the engine's answer."""

    __slots__ = ()

    def __await__(self) -> Generator[Effect[Answer], Any, Answer]:
        answer: Answer = yield self
        return answer


Conversation: TypeAlias = Coroutine[Effect[Any], Any, Result]


# The effects of every round are structs, which are made several times as fast as dataclasses.
class Send(Effect[int], msgspec.Struct, frozen=True, gc=False):
    """Hand a request to the network; the answer is the request's number. Delivery is not promised.

    `message` is a request of the closed union `bftfs.envelope.Request`; `body` is a raw payload
    that travels behind it, unencoded.
    """

    node: NodeId
    message: Any
    body: Body = b""


class SendAll(Effect[list[int]], msgspec.Struct, frozen=True, gc=False):
    """Hand several requests to the network; the answer is their numbers, in order."""

    requests: list[Send]


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A reply to one of this conversation's requests, already authenticated and decoded."""

    node: NodeId
    request_number: int
    message: Any
    body: Body = b""


class Receive(Effect[Delivery | None], msgspec.Struct, frozen=True, gc=False):
    """The next reply to this conversation; None after `patience_us` microseconds of silence."""

    patience_us: int


@dataclass(frozen=True, slots=True)
class Together(Effect[tuple[Any, ...]]):
    """Hold several conversations at once; their results, in order.

    Takes thunks, so that a cancelled parent leaves no coroutine behind that was never awaited.
    The first exception cancels the others and is raised.
    """

    conversations: tuple[Callable[[], Conversation[Any]], ...]


@dataclass(frozen=True, slots=True)
class Compute(Effect[Any]):
    """The result of a pure, CPU-heavy function; an engine may run it elsewhere."""

    function: Callable[[], Any]


class Pause(Effect[None], msgspec.Struct, frozen=True, gc=False):
    """Let `duration_us` microseconds pass (back-off)."""

    duration_us: int


class Now(Effect[int], msgspec.Struct, frozen=True, gc=False):
    """The client's wall clock, in microseconds since the epoch."""


class Draw(Effect[int], msgspec.Struct, frozen=True, gc=False):
    """A random integer in [0, bound): serial numbers, back-off, identifiers."""

    bound: int


class Event:
    """Something that conversations wait for, announced by the code that brings it about.

    An announcement wakes the conversations that wait at that moment, and is not remembered: a
    conversation checks its condition before it waits, and again when it is woken.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[object, Callable[[], None]] = {}

    def announce(self) -> None:
        """Wake every waiting conversation; the engine resumes them after the one that runs now."""
        waiting = self._waiting
        if waiting:
            self._waiting = {}
            for wake in waiting.values():
                wake()

    def attach(self, waiter: object, wake: Callable[[], None]) -> None:
        """For engines: `wake` is called once, at the next announcement."""
        self._waiting[waiter] = wake

    def detach(self, waiter: object) -> None:
        """For engines: `waiter` was abandoned."""
        self._waiting.pop(waiter, None)


@dataclass(frozen=True, slots=True)
class Wait(Effect[None]):
    """Sleep until `event` is announced by another conversation or by the host."""

    event: Event


@dataclass(frozen=True, slots=True)
class Spawn(Effect[None]):
    """Start a conversation that nobody waits for; it begins when this one waits or ends.

    It handles its own failures: one that escapes from it is a programming error, and the engine
    raises it.
    """

    conversation: Callable[[], Conversation[None]]
