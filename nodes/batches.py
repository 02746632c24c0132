"""From requests to replies, in one batch of the store: step, commit, answer.

**Situation.** Making a batch durable costs more than stepping a request. Requests that arrive while
a commit runs share the next one.

**Rules.**

1. A reply that depends on a write leaves only after the commit of that write. [design §9] This
   order is decided here and nowhere else. Replies of requests that were stepped before anything was
   written do not wait for it.
2. In each batch every principal that waits has a fair share (`nodes.connections.Turn`); those that
   had nothing come first in the next.
3. A batch that cannot be committed has not happened: its requests are stepped again, in a new one.
   Parked requests, whose peers' supplies are lost with it, are told to ask again.

**Why it is safe.** Servers keep nothing of a step but what they write, so a step may be repeated.

**Tests.** `tests/unit/nodes/test_turns.py`, `tests/integration/test_node.py` (kill -9 at any moment
loses nothing that was acknowledged; a full disk refuses writers and serves readers).

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from bftfs.asking.refusal import Refused
from bftfs.errors import PeerFault
from bftfs.limits import MIB
from bftfs.runtime import clock
from bftfs.server.dispatcher import Dispatcher, Outgoing
from bftfs.server.room import Room
from bftfs.server.step import Sender
from nodes.connections import UNSENT_BYTES, Connection, Connections, Turn
from nodes.metrics import LoopTally
from nodes.store import Batch, Store
from nodes.store_directory import StepAgain, StoreFull

BATCH_BYTES = 8 * MIB  # bodies of requests and replies in one batch

_ASK_AGAIN = Refused(errno.EAGAIN, "the node could not store the rows that its peers supplied")


class Arrival(msgspec.Struct, gc=False):
    """A request that was stepped and has its reply in the outbox."""

    connection: Connection
    sender: Sender
    number: int
    message: Any
    body: bytes | memoryview


@dataclass(slots=True, kw_only=True)
class Batches:
    """Serves the requests that have arrived, batch by batch."""

    connections: Connections
    decode: Callable[[bytes], Any]
    dispatcher: Dispatcher
    store: Store
    room: Room
    tally: LoopTally
    early: int = 0  # replies in the outbox that need no commit

    def serve(self) -> None:
        """Step the requests that have arrived, commit, send the replies."""
        self.tally.batches += 1
        self.connections.dismiss()
        outbox = self.dispatcher.outbox
        arrivals: list[Arrival] = []
        resumed = 0  # replies ahead of those to `arrivals`, to requests that were parked
        first = True
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
                break
            except StepAgain:
                pass
            except StoreFull as full:
                self.room.disk_is_full(full.reason, self.store.space.figures())
            outbox[:] = [
                Outgoing(reply.origin, reply.number, _ASK_AGAIN, b"") for reply in outbox[:resumed]
            ]
            first = False
        self.connections.send(outbox)
        outbox.clear()
        self.store.maintain()

    def _step_backlogs(self, batch: Batch, arrivals: list[Arrival]) -> int:
        """Step the requests that wait, a fair share of each principal.

        The result is how many of the replies in the outbox do not depend on a write.
        """
        connections = self.connections
        waiting, connections.backlogged = connections.backlogged, []
        accounts = (each.account for each in waiting if each.account is not None)
        turn = Turn(self.tally.batches, accounts, clock.monotonic_us())
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
        return self.early

    def _step(
        self,
        connection: Connection,
        batch: Batch,
        arrivals: list[Arrival],
        turn: Turn,
        now_us: int,
    ) -> bool:
        """Step the connection's requests; False if its peer must take its replies first."""
        backlog, sender, account = connection.backlog, connection.sender, connection.account
        outbox = self.dispatcher.outbox
        promised = connection.output.size
        while backlog and account is not None and turn.goes_on(account):
            assert sender is not None
            frame = backlog.popleft()
            message = self.decode(frame.metadata)
            self.tally.requests[type(message)] += 1
            arrivals.append(Arrival(connection, sender, frame.number, message, frame.body))
            is_answered = self._handle(batch, arrivals[-1], now_us)
            turn.charge(account, clock.monotonic_us())
            turn.volume += len(frame.body)
            if not is_answered:
                arrivals.pop()
            else:
                size = len(outbox[-1].body)
                turn.volume += size
                promised += size
                if not batch.writes:
                    self.early = len(outbox)
            if turn.volume > BATCH_BYTES or promised > UNSENT_BYTES:
                break
        return promised <= UNSENT_BYTES

    def _step_again(self, batch: Batch, arrivals: list[Arrival]) -> int:
        """Step the requests of a batch that was not committed."""
        now_us = clock.now_us()
        for arrival in tuple(arrivals):
            if not self._handle(batch, arrival, now_us):
                arrivals.remove(arrival)
        return 0

    def _handle(self, batch: Batch, arrival: Arrival, now_us: int) -> bool:
        """Step a request; False if it is parked, and the dispatcher will resume it."""
        outbox = self.dispatcher.outbox
        replies = len(outbox)
        self.dispatcher.handle(
            batch,
            origin=arrival.connection,
            sender=arrival.sender,
            number=arrival.number,
            message=arrival.message,
            body=arrival.body,
            now_us=now_us,
        )
        return len(outbox) > replies

    def _commit(self, batch: Batch) -> None:
        started = time.perf_counter()
        batch.commit(use_reserve=self.room.full)
        self.tally.commit_s += time.perf_counter() - started
        self.tally.commits += 1
