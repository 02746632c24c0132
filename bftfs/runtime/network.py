"""Conversations under trio: how a mount speaks to the cluster.

One task waits for all connections at once, takes in everything that has arrived, and runs the
conversations that it resumes right there; a caller's task is scheduled once, when its conversation
has ended. [performance.md §2b: trio's streams and a task switch per message cost a factor of two]
Requests of all conversations that are ready in the same pass of trio's scheduler leave together.

Concurrency: everything runs in the trio thread. Conversations are started by the tasks that want
them and run there until they first wait.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import trio

from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.crypto.keys import Identity
from bftfs.runtime import clock
from bftfs.runtime.links import Links

Result = TypeVar("Result")


class Network:
    """`async with Network.connected(…) as network: await network.perform(conversation)`."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self._flusher: trio.lowlevel.Task | None = None  # while it sleeps
        self._alarm: trio.CancelScope | None = None  # its deadline is when the clock wakes

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, description: ClusterDescription, identity: Identity, *, decode: Callable[[bytes], Any]
    ) -> AsyncIterator[Self]:
        """A network with connections to all nodes."""
        with Links(description, identity, decode=decode, persistent=True) as links:
            async with trio.open_nursery() as nursery:
                network = cls(links)
                nursery.start_soon(network._pump)
                nursery.start_soon(network._flush)
                nursery.start_soon(network._keep_time)
                yield network
                nursery.cancel_scope.cancel()

    async def perform(
        self,
        conversation: Conversation[Result],
        waits: Callable[[Callable[[BaseException], None]], None] = lambda _: None,
    ) -> Result:
        """The result of `conversation`, or the exception that ended it. Cancelling abandons it.

        One that ends without waiting costs no turn of the scheduler. If it has to wait, `waits` is
        called before, with the function that ends it with an exception.
        """
        task: trio.lowlevel.Task | None = None
        ended: list[tuple[Any, BaseException | None]] = []

        def end(result: Any, error: BaseException | None) -> None:
            if ended:
                return  # it was interrupted just when it ended
            ended.append((result, error))
            if task is not None:
                trio.lowlevel.reschedule(task)

        running = self.links.engine.start(conversation, end)
        if self._flusher is not None:  # it sees to the requests, and to the patience
            flusher, self._flusher = self._flusher, None
            trio.lowlevel.reschedule(flusher)
        if not ended:

            def interrupt(reason: BaseException) -> None:
                running.cancel()
                end(None, reason)

            def abandon(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                running.cancel()
                return trio.lowlevel.Abort.SUCCEEDED

            waits(interrupt)
            task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abandon)
        result: Result
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    # -----------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        links = self.links
        descriptor = links.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            links.turn()
            self._set_alarm()

    async def _flush(self) -> None:
        """Send the requests of one pass of the scheduler together.

        This task runs at the end of a pass or early in the next: until then, every task that is
        ready has added its own.
        """

        def abandon(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._flusher = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._flusher = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abandon)
            self.links.flush()
            self._set_alarm()

    async def _keep_time(self) -> None:
        links = self.links
        while True:
            with trio.CancelScope() as alarm:
                self._alarm = alarm
                alarm.deadline = math.inf
                self._set_alarm()
                await trio.sleep_forever()
            links.expire()

    def _set_alarm(self) -> None:
        deadline_us = self.links.next_deadline_us()
        if deadline_us is None or self._alarm is None:
            return
        deadline = trio.current_time() + (deadline_us - clock.monotonic_us()) / 1e6
        if deadline < self._alarm.deadline:  # noqa: PLR1730 - setting it is not free
            self._alarm.deadline = deadline
