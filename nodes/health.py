"""A node's account of its own health: is anything degraded, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from bftfs.envelope import Figure, HealthReply
from bftfs.runtime import clock
from bftfs.runtime.links import Links
from bftfs.server import tally as tallies
from bftfs.server.recovery import Recovery
from bftfs.server.room import Room
from bftfs.server.step import Ready, Sender
from bftfs.storage import StorageView
from nodes.disk_space import DiskSpace
from nodes.metrics import Tally, resident_bytes

REBUILDING = (
    "its store was lost and is rebuilt from the other nodes: until then it counts as one of those "
    "that the cluster tolerates"
)


class Health:
    """Answers `HealthRequest`, and makes the page `/health`."""

    def __init__(
        self,
        *,
        space: DiskSpace,
        links: Links,
        room: Room,
        tally: Tally,
        recovery: Recovery,
        gauges: Callable[[], Iterable[tallies.Figure]],
    ) -> None:
        self._gauges = gauges
        self._recovery = recovery
        self._space = space
        self._links = links
        self._room = room
        self._tally = tally
        self._started_us = clock.monotonic_us()

    def reply(self) -> HealthReply:
        """The state of the node now."""
        reasons = self._reasons()
        return HealthReply(
            pid=os.getpid(),
            uptime_us=clock.monotonic_us() - self._started_us,
            healthy=not reasons,
            reasons=(*reasons, *self._remarks()),
            store_bytes=self._space.used_bytes,
            free_bytes=self._space.free_bytes,
            requests=sum(self._tally.requests.values()),
            memory_bytes=resident_bytes(),
            background=tuple(Figure(gauge.name, float(gauge.value)) for gauge in self._gauges()),
        )

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """Serve a `HealthRequest`."""
        return Ready(self.reply())

    def _reasons(self) -> tuple[str, ...]:
        reasons = []
        if self._room.full:
            reasons.append(f"writes are refused: {self._room.why_full}")
        if self._tally.faults:
            reasons.append(f"{self._tally.faults} requests met a fault in the node; see its log")
        return tuple(reason[:512] for reason in reasons)

    def _remarks(self) -> tuple[str, ...]:
        """Remarks of a node that may be healthy all the same.

        A peer that was down when it was last dialled may be up again, and its failure is not this
        node's in any case.
        """
        unreachable = (
            f"node {node} could not be reached: {why}"[:512]
            for node, why in self._links.unreachable()
        )
        return (REBUILDING, *unreachable) if self._recovery.rebuilding else tuple(unreachable)
