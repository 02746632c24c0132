"""The one thread of a node: waits for events, and has them served.

A pass of the loop takes in everything that has arrived (`nodes.connections`), serves it in one
batch of the store (`nodes.batches`), and does the work that is due by the clock: dialling peers
again, closing silent connections, syncing the store, looking for room on a full disk. Between
events the node sleeps.

Concurrency: `call` may be used from any thread; everything else belongs to the loop's.
"""

from __future__ import annotations

import select
import signal
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from bftfs.limits import SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.links import Links
from nodes.batches import Batches

EVENTS_PER_TURN = 256
SYNC_EVERY_US = SECOND_US  # under interval durability
FULL_DISK_RETRY_US = SECOND_US

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR

Called = TypeVar("Called")


class Loop:
    """Serves connections until it is told to stop."""

    def __init__(self, batches: Batches, links: Links) -> None:
        self._batches = batches
        self._connections, self._dispatcher = batches.connections, batches.dispatcher
        self._store, self._room = batches.store, batches.room
        self._links = links
        self._sync_us: int | None = None  # when the store has to be synced
        self._room_us: int | None = None  # when to look for room on a full disk
        self._stopping = False
        self._calls: deque[Callable[[], None]] = deque()  # of other threads
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        for watched in (links, self._wakeup):
            self._connections.epoll.register(watched.fileno(), _IN)

    def call(self, function: Callable[[], Called], patience_s: float) -> Called:
        """The result of `function`, run in the loop's thread; to be called from another thread.

        Raises TimeoutError if the loop does not come to it.
        """
        future: Future[Called] = Future()

        def answer() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._calls.append(answer)
        self._wake()
        return future.result(patience_s)

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT end `run` after the batch in progress; SIGHUP reloads the clients."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reconsider)

    def run(self) -> None:
        """Serve until a signal ends it."""
        connections, dispatcher = self._connections, self._dispatcher
        poll = connections.epoll.poll
        by_descriptor = connections.by_descriptor
        others: dict[int, Callable[[], object]] = {
            connections.listener.fileno(): connections.accept,
            self._links.fileno(): self._links.turn,
            self._wakeup.fileno(): self._woken,
        }
        while not self._stopping:
            deadline_us = self._next_deadline_us()
            for descriptor, events in poll(self._timeout_s(deadline_us), EVENTS_PER_TURN):
                connection = by_descriptor.get(descriptor)
                if connection is None:
                    action = others.get(descriptor)
                    if action is not None:
                        action()
                    continue
                if events & _OUT:
                    connections.write(connection)
                if events & _IN:
                    connections.receive(connection)
                elif events & _GONE:
                    connections.close(connection, "lost")
            if connections.backlogged or dispatcher.has_supplies:
                self._serve()
            if deadline_us is not None and deadline_us <= clock.monotonic_us():
                self._expire()

    def close(self) -> None:
        """Close all connections."""
        self._connections.close_all()
        self._wakeup.close()
        self._waker.close()

    def _serve(self) -> None:
        self._batches.serve()
        if self._room.full and self._room_us is None:
            self._room_us = clock.monotonic_us() + FULL_DISK_RETRY_US
        self._arrange_sync()
        self._links.flush()

    # --- time --------------------------------------------------------------------------------

    def _next_deadline_us(self) -> int | None:
        """By when the loop has to wake up, even without an event; None if it need not."""
        deadline = self._links.next_deadline_us()
        for other in (self._connections.next_deadline_us(), self._sync_us, self._room_us):
            if other is not None and (deadline is None or other < deadline):
                deadline = other
        return deadline

    def _timeout_s(self, deadline_us: int | None) -> float | None:
        """How long to wait for something to happen; None for as long as it takes."""
        if self._connections.backlogged or self._dispatcher.has_supplies:
            return 0
        if deadline_us is None:
            return None
        # Up to the next whole millisecond, since epoll knows no finer ones.
        return max(0, (deadline_us - clock.monotonic_us()) // 1000 + 1) / 1000

    def _expire(self) -> None:
        """Do the work that is due by now."""
        now = clock.monotonic_us()
        deadline = self._links.next_deadline_us()
        if deadline is not None and deadline <= now:
            self._links.expire()
        self._connections.expire(now)
        if self._sync_us is not None and self._sync_us <= now:
            self._sync_us = None
            self._store.start_sync(self._wake)
        if self._room_us is not None and self._room_us <= now:
            self._room.look_again(self._store.settled_figures())
            self._room_us = clock.monotonic_us() + FULL_DISK_RETRY_US if self._room.full else None

    def _wake(self) -> None:
        """End the wait for events; may be called from another thread."""
        self._waker.send(b"\0")

    def _woken(self) -> None:
        self._wakeup.recv(64)
        while self._calls:
            self._calls.popleft()()
        self._connections.dismiss()
        if self._store.syncing:
            self._store.finish_sync()
            self._arrange_sync()

    def _arrange_sync(self) -> None:
        """Have the store synced soon, if anything was committed without a sync."""
        store = self._store
        if store.unsynced and self._sync_us is None and not store.syncing:
            self._sync_us = clock.monotonic_us() + SYNC_EVERY_US

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _reconsider(self, _number: int, _frame: object) -> None:
        self._connections.reconsider()
