"""A protocol's server as its node offers it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.errors import DamagedRow
from bftfs.server.room import Room
from bftfs.server.step import Ready, Sender, Server
from bftfs.storage import StorageView
from nodes.store_errors import StepAgain, StoreFailed, StoreFull


class Guard:
    """A server that writes only what the node has room for, and outlives its own bugs.

    A step that raises has changed nothing: its request is refused, and the node goes on. But an
    AssertionError says that the server itself is wrong: it stops the node, as a failing store does,
    and the cluster masks that. Damaged rows are left to the dispatcher, which has them mended.
    """

    __slots__ = ("_report", "_room", "_step")

    def __init__(
        self, server: Server, room: Room, report: Callable[[Any, Exception], None]
    ) -> None:
        self._step = server.step
        self._room = room
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
        except (AssertionError, DamagedRow, StepAgain, StoreFailed, StoreFull):
            raise
        except Exception as error:
            self._report(message, error)
            return Ready(Refused(errno.EIO, "a fault in the node, which has logged it"))
        if ready.writes:
            refusal = self._room.admits(
                sender.client, ready.writes, uses_reserve=ready.uses_reserve
            )
            if refusal is not None:
                return Ready(refusal)
        return ready
