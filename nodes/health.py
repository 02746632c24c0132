"""A node's own account of itself: what is degraded, and why."""

from __future__ import annotations

import os
from typing import Any

from bftfs.envelope import HealthReply
from bftfs.runtime import clock
from bftfs.runtime.links import Links
from bftfs.step import Ready, Sender
from bftfs.storage import StorageView
from nodes.guard import WriteSwitch
from nodes.metrics import Tally, resident_bytes
from nodes.store import Store


class Health:
    """Answers `HealthRequest`; also what `/health` shows."""

    def __init__(self, *, store: Store, links: Links, switch: WriteSwitch, tally: Tally) -> None:
        self._store = store
        self._links = links
        self._switch = switch
        self._tally = tally
        self._started_us = clock.monotonic_us()

    def reply(self) -> HealthReply:
        """The state of the node now."""
        reasons = self._reasons()
        return HealthReply(
            pid=os.getpid(),
            uptime_us=clock.monotonic_us() - self._started_us,
            healthy=not reasons,
            reasons=reasons,
            store_bytes=self._store.used_bytes,
            requests=sum(self._tally.requests.values()),
            memory_bytes=resident_bytes(),
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
        if self._switch.code:
            reasons.append(f"writes are refused: {self._switch.reason}")
        if self._tally.faults:
            reasons.append(f"{self._tally.faults} requests met a fault in the node; see its log")
        reasons += [
            f"node {node} cannot be reached: {why}" for node, why in self._links.unreachable()
        ]
        return tuple(reason[:512] for reason in reasons)
