"""The one thread of a node: bytes in, batches through the dispatcher, bytes out.

A turn of the loop takes in everything that has arrived, steps it in one write batch of the store,
commits once, and answers each connection in one write. While a commit runs, the next requests
arrive; they share the next commit. Nothing here wakes up unless something has happened.

Order is decided here and nowhere else: a reply that depends on a write leaves only after the
commit of that write. [design §9] The reply to a request that was stepped before anything was
written does not wait for it.

Invariants: a connection is read only while its backlog is empty and its peer takes its answers;
what all connections together hold is bounded. Whatever arrives, only the connection that it arrived
on is closed for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from bftfs.asking.refusal import Refused
from bftfs.errors import PeerFault
from bftfs.limits import CONNECTIONS, MIB, SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.links import Links
from bftfs.runtime.sockets import RECEIVE_BYTES, adjust
from bftfs.server.dispatcher import Dispatcher, Outgoing
from bftfs.server.room import Room
from bftfs.server.step import Sender
from bftfs.wire.channel import NONCE_BYTES, ServerChannel
from bftfs.wire.codec import encode
from nodes.admission import (
    CONNECTIONS_PER_PRINCIPAL,
    GREETING_PATIENCE_US,
    HELD_BYTES,
    RECEIVES_PER_TURN,
    UNAUTHENTICATED_MAX,
    UNNOTICED_BYTES,
    UNSENT_BYTES,
    Admission,
    Turn,
)
from nodes.connection import Connection
from nodes.membership import LiveMembership
from nodes.metrics import Tally
from nodes.store import Batch, Store
from nodes.store_errors import MapFull, StepAgain, StoreFull

BATCH_BYTES = 8 * MIB  # bodies of requests and replies in one batch
EVENTS_PER_TURN = 256
ACCEPTS_PER_TURN = 64
SYNC_EVERY_US = SECOND_US  # under interval durability
FULL_DISK_RETRY_US = SECOND_US
MEMBERSHIP_EVERY_US = SECOND_US

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR

_ASK_AGAIN = Refused(errno.EAGAIN, "the node could not store what its peers supplied")

Called = TypeVar("Called")

Arrival = tuple[Connection, Sender, int, Any, bytes | memoryview]


class Loop:
    """Serves connections until it is told to stop."""

    def __init__(
        self,
        *,
        listener: socket.socket,
        new_channel: Callable[[bytes], ServerChannel[Sender]],
        membership: LiveMembership,
        decode: Callable[[bytes], Any],
        dispatcher: Dispatcher,
        store: Store,
        links: Links,
        room: Room,
        tally: Tally,
    ) -> None:
        self._listener = listener
        self._new_channel = new_channel
        self._membership = membership
        self._membership_us = 0  # when it is looked at again, if there is something to serve
        self._decode = decode
        self._dispatcher = dispatcher
        self._store = store
        self._links = links
        self._room = room
        self._tally = tally
        self._admission = Admission()
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._connections: dict[int, Connection] = {}
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        self._backlogged: list[Connection] = []
        self._unflushed: list[Connection] = []
        self._held_bytes = 0
        self._sync_us: int | None = None  # when the store has to be synced
        self._room_sought_us = 0  # when there may be room again on a full disk
        self._accepting = True
        self._stopping = False
        self._calls: deque[Callable[[], None]] = deque()  # of other threads
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._epoll = select.epoll()
        for watched in (listener, links, self._wakeup):
            self._epoll.register(watched.fileno(), _IN)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def call(self, function: Callable[[], Called], patience_s: float) -> Called:
        """What `function` gives in the loop's thread, between two batches; from another thread.

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
        """Let SIGTERM and SIGINT end `run` after the batch in progress; SIGHUP, a look at who may
        connect."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reconsider)

    def run(self) -> None:
        """Serve until a signal ends it."""
        poll = self._epoll.poll
        connections = self._connections
        others: dict[int, Callable[[], object]] = {
            self._listener.fileno(): self._accept,
            self._links.fileno(): self._links.turn,
            self._wakeup.fileno(): self._woken,
        }
        while not self._stopping:
            deadline_us = self._next_deadline_us()
            for descriptor, events in poll(self._timeout_s(deadline_us), EVENTS_PER_TURN):
                connection = connections.get(descriptor)
                if connection is None:
                    action = others.get(descriptor)
                    if action is not None:
                        action()
                    continue
                if events & _OUT:
                    self._write(connection)
                if events & _IN:
                    self._receive(connection)
                elif events & _GONE:
                    self._close(connection, "lost")
            if self._backlogged or self._dispatcher.has_supplies:
                self._serve()
            if deadline_us is not None and deadline_us <= clock.monotonic_us():
                self._expire()

    def close(self) -> None:
        """Close all connections."""
        for connection in tuple(self._connections.values()):
            self._close(connection, "node stopped")
        self._epoll.close()
        self._wakeup.close()
        self._waker.close()

    # --- time --------------------------------------------------------------------------------

    def _next_deadline_us(self) -> int | None:
        """When something is due, whatever happens; None if nothing is."""
        deadline = self._links.next_deadline_us()
        if self._sync_us is not None and (deadline is None or self._sync_us < deadline):
            deadline = self._sync_us
        if self._strangers:
            oldest = next(iter(self._strangers)).deadline_us
            if deadline is None or oldest < deadline:
                deadline = oldest
        if self._room.full and (deadline is None or self._room_sought_us < deadline):
            deadline = self._room_sought_us
        return deadline

    def _timeout_s(self, deadline_us: int | None) -> float | None:
        """How long to wait for something to happen; None for as long as it takes."""
        if self._backlogged or self._dispatcher.has_supplies:
            return 0
        if deadline_us is None:
            return None
        # Up to the next whole millisecond, since epoll knows no finer ones.
        return max(0, (deadline_us - clock.monotonic_us()) // 1000 + 1) / 1000

    def _expire(self) -> None:
        now = clock.monotonic_us()
        deadline = self._links.next_deadline_us()
        if deadline is not None and deadline <= now:
            self._links.expire()
        while self._strangers:
            oldest = next(iter(self._strangers))
            if oldest.deadline_us > now:
                break
            self._close(oldest, "said nothing")
        if self._sync_us is not None and self._sync_us <= now:
            self._sync_us = None
            self._store.start_sync(self._wake)
        if self._room.full and self._room_sought_us <= now:
            self._room.look_again(self._store.settled_figures())
            self._room_sought_us = clock.monotonic_us() + FULL_DISK_RETRY_US

    def _wake(self) -> None:
        """End the wait for events; may be called from another thread."""
        self._waker.send(b"\0")

    def _woken(self) -> None:
        self._wakeup.recv(64)
        while self._calls:
            self._calls.popleft()()
        self._dismiss()
        if self._store.syncing:
            self._store.finish_sync()
            self._arrange_sync()

    def _arrange_sync(self) -> None:
        """See to it that what was committed without a sync gets one."""
        store = self._store
        if store.unsynced and self._sync_us is None and not store.syncing:
            self._sync_us = clock.monotonic_us() + SYNC_EVERY_US

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _reconsider(self, _number: int, _frame: object) -> None:
        self._membership_us = 0

    # --- in ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptor is left: those who wait are accepted when a connection is closed.
                self._epoll.modify(self._listener.fileno(), 0)
                self._accepting = False
                return
            self._tally.accepted += 1
            if len(self._connections) >= CONNECTIONS:
                accepted.close()
                self._tally.closed["too many connections"] += 1
                continue
            if len(self._strangers) >= UNAUTHENTICATED_MAX:
                self._close(next(iter(self._strangers)), "too many strangers")
            adjust(accepted)
            connection = Connection(
                accepted,
                self._new_channel(os.urandom(NONCE_BYTES)),
                clock.monotonic_us() + GREETING_PATIENCE_US,
            )
            self._connections[accepted.fileno()] = connection
            self._strangers[connection] = None
            self._epoll.register(accepted.fileno(), _IN)

    def _receive(self, connection: Connection) -> None:
        """Take in what a connection has sent, unless it has had enough attention."""
        if connection.backlog:
            return
        channel, scratch = connection.channel, self._scratch
        for _ in range(RECEIVES_PER_TURN):
            if connection.socket is None:
                return
            try:
                size = connection.socket.recv_into(scratch)
            except BlockingIOError:
                return
            except OSError as error:
                self._close(connection, error.strerror or "lost")
                return
            if not size:
                self._close(connection, "closed by the peer")
                return
            self._tally.bytes_received += size
            try:
                frames = channel.receive(bytes(scratch[:size]))
            except PeerFault as fault:
                with contextlib.suppress(OSError):
                    connection.socket.send(channel.pending_output())
                self._offend(connection, fault)
                return
            if connection.sender is None:
                self._greet(connection)
            if frames:
                connection.backlog.extend(frames)
                connection.backlog_bytes += size
                self._queue(connection)
            if channel.buffered > UNNOTICED_BYTES or connection.held_bytes:
                self._hold(connection)
            if size < RECEIVE_BYTES:
                return

    def _greet(self, connection: Connection) -> None:
        """The peer may have said who it is: admit it, or not."""
        sender = connection.channel.claimed
        if sender is None:
            return
        account = self._admission.account(sender)
        if account.barred(clock.monotonic_us()):
            self._close(connection, "barred")
        elif account.connections >= CONNECTIONS_PER_PRINCIPAL:
            self._close(connection, "too many connections of one principal")
        else:
            account.connections += 1
            connection.sender = sender
            connection.account = account
            del self._strangers[connection]
            connection.output.add([connection.channel.pending_output()])
            self._write(connection)

    def _dismiss(self) -> None:
        """Close the connections of clients that may not connect any more, or with other rights."""
        now = clock.monotonic_us()
        if now < self._membership_us:
            return
        self._membership_us = now + MEMBERSHIP_EVERY_US
        self._membership.refresh()
        for connection in tuple(self._connections.values()):
            if connection.sender is not None and not self._membership.admits(connection.sender):
                self._close(connection, "no longer admitted")

    def _offend(self, connection: Connection, fault: PeerFault) -> None:
        # Nobody is held to account for what others can send in his name.
        if connection.account is not None and connection.channel.peer is not None:
            connection.account.offend(clock.monotonic_us())
        self._close(connection, type(fault).__name__)

    def _close(self, connection: Connection, reason: str) -> None:
        if connection.socket is None:
            return
        self._tally.closed[reason] += 1
        del self._connections[connection.socket.fileno()]
        self._strangers.pop(connection, None)
        if connection.account is not None:
            connection.account.connections -= 1
        connection.socket.close()
        connection.socket = None
        connection.backlog.clear()
        self._held_bytes -= connection.held_bytes
        if not self._accepting:
            self._epoll.modify(self._listener.fileno(), _IN)
            self._accepting = True

    # --- through -----------------------------------------------------------------------------

    def _serve(self) -> None:
        """Step what has arrived, commit, answer."""
        self._tally.batches += 1
        self._dismiss()
        dispatcher = self._dispatcher
        outbox = dispatcher.outbox
        arrivals: list[Arrival] = []  # those stepped, each with its answer in the outbox
        resumed = 0  # answers ahead of theirs, to requests that were parked
        first = True
        while True:
            try:
                with self._store.batch() as batch:
                    if first:
                        dispatcher.resume(batch, clock.now_us())
                        resumed = len(outbox)
                        early = self._step_backlogs(batch, arrivals)
                    else:
                        early = self._step_again(batch, arrivals)
                    if batch.writes:
                        if early:
                            self._answer(early)
                            del arrivals[: early - resumed]
                            resumed = 0
                        self._commit(batch)
                break
            except StepAgain:
                pass  # the store has made room
            except StoreFull as full:
                self._room.disk_is_full(full.reason, self._store.space.figures())
                self._room_sought_us = clock.monotonic_us() + FULL_DISK_RETRY_US
            # Nothing of the batch has happened, and what peers supplied for it is lost.
            outbox[:] = [
                Outgoing(answer.origin, answer.number, _ASK_AGAIN, b"")
                for answer in outbox[:resumed]
            ]
            first = False
        self._answer(len(outbox))
        self._store.maintain()
        self._arrange_sync()
        self._links.flush()

    def _step_backlogs(self, batch: Batch, arrivals: list[Arrival]) -> int:
        """Step what is waiting, a fair share of each principal.

        The result is how many of the answers in the outbox do not depend on a write.
        """
        now_us = clock.now_us()
        decode, handle, outbox = self._decode, self._dispatcher.handle, self._dispatcher.outbox
        requests = self._tally.requests
        early = 0 if batch.writes else len(outbox)
        volume = 0
        waiting = self._backlogged
        self._backlogged = []
        turn = Turn(
            self._tally.batches,
            (each.account for each in waiting if each.account is not None),
        )
        monotonic_us = clock.monotonic_us
        before_us = monotonic_us()
        served: list[Connection] = []
        remaining = iter(waiting)
        for connection in remaining:
            connection.waiting = False
            backlog, sender, account = connection.backlog, connection.sender, connection.account
            promised, before = connection.output.size, len(backlog)
            try:
                while backlog and account is not None and turn.goes_on(account):
                    frame = backlog.popleft()
                    message = decode(frame.metadata)
                    requests[type(message)] += 1
                    assert sender is not None
                    arrivals.append((connection, sender, frame.number, message, frame.body))
                    answers = len(outbox)
                    handle(
                        batch,
                        origin=connection,
                        sender=sender,
                        number=frame.number,
                        message=message,
                        body=frame.body,
                        now_us=now_us,
                    )
                    after_us = monotonic_us()
                    turn.charge(account, after_us - before_us)
                    before_us = after_us
                    volume += len(frame.body)
                    if len(outbox) == answers:
                        arrivals.pop()  # it is parked, and the dispatcher will resume it
                    else:
                        size = len(outbox[-1].body)
                        volume += size
                        promised += size
                        if not batch.writes:
                            early = answers + 1
                    if volume > BATCH_BYTES or promised > UNSENT_BYTES:
                        break
            except PeerFault as fault:
                self._offend(connection, fault)
            except (MapFull, StoreFull):
                self._queue(connection)
                self._backlogged += [*remaining, *served]
                raise
            if not backlog:
                connection.backlog_bytes = 0
            elif promised <= UNSENT_BYTES:
                connection.waiting = True
                (served if len(backlog) < before else self._backlogged).append(connection)
            if volume > BATCH_BYTES:
                break
        # Those that have had nothing come first in the next turn.
        self._backlogged += [*remaining, *served]
        return early

    def _step_again(self, batch: Batch, arrivals: list[Arrival]) -> int:
        """Step the requests of a batch that was not committed."""
        now_us = clock.now_us()
        outbox = self._dispatcher.outbox
        again = arrivals[:]
        arrivals.clear()
        for arrival in again:
            connection, sender, number, message, body = arrival
            answers = len(outbox)
            self._dispatcher.handle(
                batch,
                origin=connection,
                sender=sender,
                number=number,
                message=message,
                body=body,
                now_us=now_us,
            )
            if len(outbox) > answers:
                arrivals.append(arrival)
        return 0

    def _commit(self, batch: Batch) -> None:
        started = time.perf_counter()
        batch.commit(use_reserve=self._room.full)
        self._tally.commit_s += time.perf_counter() - started
        self._tally.commits += 1

    # --- out ---------------------------------------------------------------------------------

    def _answer(self, count: int) -> None:
        """Send the first `count` answers of the outbox, those to one connection together."""
        outbox, unflushed = self._dispatcher.outbox, self._unflushed
        for connection, number, message, body in outbox[:count]:
            if connection.socket is None or message is None:
                continue
            if type(message) is Refused:
                self._tally.refused[message.code] += 1
            connection.output.add(connection.channel.seal_reply(number, encode(message), body))
            if not connection.queued:
                connection.queued = True
                unflushed.append(connection)
        del outbox[:count]
        for connection in unflushed:
            connection.queued = False
            if not connection.interest & _OUT:  # otherwise the socket is full, and epoll will tell
                self._write(connection)
        unflushed.clear()

    def _write(self, connection: Connection) -> None:
        """Send what the peer takes; serve it further once it has taken enough."""
        if connection.socket is None:
            return
        output = connection.output
        try:
            output.write(connection.socket)
        except OSError as error:
            self._close(connection, error.strerror or "lost")
            return
        interest = (_OUT if output.size else 0) | (_IN if output.size <= UNSENT_BYTES else 0)
        if interest != connection.interest:
            connection.interest = interest
            self._epoll.modify(connection.socket.fileno(), interest)
        if connection.backlog and output.size <= UNSENT_BYTES:
            self._queue(connection)
        if output.size > UNNOTICED_BYTES or connection.held_bytes:
            self._hold(connection)

    def _queue(self, connection: Connection) -> None:
        """Let the connection have a turn."""
        if not connection.waiting and connection.socket is not None:
            connection.waiting = True
            self._backlogged.append(connection)

    def _hold(self, connection: Connection) -> None:
        """Count what the connection makes us keep; cut off the greediest if it is too much."""
        held = connection.channel.buffered + connection.backlog_bytes + connection.output.size
        self._held_bytes += held - connection.held_bytes
        connection.held_bytes = held
        if self._held_bytes > HELD_BYTES:
            greediest = max(self._connections.values(), key=lambda other: other.held_bytes)
            self._close(greediest, "held too much")
