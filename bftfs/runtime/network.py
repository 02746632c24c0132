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
from collections.abc import Callable
from typing import Any, Self, TypeVar

import trio

from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.crypto.keys import Identity
from bftfs.engine import Outcome, Running
from bftfs.runtime import clock
from bftfs.runtime.links import Links

Result = TypeVar("Result")


class Network:
    """`async with Network(…) as network: result = await network.perform(conversation)`."""

    def __init__(
        self,
        description: ClusterDescription,
        identity: Identity,
        *,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._description = description
        self._identity = identity
        self._decode = decode
        self._nursery_manager: Any = None
        self._flusher: trio.lowlevel.Task | None = None  # while it sleeps
        self._alarm: trio.CancelScope | None = None  # its deadline is when the clock wakes

    @property
    def links(self) -> Links:
        """The connections."""
        return self._links

    async def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of `conversation`, or the exception that ended it. Cancelling abandons it."""
        task = trio.lowlevel.current_task()
        ended: list[tuple[Any, BaseException | None]] = []
        waiting = False

        def outcome(result: Any, error: BaseException | None) -> None:
            ended.append((result, error))
            if waiting:
                trio.lowlevel.reschedule(task)

        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            conversation.close()
            raise
        running = self._links.engine.start(conversation, outcome)
        self._started()
        if ended:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            waiting = True

            def abandon(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                running.cancel()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandon)
        result: Result
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    def start(self, conversation: Conversation[Any], outcome: Outcome) -> Running:
        """Run `conversation` without waiting for it; `outcome(result, error)` when it ends."""
        running = self._links.engine.start(conversation, outcome)
        self._started()
        return running

    async def __aenter__(self) -> Self:
        self._links = Links(self._description, self._identity, decode=self._decode, persistent=True)
        self._nursery_manager = trio.open_nursery()
        nursery = await self._nursery_manager.__aenter__()
        nursery.start_soon(self._pump)
        nursery.start_soon(self._flush)
        nursery.start_soon(self._keep_time)
        self._nursery = nursery
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        self._nursery.cancel_scope.cancel()
        try:
            handled: bool | None = await self._nursery_manager.__aexit__(*error)
        finally:
            self._links.close()
        return handled

    # -----------------------------------------------------------------------------------------

    def _started(self) -> None:
        """A conversation was started: see to its requests and its patience."""
        if self._flusher is not None:
            flusher, self._flusher = self._flusher, None
            trio.lowlevel.reschedule(flusher)

    async def _pump(self) -> None:
        links = self._links
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
            self._links.flush()
            self._set_alarm()

    async def _keep_time(self) -> None:
        links = self._links
        while True:
            with trio.CancelScope() as alarm:
                self._alarm = alarm
                alarm.deadline = math.inf
                self._set_alarm()
                await trio.sleep_forever()
            links.expire()

    def _set_alarm(self) -> None:
        deadline_us = self._links.next_deadline_us()
        if deadline_us is None or self._alarm is None:
            return
        deadline = trio.current_time() + (deadline_us - clock.monotonic_us()) / 1e6
        if deadline < self._alarm.deadline:  # noqa: PLR1730 - setting it is not free
            self._alarm.deadline = deadline
