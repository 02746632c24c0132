"""The one thread of a node: waits for events, and serves them in batches: step, commit, answer.

A pass of the loop takes in everything that has arrived (`nodes.connections`), serves it in one
batch of the store, and does the work that is due by the clock: dialling peers again, closing silent
connections, syncing the store, looking for room on a full disk. Between events the node sleeps.

**Situation.** Making a batch durable costs more than stepping a request. Requests that arrive while
a commit runs share the next one.

**Rules.**

1. A reply that depends on a write leaves only after the commit of that write. [design §9] This
   order is decided here and nowhere else. Replies of requests that were stepped before anything was
   written do not wait for it.
2. In each batch every principal that waits has a fair share (`nodes.connections.Turn`); where not
   all are served, those that have been served least come first in the next one.
3. If a batch cannot be committed, nothing of it is stored: its requests are stepped again in a new
   one. If it had rows from peers for parked requests, these are refused and told to ask again.

**Why it is safe.** A step leaves nothing behind but its writes, so it may be repeated.

**Tests.** `tests/unit/nodes/test_turns.py`, `tests/integration/test_node.py` (kill -9 at any moment
loses nothing that was acknowledged; a full disk refuses writers and serves readers).

Concurrency: `Loop.call` may be used from any thread; everything else belongs to the loop's.
"""

from __future__ import annotations

import errno
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bftfs.asking.refusal import Refused
from bftfs.envelope import bulk_of
from bftfs.errors import PeerFault
from bftfs.limits import MIB, SECOND_US
from bftfs.runtime import clock, supervisor
from bftfs.runtime.links import Links
from bftfs.server.dispatcher import Dispatcher, Incoming, Outgoing
from bftfs.server.room import Room
from nodes.connections import UNSENT_BYTES, Connection, Connections, Turn, Turns
from nodes.metrics import LoopTally
from nodes.store import Batch, Store
from nodes.store_directory import StepAgain, StoreFull

BATCH_BYTES = 8 * MIB  # of requests and replies in one batch: bodies, and large parts of replies

_ASK_AGAIN = Refused(errno.EAGAIN, "the node could not store the rows that its peers supplied")


