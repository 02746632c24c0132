"""Conversations for tools that may block: one thread, no event loop but the connections' own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeVar

from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.crypto.keys import Identity
from bftfs.engine import Running
from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.links import Links

Result = TypeVar("Result")

WAIT_WORTH_SAYING_US: Final = 3 * SECOND_US


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

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of `conversation`, or the exception that ended it."""
        return self.perform_many([conversation], in_flight=1)[0]

    def perform_many(
        self, conversations: Iterable[Conversation[Result]], *, in_flight: int
    ) -> list[Result]:
        """Their results, in order; at most `in_flight` run at a time.

        The first exception abandons those in progress and is raised.
        """
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
        if deadline is None:
            links.turn(1.0)
            return
        # Up to the next whole millisecond, since epoll knows no finer ones.
        links.turn(min(max(0, (deadline - clock.monotonic_us()) // 1000 + 1) / 1000, 1.0))
        if deadline <= clock.monotonic_us():
            links.expire()

    def close(self) -> None:
        """Close the connections."""
        self.links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
