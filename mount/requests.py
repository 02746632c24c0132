"""The kernel's requests that wait for the cluster, and a watchdog over them.

If the cluster has no quorum, only the watchdog can free a process that waits for it: the kernel
keeps a process waiting until we have answered, even if it was killed, and libfuse does not pass
interrupts on. So the watchdog looks at every request that has waited for a while, and abandons it
if its process has a pending signal.

Concurrency: one thread. A conversation that ends without waiting costs no turn of the scheduler.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from bftfs.conversation import Conversation
from bftfs.errors import FileSystemError
from bftfs.runtime.log import Log
from bftfs.runtime.network import Network
from mount import callers

LOOK_EVERY_S: Final = 0.5
WAIT_WORTH_SAYING_S: Final = 3.0  # for nodes that are needed
PATIENT_S: Final = 1.0  # /proc is not read for a request that has waited for less than this
SLOW_S: Final = 10.0  # a request that takes longer is worth a line in the log
SLOW_AGAIN_S: Final = 60.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """A request of the kernel, and the process that it is for."""

    name: str
    inode: int
    thread: int | None = None  # the thread that asks
    opener: int | None = None  # that opened the handle, if the kernel does not tell which one asks
    # Without either, it is the kernel itself: interrupting would gain nothing.


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request that waits for the cluster."""

    request: KernelRequest
    abandon: Callable[[BaseException], None]
    since: float
    report_at: float
    reported: bool = False


class Requests:
    """Performs the conversations of requests, and watches over those that wait."""

    def __init__(self, network: Network, log: Log) -> None:
        self.device = ""  # of the mount, "major:minor"
        self._network = network
        self._log = log
        self._waiting: set[WaitingRequest] = set()
        self._said = ""  # of nodes that are waited for

    async def perform(self, request: KernelRequest, conversation: Conversation[Result]) -> Result:
        """The result of `conversation`; EINTR if the calling process has a pending signal."""
        pending: WaitingRequest | None = None

        def waits(abandon: Callable[[BaseException], None]) -> None:
            nonlocal pending
            now = trio.current_time()
            pending = WaitingRequest(request, abandon, since=now, report_at=now + SLOW_S)
            self._waiting.add(pending)

        try:
            return await self._network.perform(conversation, waits)
        finally:
            if pending is not None:
                self._waiting.discard(pending)
                if pending.reported:
                    self._report("slow request ended", pending)

    def __len__(self) -> int:
        return len(self._waiting)

    def abandon(self) -> None:
        """End all requests that wait: the mount ends."""
        for pending in tuple(self._waiting):
            pending.abandon(FileSystemError(errno.EINTR, pending.request.name))

    async def watch(self) -> None:
        """Log slow requests, and abandon those whose process wants to end."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = trio.current_time()
            patient = [each for each in self._waiting if each.since < now - PATIENT_S]
            self._tell_of_nodes(now)
            anonymous = any(pending.request.opener is not None for pending in patient)
            ending = callers.ending() if anonymous else ()
            for pending in patient:
                if self._shall_end(pending.request, ending):
                    self._report("request interrupted", pending)
                    pending.reported = False
                    pending.abandon(FileSystemError(errno.EINTR, pending.request.name))
                elif now > pending.report_at:
                    pending.report_at = now + SLOW_AGAIN_S
                    pending.reported = True
                    self._report("slow request", pending)

    def _tell_of_nodes(self, now: float) -> None:
        """Log which nodes requests wait for, once, and again when others do not answer."""
        waits = any(each.since < now - WAIT_WORTH_SAYING_S for each in self._waiting)
        if not (waits or self._said):
            return
        waiting = self._network.links.waiting_for()
        if waiting is None:
            if self._said:
                self._log.info("enough nodes answer again")
            self._said = ""
        elif waits and str(waiting) != self._said:
            self._log.warning(str(waiting), needed=waiting.needed, requests=len(self._waiting))
            self._said = str(waiting)

    def _shall_end(self, request: KernelRequest, ending: tuple[int, ...]) -> bool:
        """True if the calling process wants to end; `ending` are all processes that do."""
        if request.thread is not None:
            return callers.wants_to_end(request.thread)
        if request.opener is None or not ending:
            return False
        # The request is to close a file. Mostly the process that opened it closes it. If that
        # thread is gone, it may be any process.
        opener = callers.process_of(request.opener)
        return opener is None or any(
            pid == opener or callers.uses(pid, request.inode, self.device, opener=opener)
            for pid in ending
        )

    def _report(self, event: str, pending: WaitingRequest) -> None:
        request = pending.request
        self._log.warning(
            event,
            request=request.name,
            inode=request.inode,
            thread=request.thread,
            opener=request.opener,
            seconds=round(trio.current_time() - pending.since, 1),
        )