@dataclass(slots=True, kw_only=True)
class Batches:
    """Serves the requests that have arrived, batch by batch."""

    connections: Connections
    decode: Callable[[bytes], Any]
    dispatcher: Dispatcher
    store: Store
    room: Room
    tally: LoopTally
    turns: Turns = field(default_factory=Turns)
    early: int = 0  # replies in the outbox that need no commit

    def serve(self) -> None:
        """Step the requests that have arrived, commit, send the replies."""
        self.tally.batches += 1
        self.connections.dismiss()
        outbox = self.dispatcher.outbox
        arrivals: list[Incoming] = []
        resumed = 0  # replies to parked requests, which are before the others in the outbox
        first, wrote = True, False
        while True:
            try:
                with self.store.batch() as batch:
                    if first:
                        self.dispatcher.resume(batch, clock.now_us())
                        resumed = len(outbox)
                        early = self._step_backlogs(batch, arrivals)
                    else:
                        early = self._step_again(batch, arrivals)
                    if batch.writes:
                        if early:
                            self.connections.send(outbox[:early])
                            del outbox[:early]
                            del arrivals[: early - resumed]
                            resumed = 0
                        self._commit(batch)
                        wrote = True
                break
            except StepAgain:
                pass
            except StoreFull as full:
                self.room.disk_is_full(full.reason, self.store.space.figures())
            self.dispatcher.lost += 1
            outbox[:] = [
                Outgoing(reply.origin, reply.number, _ASK_AGAIN, b"") for reply in outbox[:resumed]
            ]
            first = False
        self.connections.send(outbox)
        outbox.clear()
        if wrote:
            self.store.maintain()

    def _step_backlogs(self, batch: Batch, arrivals: list[Incoming]) -> int:
        """Step waiting requests, a fair share of each principal's.

        Returns how many replies in the outbox do not depend on a write.
        """
        connections = self.connections
        waiting, connections.backlogged = connections.backlogged, []
        turn = self.turns.begin(waiting, clock.monotonic_us())
        now_us = clock.now_us()
        self.early = 0 if batch.writes else len(self.dispatcher.outbox)
        served: list[Connection] = []
        remaining = iter(waiting)
        for connection in remaining:
            connection.waiting = False
            before = len(connection.backlog)
            try:
                takes_more = self._step(connection, batch, arrivals, turn, now_us)
            except PeerFault as fault:
                connections.offend(connection, fault)
                takes_more = False
            except (StepAgain, StoreFull):
                connections.queue(connection)
                connections.backlogged += [*remaining, *served]
                raise
            if not connection.backlog:
                connection.backlog_bytes = 0
            elif takes_more:
                connection.waiting = True
                had_some = len(connection.backlog) < before
                (served if had_some else connections.backlogged).append(connection)
            if turn.volume > BATCH_BYTES:
                break
        connections.backlogged += [*remaining, *served]
        self.turns.left_some = bool(connections.backlogged)
        return self.early

    def _step(
        self,
        connection: Connection,
        batch: Batch,
        arrivals: list[Incoming],
        turn: Turn,
        now_us: int,
    ) -> bool:
        """Step the connection's requests; False if its peer must take its replies first."""
        backlog, sender, account = connection.backlog, connection.sender, connection.account
        outbox, handle = self.dispatcher.outbox, self.dispatcher.handle
        promised = connection.output.size
        while backlog and account is not None and turn.goes_on(account):
            assert sender is not None
            frame = backlog.popleft()
            message, body = self.decode(frame.metadata), frame.body
            self.tally.requests[type(message)] += 1
            request = Incoming(
                connection, sender, frame.number, message, body, size=len(frame.metadata)
            )
            arrivals.append(request)
            volume = len(body)
            if handle(batch, request, now_us):
                size = len(outbox[-1].body) + bulk_of(outbox[-1].message)
                volume += size
                promised += size
                if not batch.writes:
                    self.early = len(outbox)
            else:
                arrivals.pop()
            turn.volume += volume
            if turn.is_shared:
                turn.charge(account, clock.monotonic_us(), volume + len(frame.metadata))
            if turn.volume > BATCH_BYTES or promised > UNSENT_BYTES:
                break
        return promised <= UNSENT_BYTES

    def _step_again(self, batch: Batch, arrivals: list[Incoming]) -> int:
        """Step the requests of a batch that was not committed."""
        now_us = clock.now_us()
        for arrival in tuple(arrivals):
            if not self.dispatcher.handle(batch, arrival, now_us):  # it is parked
                arrivals.remove(arrival)
        return 0

    def _commit(self, batch: Batch) -> None:
        started = time.perf_counter()
        batch.commit(use_reserve=self.room.full)
        self.tally.commit_s += time.perf_counter() - started
        self.tally.commits += 1


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
        self._alive_every_us = supervisor.alive_every_us()
        self._alive_us: int | None = None  # when to tell the service manager of it
        self._stopping = False
        self._calls: deque[Callable[[], None]] = deque()  # of other threads
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        for watched in (links, self._wakeup):
            self._connections.epoll.register(watched.fileno(), _IN)

    def call(self, function: Callable[[], Called], patience_s: float) -> Called:
        """The result of `function`, run in the loop's thread; to be called from another thread.

        Raises TimeoutError if the loop is too busy.
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
        signal.signal(signal.SIGHUP, lambda *_: self._connections.reconsider())

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
        self._tell_alive()
        while not self._stopping:
            deadline_us = self._next_deadline_us()
            connections.begin_turn()
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
        """When the loop must wake up if there is no event; None: never."""
        deadline = self._links.next_deadline_us()
        others = (
            self._connections.next_deadline_us(),
            self._sync_us,
            self._room_us,
            self._alive_us,
        )
        for other in others:
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
        if self._alive_us is not None and self._alive_us <= now:
            self._tell_alive()

    def _tell_alive(self) -> None:
        """Tell the service manager, if it wants to know, that the loop turns."""
        if self._alive_every_us is not None:
            supervisor.tell(supervisor.ALIVE)
            self._alive_us = clock.monotonic_us() + self._alive_every_us

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
        """Schedule a sync of the store, if something was committed without one."""
        store = self._store
        if store.unsynced and self._sync_us is None and not store.syncing:
            self._sync_us = clock.monotonic_us() + SYNC_EVERY_US

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
