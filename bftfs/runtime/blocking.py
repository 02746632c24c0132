"""Conversations for tools that may block: one thread, no event loop but the connections' own.

A conversation that has to do with files of this machine hands that to a thread (`elsewhere`), so
that it holds up no other one.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeVar

from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation, Event, Wait
from bftfs.crypto.keys import Identity
from bftfs.engine import Running
from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.interrupts import Interrupts
from bftfs.runtime.links import Links

Result = TypeVar("Result")

WAIT_WORTH_SAYING_US: Final = 3 * SECOND_US
THREADS: Final = 16  # that run functions for conversations


class BlockingNetwork:
    """`with BlockingNetwork(…) as network: result = network.perform(conversation)`."""

    def __init__(
        self,
        description: ClusterDescription,
        identity: Identity,
        *,
        decode: Callable[[bytes], Any],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` is told, in words, which nodes a conversation waits for if there are too few."""
        self._say = say
        self.links = Links(description, identity, decode=decode, persistent=True)
        self._threads = ThreadPoolExecutor(THREADS)
        self._ended: deque[Event] = deque()  # what threads have done
        self._bell = os.eventfd(0)  # readable if there is any, or after Ctrl-C
        self._interrupts = Interrupts(lambda: os.eventfd_write(self._bell, 1))
        self._waking = select.poll()
        for descriptor in (self.links.fileno(), self._bell):
            self._waking.register(descriptor, select.POLLIN)

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of `conversation`, or the exception that ended it."""
        return self.perform_many([conversation], in_flight=1)[0]

    def perform_many(
        self, conversations: Iterable[Conversation[Result]], *, in_flight: int
    ) -> list[Result]:
        """Their results, in order; at most `in_flight` run at a time.

        The first exception abandons those in progress and is raised; so does Ctrl-C.
        """
        with self._interrupts.noted():
            return self._perform_many(conversations, in_flight)

    def _perform_many(
        self, conversations: Iterable[Conversation[Result]], in_flight: int
    ) -> list[Result]:
        engine = self.links.engine
        source = iter(conversations)
        started = 0
        running: dict[int, Running] = {}  # by position
        results: dict[int, Any] = {}
        failures: list[BaseException] = []

        def ended(position: int, result: Any, error: BaseException | None) -> None:
            results[position] = result
            running.pop(position, None)
            if error is not None:
                failures.append(error)

        self.links.turn()  # notice what has happened since the last time
        look_us = clock.monotonic_us() + WAIT_WORTH_SAYING_US
        said = ""
        try:
            while not failures:
                self._interrupts.check()
                if clock.monotonic_us() >= look_us:
                    look_us += SECOND_US
                    said = self._tell(said)
                new = list(islice(source, in_flight - len(running)))
                for position, conversation in enumerate(new, started):
                    each = engine.start(conversation, partial(ended, position))
                    if position not in results:
                        running[position] = each
                started += len(new)
                self.links.flush()
                if running:
                    self._wait()
                elif not new:
                    break
        finally:
            for each in tuple(running.values()):
                each.cancel()
        if failures:
            raise failures[0]
        return [results[position] for position in range(started)]

    async def elsewhere(self, function: Callable[[], Result]) -> Result:
        """The result of a function that may block, which a thread runs meanwhile.

        Where the conversation is abandoned, the function has ended, or never begins.
        """
        ended = Event()
        future = self._threads.submit(function)
        future.add_done_callback(lambda _: self._ring(ended))
        try:
            while not future.done():
                await Wait(ended)
        finally:
            if not future.cancel():
                wait((future,))
        return future.result()

    def _ring(self, ended: Event) -> None:
        """A thread has done something: wake the one that runs conversations."""
        self._ended.append(ended)
        os.eventfd_write(self._bell, 1)

    def _tell(self, said: str) -> str:
        """Say which nodes are waited for, unless that was `said` already."""
        waiting = str(self.links.waiting_for() or "")
        if waiting and waiting != said:
            self._say(waiting)
        elif said and not waiting:
            self._say("enough nodes answer again")
        return waiting

    def _wait(self) -> None:
        """Wait until something happens, and do it; not for longer than a second."""
        links = self.links
        deadline = links.next_deadline_us()
        left_us = SECOND_US if deadline is None else deadline - clock.monotonic_us()
        # Up to the next whole millisecond, since poll knows no finer ones.
        ready = self._waking.poll(min(max(0, left_us // 1000 + 1), 1000))
        if (self._bell, select.POLLIN) in ready:
            os.eventfd_read(self._bell)  # before what it rang for: later rings are heard again
        while self._ended:
            self._ended.popleft().announce()
        links.turn()
        if deadline is not None and deadline <= clock.monotonic_us():
            links.expire()

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self.links.close()
        os.close(self._bell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
