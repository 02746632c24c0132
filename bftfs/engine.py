"""The sans-IO interpreter of effects: runs conversations for any host.

The mount (on trio), a node (on its poll loop), commands (on a blocking loop) and the simulator (in
virtual time) host the same engine: they send its messages, give it replies, and tell it when time
has passed.

Concurrency: an engine belongs to one thread. It never blocks: `start`, `deliver` and `expire` run
every conversation that they make ready until it waits again. Completion callbacks run inside them,
and may start further conversations. A conversation that an event wakes, or that was spawned, runs
after the one in progress has come to wait: none is ever resumed (or cancelled) from inside another
one's code.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any

from bftfs import limits
from bftfs.conversation import (
    Compute,
    Conversation,
    Delivery,
    Draw,
    Event,
    Now,
    Pause,
    Receive,
    Send,
    SendAll,
    Spawn,
    Together,
    Wait,
)
from bftfs.crypto.digest import Body
from bftfs.identifiers import NodeId

Outcome = Callable[[Any, BaseException | None], None]


class Running:
    """A conversation in progress. `cancel` abandons it; its outcome is then never reported."""

    def __init__(self, engine: Engine, coroutine: Conversation[Any], outcome: Outcome) -> None:
        self._engine = engine
        self.coroutine: Conversation[Any] | None = coroutine
        self.outcome = outcome
        self.inbox: deque[Delivery] = deque()
        self.requests: list[int] = []
        self.children: list[Running] = []
        self.timer = 0  # number of the timer that this conversation waits for, 0 if none
        self.waits = False  # True while it is in Receive
        self.event: Event | None = None  # the event that it waits for

    def cancel(self) -> None:
        """Close the conversation and those it holds."""
        for child in self.children:
            child.cancel()
        self.children.clear()
        self._engine.forget(self)
        coroutine, self.coroutine = self.coroutine, None
        if coroutine is not None:
            coroutine.close()


class Engine:
    """Runs conversations. `send(node, number, message, body)` hands a request to the network."""

    def __init__(
        self,
        *,
        send: Callable[[NodeId, int, Any, Body], None],
        now_us: Callable[[], int],
        monotonic_us: Callable[[], int],
        draw: Callable[[int], int],
        first_request: int = 1,
    ) -> None:
        self._send = send
        self._now_us = now_us
        self._monotonic_us = monotonic_us
        self._draw = draw
        self._numbers = count(first_request)
        self._timers: list[tuple[int, int, Running]] = []
        self._timer_numbers = count(1)
        # request number -> the conversation it belongs to, and the only node that may answer it
        self._owner: dict[int, tuple[Running, NodeId]] = {}
        self._ready: deque[Running] = deque()  # woken by an event, or spawned and not yet begun
        self._inside = False  # True while a conversation is being advanced
        self.unclaimed = 0  # replies that were late, repeated or never asked for

    def start(self, conversation: Conversation[Any], outcome: Outcome) -> Running:
        """Run `conversation` until it waits; `outcome(result, error)` is called when it ends."""
        running = Running(self, conversation, outcome)
        self._enter(running, None)
        return running

    def deliver(self, node: NodeId, number: int, message: Any, body: Body = b"") -> None:
        """Give a reply to its conversation. A reply that none waits for is counted and dropped."""
        owner = self._owner.get(number)
        if owner is None or owner[1] != node:  # a liar must not use up another node's reply
            self.unclaimed += 1
            return
        del self._owner[number]
        running = owner[0]
        delivery = Delivery(node, number, message, body)
        if running.waits:
            running.waits = False
            running.timer = 0
            self._enter(running, delivery)
        else:
            running.inbox.append(delivery)

    def next_deadline_us(self) -> int | None:
        """When `expire` must be called next, in monotonic microseconds; None if no timer runs."""
        timers = self._timers
        while timers:
            deadline_us, number, running = timers[0]
            if running.timer == number:
                return deadline_us
            heapq.heappop(timers)
        return None

    def expire(self) -> None:
        """Wake the conversations whose patience has run out."""
        now = self._monotonic_us()
        timers = self._timers
        while timers and (timers[0][0] <= now or timers[0][2].timer != timers[0][1]):
            _, number, running = heapq.heappop(timers)
            if running.timer == number:
                running.timer = 0
                running.waits = False
                self._enter(running, None)

    def forget(self, running: Running) -> None:
        """Drop all that is registered for `running`."""
        running.timer = 0
        running.waits = False
        if running.event is not None:
            running.event.detach(running)
            running.event = None
        for number in running.requests:
            self._owner.pop(number, None)
        running.requests.clear()

    def _forget_oldest(self, running: Running) -> None:
        """Give up on the older half of the requests: during an outage they are repeated often."""
        half = len(running.requests) // 2
        for number in running.requests[:half]:
            self._owner.pop(number, None)
        del running.requests[:half]

    # -----------------------------------------------------------------------------------------

    def _set_timer(self, running: Running, duration_us: int) -> None:
        number = next(self._timer_numbers)
        running.timer = number
        heapq.heappush(self._timers, (self._monotonic_us() + duration_us, number, running))

    def _enter(self, running: Running, answer: Any) -> None:
        """Advance `running`, then all that became ready meanwhile."""
        if self._inside:
            self._advance(running, answer)
            return
        self._inside = True
        try:
            self._advance(running, answer)
            while self._ready:
                self._advance(self._ready.popleft(), None)
        finally:
            self._inside = False

    def _wake(self, running: Running) -> None:
        """The event that `running` waits for was announced."""
        running.event = None
        if self._inside:
            self._ready.append(running)
        else:
            self._enter(running, None)

    def _finish(self, running: Running, result: Any, error: BaseException | None) -> None:
        self.forget(running)
        running.coroutine = None
        running.outcome(result, error)

    def _advance(self, running: Running, answer: Any, error: BaseException | None = None) -> None:
        """Resume `running` with `answer` or `error`, serving its effects until one has to wait."""
        coroutine = running.coroutine
        if coroutine is None:
            return
        resume = coroutine.send
        while True:
            effect: Any
            try:
                effect = resume(answer) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                self._finish(running, stop.value, None)
                return
            except Exception as exception:
                self._finish(running, None, exception)
                return
            error = None
            kind = type(effect)
            if kind is Receive:
                if running.inbox:
                    answer = running.inbox.popleft()
                else:
                    running.waits = True
                    self._set_timer(running, effect.patience_us)
                    return
            elif kind is SendAll:
                answer = self._request(running, effect.requests)
            elif kind is Send:
                (answer,) = self._request(running, (effect,))
            elif kind is Now:
                answer = self._now_us()
            elif kind is Pause:
                self._set_timer(running, effect.duration_us)
                return
            elif kind is Together:
                at_once = self._hold(running, effect)
                if at_once is None or running.coroutine is None:
                    return
                answer, error = at_once
            elif kind is Wait:
                running.event = effect.event
                effect.event.attach(running, partial(self._wake, running))
                return
            else:
                try:
                    answer = self._at_once(effect)
                except Exception as exception:
                    error = exception

    def _request(self, running: Running, requests: Iterable[Send]) -> list[int]:
        """Hand requests of `running` to the network; their numbers."""
        numbers: list[int] = []
        for request in requests:
            node, number = request.node, next(self._numbers)
            self._owner[number] = (running, node)
            numbers.append(number)
            self._send(node, number, request.message, request.body)
        running.requests += numbers
        if len(running.requests) > limits.UNANSWERED_REQUESTS:
            self._forget_oldest(running)
        return numbers

    def _at_once(self, effect: Any) -> Any:
        """The answer to one of the effects that never wait."""
        kind = type(effect)
        if kind is Draw:
            return self._draw(effect.bound)
        if kind is Compute:
            return effect.function()
        if kind is Spawn:
            self._ready.append(Running(self, effect.conversation(), _raise_failure))
            return None
        raise TypeError(f"a conversation awaited {effect!r}, which is no effect")

    def _hold(
        self, parent: Running, effect: Together
    ) -> tuple[tuple[Any, ...], BaseException | None] | None:
        """Start the children of a `Together`; the parent goes on when all are done or one fails.

        If that is so at once, gives their results or the failure: a series of many that never wait
        needs no deeper stack than one.
        """
        results: list[Any] = [None] * len(effect.conversations)
        remaining = len(results)
        failures: list[BaseException] = []
        is_starting = True

        def ended(position: int, result: Any, error: BaseException | None) -> None:
            nonlocal remaining
            if failures:
                return
            if error is None:
                results[position] = result
                remaining -= 1
            else:
                failures.append(error)
            if not is_starting and (failures or not remaining):
                self._advance(parent, *release())

        def release() -> tuple[tuple[Any, ...], BaseException | None]:
            children, parent.children = parent.children, []
            for child in children:
                if child.coroutine is not None:
                    child.cancel()
            return tuple(results), failures[0] if failures else None

        for position, thunk in enumerate(effect.conversations):
            child = Running(self, thunk(), partial(ended, position))
            parent.children.append(child)
            self._advance(child, None)
            if failures:
                break
        is_starting = False
        return release() if failures or not remaining else None


def _raise_failure(_: None, error: BaseException | None) -> None:
    """The outcome of a spawned conversation, whose failure nobody else would notice."""
    if error is not None:
        raise error
