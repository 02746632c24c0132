"""Upkeep of a node: its background work is controlled, and its metrics read, by two people.

The cluster's administrator sends an `UpkeepRequest` over a channel, from any machine. The channel
proves that it comes from the administrator's key, is meant for this node, and is not a repetition.
Nobody else's is served: neither clients nor other nodes have any command over a node.

The node's owner sends the same request on a Unix socket in the node's own directory. Only the user
that the node runs as (or root) may connect: the file's mode says so, and the kernel names the user
at the other end.

Concurrency: a thread sleeps until somebody connects to that socket, and passes requests to the
node's loop. All requests are carried out in the loop's thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import Body
from bftfs.envelope import (
    METRICS_CHARACTERS,
    ClientUse,
    UpkeepReply,
    UpkeepRequest,
    UsagePage,
    WorkStatus,
)
from bftfs.errors import BftfsError, MalformedMessage
from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.sockets import forget, listen
from bftfs.server.step import Ready, Role, Sender
from bftfs.server.worker import RATE_BYTES_LEAST, Throttle
from bftfs.storage import StorageView
from bftfs.wire.codec import Decoder, encode

PATIENCE_S = 5.0
_REQUEST_BYTES = 4096
_REPLY_BYTES = 2 * METRICS_CHARACTERS
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_REQUEST: Final[Decoder[UpkeepRequest]] = Decoder(UpkeepRequest, limit=_REQUEST_BYTES)
_REPLY: Final[Decoder[UpkeepReply]] = Decoder(UpkeepReply, limit=_REPLY_BYTES)


class ControlFailed(BftfsError):
    """The request was not carried out, and why."""


class NoControlSocket(ControlFailed):
    """No node listens there: it does not run, or is on another machine."""


@dataclass(frozen=True, slots=True)
class PassState:
    """How far a worker has come with its pass, and what it has counted."""

    under_way: bool
    progress: float
    remaining_us: int | None
    ended_us: int  # 0: never
    figures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of background work that may be controlled."""

    throttle: Throttle
    state_at: Callable[[int], PassState]


# Runs a function in the node's loop and returns its result; TimeoutError if the loop is too busy.
CallInLoop: TypeAlias = Callable[[Callable[[], UpkeepReply], float], UpkeepReply]


# --- the node -----------------------------------------------------------------------------------


class Upkeep:
    """Carries out the requests, for whomever they come from; serves the administrator's."""

    def __init__(self, works: tuple[Work, ...], metrics: Callable[[], str]) -> None:
        """`metrics` gives all metrics as text."""
        self._works = {work.throttle.name: work for work in works}
        self._metrics = metrics
        self.clients: Callable[[], tuple[ClientUse, ...]] = tuple  # when each was connected last
        self.usage: Callable[[StorageView, bytes, tuple[int, ...]], UsagePage] = lambda *_: (
            UsagePage((), b"")
        )  # a page of what is stored

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve an `UpkeepRequest` that came over a channel."""
        if sender.role is not Role.ADMINISTRATOR:
            return Ready(Refused(errno.EACCES, "only the cluster's administrator may do upkeep"))
        if message.verb == "usage":
            return Ready(UpkeepReply(usage=self.usage(view, message.after, message.bounds)))
        return Ready(self.perform(message))

    def perform(self, request: UpkeepRequest) -> UpkeepReply:
        """Carry out a request. In the loop's thread."""
        if request.verb == "metrics":
            return UpkeepReply(metrics=self._metrics()[:METRICS_CHARACTERS])
        if request.verb == "clients":
            return UpkeepReply(clients=self.clients())
        if request.verb == "usage":
            return UpkeepReply("what is stored is told to the administrator's key only")
        work = self._works.get(request.work)
        if work is None:
            known = " and ".join(sorted(self._works)) or "nothing"
            return UpkeepReply(f"this node has no work called {request.work!r}: there is {known}")
        throttle = work.throttle
        match request.verb:
            case "start":
                throttle.start()
            case "pause":
                throttle.pause()
            case "resume":
                throttle.resume()
            case "throttle":
                rate = request.rate_bytes
                if rate is None or rate < RATE_BYTES_LEAST:
                    return UpkeepReply(f"a rate is at least {RATE_BYTES_LEAST} bytes per second")
                throttle.set_rate(rate)
            case "status":
                pass
        return UpkeepReply(status=status_of(work))


class Control:
    """Listens for the node's owner."""

    def __init__(self, path: Path, upkeep: Upkeep) -> None:
        self._address = f"unix:{path.absolute()}"
        self._upkeep = upkeep
        self._call: CallInLoop
        mask = os.umask(0o177)  # no other user may connect, from the first moment on
        try:
            self._listener = listen(self._address)
        finally:
            os.umask(mask)
        self._listener.setblocking(True)

    def serve(self, call: CallInLoop) -> None:
        """Start to answer, in a thread; connections that were made before have waited."""
        self._call = call
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        forget(self._address)

    def _serve(self) -> None:
        while True:
            try:
                asking, _ = self._listener.accept()
            except OSError:
                return  # closed
            with asking, contextlib.suppress(OSError):  # the owner has gone
                asking.settimeout(PATIENCE_S)
                asking.sendall(encode(self._answer(asking)))

    def _answer(self, asking: socket.socket) -> UpkeepReply:
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in {0, os.geteuid()}:
            return UpkeepReply("only the user that the node runs as may control it")
        try:
            with asking.makefile("rb") as received:
                request = _REQUEST.decode(received.read(_REQUEST_BYTES + 1))
        except MalformedMessage as fault:
            return UpkeepReply(f"this is not a command: {fault.evidence[:256]}")
        try:
            return self._call(lambda: self._upkeep.perform(request), PATIENCE_S)
        except TimeoutError:
            return UpkeepReply("the node is too busy to answer")


def status_of(work: Work) -> WorkStatus:
    """The state of `work` now."""
    now_us = clock.now_us()
    throttle, state = work.throttle, work.state_at(now_us)
    remaining = state.remaining_us
    return WorkStatus(
        throttle.name,
        "paused" if throttle.paused else "running" if state.under_way else "idle",
        min(max(float(state.progress), 0.0), 1.0),
        throttle.measured_rate(now_us) if state.under_way and not throttle.paused else 0.0,
        throttle.rate_bytes,
        None if throttle.paused or remaining is None else max(remaining, 0) / SECOND_US,
        state.ended_us / SECOND_US or None,
        state.figures,
    )


# --- its owner ----------------------------------------------------------------------------------


def send_request(path: Path, request: UpkeepRequest) -> UpkeepReply:
    """The answer of the node whose control socket is at `path`. Raises ControlFailed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2 * PATIENCE_S)
        try:
            connection.connect(os.fsencode(path))
            connection.sendall(encode(request))
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as received:
                reply = _REPLY.decode(received.read(_REPLY_BYTES + 1))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoControlSocket("does not run on this machine") from None
        except PermissionError:
            raise ControlFailed("belongs to another user: only its owner may control it") from None
        except MalformedMessage:
            raise ControlFailed(
                "gives an answer that cannot be read: it runs another version of bftfs; restart it"
            ) from None
        except OSError as error:
            raise ControlFailed(f"cannot be controlled ({error})") from None
    if reply.error:
        raise ControlFailed(reply.error)
    return reply
