"""Turns: conversations of one client that change the same object go one after the other.

They would only contend with each other for the object's next version. This is a courtesy within one
client, and no part of the protocol: nothing but speed depends on it.
"""

from __future__ import annotations

from collections import deque

from bftfs.conversation import Event, Wait
from bftfs.identifiers import ObjectId


class _Place:
    """A place in a queue, and whether its turn has come."""

    __slots__ = ("come", "event")

    def __init__(self) -> None:
        self.event = Event()
        self.come = False


class Turns:
    """Whose turn it is at each object. Objects are taken in ascending order: no deadlock."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[ObjectId, deque[_Place]] = {}

    def taken(self, objects: tuple[ObjectId, ...]) -> bool:
        """Whether a conversation is at work on one of `objects`."""
        return any(identifier in self._queues for identifier in objects)

    async def take(self, objects: tuple[ObjectId, ...]) -> None:
        """Wait for one's turn at all of `objects`, given in ascending order."""
        held = 0
        try:
            for identifier in objects:
                queue = self._queues.get(identifier)
                if queue is None:
                    self._queues[identifier] = deque()
                else:
                    await self._wait(identifier, queue)
                held += 1
        except BaseException:
            self.leave(objects[:held])
            raise

    async def _wait(self, identifier: ObjectId, queue: deque[_Place]) -> None:
        place = _Place()
        queue.append(place)
        try:
            while not place.come:
                await Wait(place.event)
        except BaseException:
            if place.come:
                self.leave((identifier,))
            else:
                queue.remove(place)
            raise

    def leave(self, objects: tuple[ObjectId, ...]) -> None:
        """End one's turn at `objects`."""
        for identifier in objects:
            queue = self._queues[identifier]
            if queue:
                place = queue.popleft()
                place.come = True
                place.event.announce()
            else:
                del self._queues[identifier]
