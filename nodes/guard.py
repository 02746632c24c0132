"""A protocol's server as its node offers it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from bftfs.envelope import Refused
from bftfs.step import Ready, Sender, Server
from bftfs.storage import StorageView
from nodes.store import MapOutgrown, StoreFailed, StoreFull


class WriteSwitch:
    """Whether requests that write are refused, and why."""

    __slots__ = ("code", "reason")

    def __init__(self) -> None:
        self.code = 0  # an errno; 0 while writes are served, or tried
        self.reason = ""  # why the last was refused, until there is room again

    def refuse(self, code: int, reason: str) -> None:
        """Refuse them from now on."""
        self.code = code
        self.reason = reason

    def retry(self, *, has_room: bool) -> None:
        """Try them again; what was in their way is forgotten if there is room."""
        self.code = 0
        if has_room:
            self.reason = ""


class Guard:
    """A server that refuses writes while the disk is full, and outlives its own bugs.

    A step that raises has changed nothing, so that its request is refused and the node goes on.
    But an AssertionError says that the server itself is wrong: that, like a failing store, stops
    the node, which the cluster masks.
    """

    __slots__ = ("_report", "_step", "_switch")

    def __init__(
        self, server: Server, switch: WriteSwitch, report: Callable[[Any, Exception], None]
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
        except (AssertionError, StoreFailed, StoreFull, MapOutgrown):
            raise
        except Exception as error:
            self._report(message, error)
            return Ready(Refused(errno.EIO, "a fault in the node, which has logged it"))
        if ready.writes and self._switch.code:
            return Ready(Refused(self._switch.code, self._switch.reason))
        return ready
