"""Conversations for tools that may block: one thread, no event loop but the connections' own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.crypto.keys import Identity
from bftfs.engine import Running
from bftfs.runtime import clock
from bftfs.runtime.links import Links

Result = TypeVar("Result")


class BlockingNetwork:
    """`with BlockingNetwork(…) as network: result = network.perform(conversation)`."""

    def __init__(
        self,
        description: ClusterDescription,
        identity: Identity,
        *,
        decode: Callable[[bytes], Any],
    ) -> None:
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
        results: list[Any] = []
        running: dict[int, Running] = {}
        failures: list[BaseException] = []
        done = 0

        def ended(position: int, result: Any, error: BaseException | None) -> None:
            nonlocal done
            done += 1
            running.pop(position, None)
            if error is not None:
                failures.append(error)
            results[position] = result

        exhausted = False
        self.links.turn()  # notice what has happened since the last time
        try:
            while not failures:
                while not exhausted and len(results) - done < in_flight:
                    conversation = next(source, None)
                    if conversation is None:
                        exhausted = True
                        break
                    position = len(results)
                    results.append(None)
                    started = engine.start(conversation, partial(ended, position))
                    if started.coroutine is not None:
                        running[position] = started
                self.links.flush()
                if exhausted and done == len(results):
                    break
                self._wait()
        finally:
            for abandoned in tuple(running.values()):
                abandoned.cancel()
        if failures:
            raise failures[0]
        return results

    def _wait(self) -> None:
        """Wait until something happens, and do it."""
        links = self.links
        deadline = links.next_deadline_us()
        if deadline is None:
            links.turn(None)
            return
        # Up to the next whole millisecond, since epoll knows no finer ones.
        links.turn(max(0, (deadline - clock.monotonic_us()) // 1000 + 1) / 1000)
        if deadline <= clock.monotonic_us():
            links.expire()

    def close(self) -> None:
        """Close the connections."""
        self.links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
