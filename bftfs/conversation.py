"""The whole vocabulary in which a client procedure speaks to its driver.

A client procedure is an `async def` that may await only the effects below; it knows no sockets,
clocks or schedulers. Three drivers interpret them: trio in production (`bftfs.runtime`), the
seeded simulator (`bftfs.simulation`), and tests that answer each effect themselves.

Invariants: a conversation that awaits anything else is a programming error, and every driver
raises on it. A driver closes a conversation that it abandons.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from bftfs.identifiers import NodeId

Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Effect(Generic[Answer]):
    """A request to the driver. Awaiting it gives the driver's answer."""

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
    body: bytes | memoryview = b""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A reply to one of this conversation's requests, already authenticated and decoded."""

    node: NodeId
    request_number: int
    message: Any
    body: bytes | memoryview = b""


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
    """The result of a pure, CPU-heavy function; a driver may run it elsewhere."""

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
    """Something that conversations wait for, announced by whoever brings it about.

    An announcement wakes those that wait at that moment and is not remembered: who waits checks
    first that there is something to wait for, and checks again when woken.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[object, Callable[[], None]] = {}

    def announce(self) -> None:
        """Wake every waiting conversation; the driver resumes them after the one that runs now."""
        waiting, self._waiting = self._waiting, {}
        for wake in waiting.values():
            wake()

    def attach(self, waiter: object, wake: Callable[[], None]) -> None:
        """For drivers: `wake` is called once, at the next announcement."""
        self._waiting[waiter] = wake

    def detach(self, waiter: object) -> None:
        """For drivers: `waiter` was abandoned."""
        self._waiting.pop(waiter, None)


@dataclass(frozen=True, slots=True)
class Wait(Effect[None]):
    """Sleep until `event` is announced by another conversation or by the host."""

    event: Event


@dataclass(frozen=True, slots=True)
class Spawn(Effect[None]):
    """Start a conversation that nobody waits for; it begins when this one waits or ends.

    It handles its own failures: one that escapes from it is a programming error, and the driver
    raises it.
    """

    conversation: Callable[[], Conversation[None]]
