"""A lock for conversations: first come, first served.

A conversation holds it while it works on something that others must not see half done, or where
several at once would only hinder each other.

**Concurrency.** One engine. A conversation that waits may be cancelled: its place passes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from bftfs.conversation import Event, Wait

Key = TypeVar("Key", bound=Hashable)


class Lock:
    """`async with lock:` holds it."""

    __slots__ = ("_held", "_waiting")

    def __init__(self, *, is_held: bool = False) -> None:
        self._held = is_held
        self._waiting: deque[Event] = deque()

    @property
    def is_idle(self) -> bool:
        """True if nobody holds it or waits for it."""
        return not self._held

    async def acquire(self) -> None:
        """Take it, after those that came before."""
        if not self._held:
            self._held = True
            return
        turn = Event()
        self._waiting.append(turn)
        try:
            await Wait(turn)
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self.release()  # cancelled after the lock was handed over, before it was taken
            raise

    def release(self) -> None:
        """Hand it to the next conversation that waits."""
        if self._waiting:
            self._waiting.popleft().announce()
        else:
            self._held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


class Locks(Generic[Key]):
    """One lock for each key. Several are taken in ascending order, so there is no deadlock."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[Key, Lock] = {}

    def is_held(self, keys: tuple[Key, ...]) -> bool:
        """True if some conversation holds the lock of one of `keys`."""
        return any(key in self._locks for key in keys)

    async def acquire(self, keys: tuple[Key, ...]) -> None:
        """Take the locks of all `keys`, which are given in ascending order."""
        taken = 0
        try:
            for key in keys:
                lock = self._locks.get(key)
                if lock is None:
                    self._locks[key] = Lock(is_held=True)
                else:
                    await lock.acquire()
                taken += 1
        except BaseException:
            self.release(keys[:taken])
            raise

    def release(self, keys: tuple[Key, ...]) -> None:
        """Hand the locks of all `keys` on."""
        for key in keys:
            lock = self._locks[key]
            lock.release()
            if lock.is_idle:
                del self._locks[key]
