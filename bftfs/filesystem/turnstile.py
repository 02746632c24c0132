"""A turnstile: lets one conversation at a time pass, in the order in which they came."""

from __future__ import annotations

from collections import deque

from bftfs.conversation import Event, Wait


class Turnstile:
    """`async with turnstile:` holds it. Whoever waits may be cancelled; its turn passes on."""

    __slots__ = ("_queue", "_taken")

    def __init__(self) -> None:
        self._taken = False
        self._queue: deque[Event] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds it or waits for it."""
        return not self._taken

    async def enter(self) -> None:
        """Wait for the turn, and take it."""
        if not self._taken:
            self._taken = True
            return
        turn = Event()
        self._queue.append(turn)
        try:
            await Wait(turn)
        except BaseException:
            if turn in self._queue:
                self._queue.remove(turn)
            else:
                self.leave()  # cancelled after the turn was given, before it was taken
            raise

    def leave(self) -> None:
        """Give the turn to the next in line."""
        if self._queue:
            self._queue.popleft().announce()
        else:
            self._taken = False

    async def __aenter__(self) -> None:
        await self.enter()

    async def __aexit__(self, *_: object) -> None:
        self.leave()
