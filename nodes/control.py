"""Lets a node's owner control its background work: a command and an answer on a Unix socket.

The socket is in the node's own directory. Only the user that the node runs as (or root) may
connect: the file's mode says so, and the kernel names the user at the other end. The socket cannot
be reached over the network, and clients of the cluster have no message for it.

Concurrency: a thread that sleeps until somebody connects. It passes commands to the node's loop,
which carries them out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from bftfs.errors import BftfsError
from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.sockets import forget, listen
from bftfs.server.worker import RATE_BYTES_LEAST, Throttle
from bftfs.wire.codec import UNREADABLE

PATIENCE_S = 5.0
_LINE_BYTES = 4096
_ANSWER_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Verb: TypeAlias = Literal["start", "pause", "resume", "throttle", "status"]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command about one kind of work."""

    work: str
    verb: Verb
    rate_bytes: int | None = None  # to throttle to


class WorkStatus(msgspec.Struct, frozen=True):
    """The state of one kind of work at one node."""

    work: str
    state: Literal["running", "paused", "idle"]
    progress: float  # of the pass under way; 1 if there is none
    bytes_per_second: float
    limit_bytes_per_second: int
    remaining_s: float | None  # None: unknown
    ended_s: float | None  # when the last complete pass ended, since the epoch
    figures: dict[str, int]


class ControlAnswer(msgspec.Struct, frozen=True):
    """The node's answer: the state of the work, or an error."""

    error: str = ""
    status: WorkStatus | None = None


class ControlFailed(BftfsError):
    """The command was not carried out, and why."""


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
    """One kind of background work that the owner may control."""

    throttle: Throttle
    state_at: Callable[[int], PassState]


# Runs a function in the node's loop and returns its result; TimeoutError if the loop is too busy.
CallInLoop: TypeAlias = Callable[[Callable[[], ControlAnswer], float], ControlAnswer]


# --- the node -----------------------------------------------------------------------------------


class Control:
    """Listens for the node's owner."""

    def __init__(self, path: Path, works: tuple[Work, ...]) -> None:
        self._address = f"unix:{path.absolute()}"
        self._works = {work.throttle.name: work for work in works}
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
                asking.sendall(msgspec.json.encode(self._answer(asking)) + b"\n")

    def _answer(self, asking: socket.socket) -> ControlAnswer:
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in {0, os.geteuid()}:
            return ControlAnswer("only the user that the node runs as may control it")
        try:
            with asking.makefile("rb") as received:
                command = msgspec.json.decode(received.readline(_LINE_BYTES), type=Command)
        except UNREADABLE as error:
            return ControlAnswer(f"this is not a command: {error}")
        try:
            return self._call(lambda: self.perform(command), PATIENCE_S)
        except TimeoutError:
            return ControlAnswer("the node is too busy to answer")

    def perform(self, command: Command) -> ControlAnswer:
        """Carry out a command. In the loop's thread."""
        work = self._works.get(command.work)
        if work is None:
            known = " and ".join(sorted(self._works)) or "nothing"
            return ControlAnswer(f"this node has no work called {command.work!r}: there is {known}")
        throttle = work.throttle
        match command.verb:
            case "start":
                throttle.start()
            case "pause":
                throttle.pause()
            case "resume":
                throttle.resume()
            case "throttle":
                rate = command.rate_bytes
                if rate is None or not RATE_BYTES_LEAST <= rate < 1 << 62:
                    return ControlAnswer(f"a rate is at least {RATE_BYTES_LEAST} bytes per second")
                throttle.set_rate(rate)
            case "status":
                pass
        return ControlAnswer(status=status_of(work))


def status_of(work: Work) -> WorkStatus:
    """The state of `work` now."""
    now_us = clock.now_us()
    throttle, state = work.throttle, work.state_at(now_us)
    remaining = state.remaining_us
    return WorkStatus(
        throttle.name,
        "paused" if throttle.paused else "running" if state.under_way else "idle",
        state.progress,
        throttle.measured_rate(now_us) if state.under_way and not throttle.paused else 0.0,
        throttle.rate_bytes,
        None if throttle.paused or remaining is None else remaining / SECOND_US,
        state.ended_us / SECOND_US or None,
        state.figures,
    )


# --- its owner ----------------------------------------------------------------------------------


def send_command(path: Path, command: Command) -> WorkStatus:
    """Send a command to the node whose control socket is at `path`. Raises ControlFailed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2 * PATIENCE_S)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(command) + b"\n")
            with connection.makefile("rb") as received:
                answer = msgspec.json.decode(received.read(_ANSWER_BYTES), type=ControlAnswer)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ControlFailed("does not run on this machine") from None
        except PermissionError:
            raise ControlFailed("belongs to another user: only its owner may control it") from None
        except (OSError, *UNREADABLE) as error:
            raise ControlFailed(f"cannot be controlled ({error})") from None
    if answer.status is None:
        raise ControlFailed(answer.error)
    return answer.status
