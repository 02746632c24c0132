"""A protocol's server as its node offers it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.errors import DamagedRow
from bftfs.server.reserve_shares import ReserveShares
from bftfs.server.step import Ready, Sender, Server
from bftfs.storage import StorageView
from nodes.store_errors import MapFull, StoreFailed, StoreFull


class FullDiskGate:
    """Whether requests that write are refused, and why; and what is left for those that are owed.

    Invariant: while none are refused, the store has more room than its reserve.
    """

    __slots__ = ("_reserve", "code", "reason")

    def __init__(self) -> None:
        self.code = 0  # an errno; 0 while writes are served
        self.reason = ""  # why they are not
        self._reserve = ReserveShares()

    def refuse(self, code: int, reason: str, *, left: int) -> None:
        """Refuse them from now on, but for what is owed: that has the `left` bytes of a reserve."""
        self.code = code
        self.reason = reason
        self._reserve.left = left

    def serve(self) -> None:
        """There is room again."""
        self.code = 0
        self.reason = ""
        self._reserve.end()

    def admits(self, sender: Sender, ready: Ready) -> bool:
        """Whether the writes of a step are to be done."""
        return not self.code or (
            ready.uses_reserve and self._reserve.lends(sender.client, ready.writes)
        )


class Guard:
    """A server that refuses writes while the disk is full, and outlives its own bugs.

    What it owes to others it goes on writing, out of the store's reserve.

    A step that raises has changed nothing, so that its request is refused and the node goes on.
    But an AssertionError says that the server itself is wrong: that, like a failing store, stops
    the node, which the cluster masks. What the disk has damaged is the dispatcher's business.
    """

    __slots__ = ("_report", "_step", "_switch")

    def __init__(
        self, server: Server, switch: FullDiskGate, report: Callable[[Any, Exception], None]
    ) -> None:
        self._step = server.step
        self._switch = switch
        self._report = report

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """Serve one message, or refuse it."""
        try:
            ready = self._step(view, sender, message, body, now_us)
        except (AssertionError, DamagedRow, StoreFailed, StoreFull, MapFull):
            raise
        except Exception as error:
            self._report(message, error)
            return Ready(Refused(errno.EIO, "a fault in the node, which has logged it"))
        if ready.writes and not self._switch.admits(sender, ready):
            return Ready(Refused(self._switch.code, self._switch.reason))
        return ready
