"""A protocol's server as its node offers it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.errors import DamagedRow
from bftfs.query_update.messages import Update
from bftfs.server.room import Room, accounts
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
        refusal = self._refusal(view, sender, message, ready) if ready.writes else None
        return ready if refusal is None else Ready(refusal)

    def _refusal(
        self, view: StorageView, sender: Sender, message: Any, ready: Ready
    ) -> Refused | None:
        client, writes, uses_reserve = sender.client, ready.writes, ready.uses_reserve
        refusal = None
        if type(message) is Update and not ready.wants:
            refusal = self._room.admits_update(
                client, writes, uses_reserve=uses_reserve, accounts=partial(accounts, view)
            )
        return refusal or self._room.admits(client, writes, uses_reserve=uses_reserve)
