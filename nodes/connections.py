"""The connections that a node accepts: who may connect, and how much one principal gets.

**Situation.** Anybody can connect, and clients of the cluster may be malicious. They may send
garbage, never read their replies, or open as many connections as they can.

**Rules.**

- A connection is read only while none of its requests waits to be stepped, and only while its peer
  takes its replies. So nobody can make the node queue requests without limit.
- A greeting may be a recorded one. A connection counts as its principal's once that is proven; a
  correct principal needs a round trip for it. Until then it takes no place of theirs.
- No number of principals takes all places. Strangers, unproven connections and proven ones have
  places apart from each other, and so a newcomer finds one at each step. Where all places of
  proven connections are taken, the principal that has most of them gives one up to a newcomer that
  would not have more; and nodes and the administrator find a place whatever clients do.
- The bytes that connections hold are counted; above `HELD_BYTES` the greediest is closed.
- Bytes that break the rules close the connection on which they arrived, and no other. A principal
  that sends such bytes in authenticated messages too often must wait before it connects again
  (`Account`). Bytes that fail the channel's check count against nobody, because the network may
  have damaged them.
- A principal has limits, however many connections it has. [design §9] One that exceeds a limit is
  delayed (its connections are not read), then cut off; others do not notice. Principals take turns:
  one that has used its share of a turn, in requests or in time spent on them, waits until the
  others have had theirs (`Turn`).
- The administrator may change the clients in the cluster description while nodes run: a new client
  can connect at once, and one that was removed is cut off (`nodes.membership`).

**Tests.** `tests/integration/test_node.py`, and the fuzzer's target `connections`.

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bftfs.asking.refusal import Refused
from bftfs.envelope import ClientUse
from bftfs.errors import PeerFault
from bftfs.identifiers import ClientId
from bftfs.limits import CONNECTIONS, KIB, MIB, SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.sockets import RECEIVE_BYTES, Output, adjust
from bftfs.server.dispatcher import Outgoing
from bftfs.server.step import Role, Sender
from bftfs.wire.channel import ENTROPY_BYTES, Frame, ServerChannel
from bftfs.wire.codec import encode
from nodes.membership import LiveMembership
from nodes.metrics import LoopTally

CONNECTIONS_PER_PRINCIPAL = 16  # one per mount and tool that uses the same key
UNAUTHENTICATED_MAX = 64  # connections that sent no greeting yet; the oldest gives way
UNPROVEN_PER_PRINCIPAL = 16  # that greeted in one name and have not proven it; the oldest gives way
UNPROVEN_MAX = 256  # …and in all names
PROVEN_MAX = CONNECTIONS - UNPROVEN_MAX - UNAUTHENTICATED_MAX  # the greediest gives way
GREETING_PATIENCE_US = 10 * SECOND_US  # for a new connection to greet, and then to prove its name
REQUESTS_PER_TURN = 128  # of one principal, before the others have their turn…
TIME_PER_TURN_US = 4_000  # …or its share of this time, which is divided equally
RECEIVES_PER_TURN = 8  # reads from one connection, before the others have their turn
UNSENT_BYTES = 1 * MIB  # a connection that leaves more of its replies unread is not served
HELD_BYTES = 64 * MIB  # requests and replies of all connections; beyond, the greediest is closed
UNCOUNTED_BYTES = 64 * KIB  # a connection with less is not counted
OFFENCES = 16  # connections closed for offences, before a principal has to wait
OFFENCE_FORGIVEN_US = SECOND_US
ACCEPTS_PER_TURN = 64
MEMBERSHIP_EVERY_US = SECOND_US

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT


@dataclass(slots=True, eq=False)
class Account:
    """A principal's connections, offences and use of the current turn."""

    connections: int = 0
    unproven: int = 0  # greetings in its name, which may be recorded ones, as long as they wait
    seen_us: int = 0  # when it was connected last; kept for principals that are not now
    offences: int = 0
    forgiven_us: int = 0  # when an offence was last forgiven
    turn: int = 0  # the turn in which these were used:
    stepped: int = 0  # requests
    spent_us: int = 0  # time spent on them

    def offend(self, now_us: int) -> None:
        """The principal has broken the rules of the channel."""
        self._forgive(now_us)
        self.offences += 1

    def barred(self, now_us: int) -> bool:
        """True if the principal has to wait before it may connect again."""
        self._forgive(now_us)
        return self.offences >= OFFENCES

    def _forgive(self, now_us: int) -> None:
        forgiven = (now_us - self.forgiven_us) // OFFENCE_FORGIVEN_US
        if forgiven > 0:
            self.offences = max(0, self.offences - forgiven)
            self.forgiven_us = now_us


class Turn:
    """One turn of the loop, which the waiting principals share."""

    __slots__ = ("_last_us", "_number", "_share_us", "is_shared", "volume")

    def __init__(self, number: int, waiting: Sequence[Account], now_us: int) -> None:
        """Requires: turns have different numbers."""
        self._number = number
        self._last_us = now_us  # when the last request had been stepped
        self.volume = 0  # bytes of the bodies of requests and replies
        principals = 1 if len(waiting) == 1 else len(set(map(id, waiting)))
        self.is_shared = principals > 1  # otherwise time does not count
        self._share_us = TIME_PER_TURN_US // max(principals, 1)

    def goes_on(self, account: Account) -> bool:
        """True if the principal's share of this turn is not used up; counts one more request."""
        if account.turn != self._number:
            account.turn = self._number
            account.stepped = account.spent_us = 0
        account.stepped += 1
        return account.stepped <= REQUESTS_PER_TURN and (
            not self.is_shared or account.spent_us < self._share_us
        )

    def charge(self, account: Account, now_us: int) -> None:
        """Charge the principal for the time since the last charge, which its request has taken."""
        account.spent_us += now_us - self._last_us
        self._last_us = now_us


# --- connections --------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Connection:
    """The state of one accepted connection. Replies are addressed to this object."""

    socket: socket.socket | None  # None once it is closed
    channel: ServerChannel[Sender]
    deadline_us: int  # its greeting, or the proof of that, must come before this time
    sender: Sender | None = None  # that its greeting names
    proven: bool = False  # True once that is who it is
    account: Account | None = None
    backlog: deque[Frame] = field(default_factory=deque)  # requests that have not been stepped
    backlog_bytes: int = 0
    held_bytes: int = 0  # of its requests and replies, as last counted
    waiting: bool = False  # True while it is in the list of connections with a backlog
    output: Output = field(default_factory=Output)
    queued: bool = False  # True while it is in the list of connections to be flushed
    interest: int = select.EPOLLIN  # the events that epoll watches


class Connections:
    """All connections that a node has accepted."""

    def __init__(
        self,
        *,
        listener: socket.socket,
        new_channel: Callable[[bytes], ServerChannel[Sender]],
        membership: LiveMembership,
        tally: LoopTally,
    ) -> None:
        self.by_descriptor: dict[int, Connection] = {}
        self.backlogged: list[Connection] = []  # those with requests that wait to be stepped
        self.listener = listener
        self.epoll = select.epoll()
        self._new_channel = new_channel
        self._membership = membership
        self._membership_us = 0  # when membership is checked next, if there are requests
        self._tally = tally
        # One per principal that has connected; the cluster lists no more of them.
        self._accounts: defaultdict[ClientId, Account] = defaultdict(Account)
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        # Those that have sent no greeting, and those that have not proven theirs; the oldest first.
        self._unauthenticated: OrderedDict[Connection, None] = OrderedDict()
        self._unproven: OrderedDict[Connection, None] = OrderedDict()
        self._unflushed: list[Connection] = []
        self._proven = 0  # connections
        self._held_bytes = 0
        self._accepting = True
        self.epoll.register(listener.fileno(), _IN)

    # --- time --------------------------------------------------------------------------------

    def next_deadline_us(self) -> int | None:
        """By when the next greeting or proof is due; None if all connections have sent theirs."""
        return min(
            (
                next(iter(each)).deadline_us
                for each in (self._unauthenticated, self._unproven)
                if each
            ),
            default=None,
        )

    def expire(self, now_us: int) -> None:
        """Close the connections that have not sent a greeting, or not proven theirs, in time."""
        for waiting in (self._unauthenticated, self._unproven):
            while waiting:
                oldest = next(iter(waiting))
                if oldest.deadline_us > now_us:
                    break
                self.close(oldest, "said nothing")

    # --- in ----------------------------------------------------------------------------------

    def accept(self) -> None:
        """Accept connections."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptor is left: connections are accepted again once one is closed.
                self.epoll.modify(self.listener.fileno(), 0)
                self._accepting = False
                return
            self._tally.accepted += 1
            if len(self._unauthenticated) >= UNAUTHENTICATED_MAX:
                self.close(next(iter(self._unauthenticated)), "too many strangers")
            adjust(accepted)
            connection = Connection(
                accepted,
                self._new_channel(os.urandom(ENTROPY_BYTES)),
                clock.monotonic_us() + GREETING_PATIENCE_US,
            )
            self.by_descriptor[accepted.fileno()] = connection
            self._unauthenticated[connection] = None
            self.epoll.register(accepted.fileno(), _IN)

    def receive(self, connection: Connection) -> None:
        """Read the bytes that a peer has sent, unless requests of its are waiting."""
        if connection.backlog:
            return
        for _ in range(RECEIVES_PER_TURN):
            if connection.socket is None:
                return
            try:
                size = connection.socket.recv_into(self._scratch)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(connection, error.strerror or "lost")
                return
            if not size:
                self.close(connection, "closed by the peer")
                return
            self._tally.bytes_received += size
            if not self._take_in(connection, self._scratch[:size]):
                return
            if size < RECEIVE_BYTES:
                return

    def _take_in(self, connection: Connection, data: memoryview) -> bool:
        """Queue the requests that `data` completes; False if the connection was closed for it."""
        channel = connection.channel
        try:
            frames = channel.receive(data)
        except PeerFault as fault:
            assert connection.socket is not None
            with contextlib.suppress(OSError):
                connection.socket.send(channel.pending_output())
            self.close(connection, type(fault).__name__)
            return False
        if not connection.proven:
            self._greet(connection)
            if connection.socket is None:
                return False
        if frames:
            connection.backlog.extend(frames)
            connection.backlog_bytes += len(data)
            self.queue(connection)
        if channel.buffered > UNCOUNTED_BYTES or connection.held_bytes:
            self._hold(connection)
        return True

    def _greet(self, connection: Connection) -> None:
        """If the peer has sent its greeting: admit it, or not."""
        sender = connection.channel.claimed
        if sender is None:
            return
        account = self._accounts[sender.client]
        if connection.account is None and not self._answer(connection, sender, account):
            return
        if connection.channel.peer is None:
            return
        self._forget_unproven(connection)
        if account.connections >= CONNECTIONS_PER_PRINCIPAL:
            self.close(connection, "too many connections of one principal")
        elif self._proven >= PROVEN_MAX and not self._takes_place(sender, account):
            self.close(connection, "too many connections")
        else:
            account.connections += 1
            self._proven += 1
            connection.proven = True

    def _takes_place(self, sender: Sender, account: Account) -> bool:
        """Close a connection of the principal that has most, if that is fair; False if not.

        No principal gets more than who gives way is left with: nobody takes places in turns. Except
        that the first connection of a node, or of the administrator, may take a client's only one.
        """

        def greed(connection: Connection) -> tuple[int, bool]:
            assert connection.account is not None
            assert connection.sender is not None
            return connection.account.connections, connection.sender.role is Role.CLIENT

        greediest = max((each for each in self.by_descriptor.values() if each.proven), key=greed)
        most, is_client = greed(greediest)
        is_needed = sender.role is not Role.CLIENT and is_client and not account.connections
        if most < account.connections + 2 and not is_needed:
            return False
        self.close(greediest, "gave way")
        return True

    def _answer(self, connection: Connection, sender: Sender, account: Account) -> bool:
        """Answer a greeting, which may be a recorded one; False if the connection was closed."""
        now_us = clock.monotonic_us()
        if account.barred(now_us):
            self.close(connection, "barred")
            return False
        if account.connections >= CONNECTIONS_PER_PRINCIPAL:
            self.close(connection, "too many connections of one principal")
            return False
        if account.unproven >= UNPROVEN_PER_PRINCIPAL:
            oldest = next(other for other in self._unproven if other.account is account)
            self.close(oldest, "too many greetings in one name")
        elif len(self._unproven) >= UNPROVEN_MAX:
            self.close(next(iter(self._unproven)), "too many greetings")
        connection.sender, connection.account = sender, account
        connection.deadline_us = now_us + GREETING_PATIENCE_US
        del self._unauthenticated[connection]
        self._unproven[connection] = None
        account.unproven += 1
        connection.output.add([connection.channel.pending_output()])
        self.write(connection)
        return connection.socket is not None

    def _forget_unproven(self, connection: Connection) -> None:
        if connection in self._unproven:
            assert connection.account is not None
            del self._unproven[connection]
            connection.account.unproven -= 1

    def uses(self) -> tuple[ClientUse, ...]:
        """When each principal was connected last, since the start."""
        now_us = clock.now_us()
        seen = (
            (client, now_us if account.connections else account.seen_us)
            for client, account in self._accounts.items()
        )
        return tuple(ClientUse(client, at_us // SECOND_US) for client, at_us in seen if at_us > 0)

    def queue(self, connection: Connection) -> None:
        """Let the connection's requests be stepped when it is its turn."""
        if not connection.waiting and connection.socket is not None:
            connection.waiting = True
            self.backlogged.append(connection)

    # --- out ---------------------------------------------------------------------------------

    def send(self, replies: Sequence[Outgoing]) -> None:
        """Send replies, those to one connection together."""
        unflushed = self._unflushed
        for reply in replies:
            connection, message = reply.origin, reply.message
            if connection.socket is None or message is None:
                continue
            if type(message) is Refused:
                self._tally.refused[message.code] += 1
            sealed = connection.channel.seal_reply(reply.number, encode(message), reply.body)
            connection.output.add(sealed)
            if not connection.queued:
                connection.queued = True
                unflushed.append(connection)
        for connection in unflushed:
            connection.queued = False
            if not connection.interest & _OUT:  # otherwise the socket is full, and epoll will tell
                self.write(connection)
        unflushed.clear()

    def write(self, connection: Connection) -> None:
        """Send as much as the peer takes; go on to serve it once it has taken enough."""
        if connection.socket is None:
            return
        output = connection.output
        try:
            output.write(connection.socket)
        except OSError as error:
            self.close(connection, error.strerror or "lost")
            return
        takes_replies = output.size <= UNSENT_BYTES
        interest = (_OUT if output.size else 0) | (_IN if takes_replies else 0)
        if interest != connection.interest:
            connection.interest = interest
            self.epoll.modify(connection.socket.fileno(), interest)
        if connection.backlog and takes_replies:
            self.queue(connection)
        if output.size > UNCOUNTED_BYTES or connection.held_bytes:
            self._hold(connection)

    # --- closing -----------------------------------------------------------------------------

    def reconsider(self) -> None:
        """Let the next `dismiss` check the membership, however recently it was checked."""
        self._membership_us = 0

    def dismiss(self) -> None:
        """Close the connections of clients that are revoked, or whose rights have changed."""
        now = clock.monotonic_us()
        if now < self._membership_us:
            return
        self._membership_us = now + MEMBERSHIP_EVERY_US
        self._membership.refresh()
        for connection in tuple(self.by_descriptor.values()):
            if connection.sender is not None and not self._membership.admits(connection.sender):
                self.close(connection, "no longer admitted")

    def offend(self, connection: Connection, fault: PeerFault) -> None:
        """Close a connection because of an authenticated message, and count the offence."""
        assert connection.account is not None
        connection.account.offend(clock.monotonic_us())
        self.close(connection, type(fault).__name__)

    def close(self, connection: Connection, reason: str) -> None:
        """Close a connection, unless it is closed already."""
        if connection.socket is None:
            return
        self._tally.closed[reason] += 1
        del self.by_descriptor[connection.socket.fileno()]
        self._unauthenticated.pop(connection, None)
        self._forget_unproven(connection)
        if connection.account is not None and connection.proven:
            connection.account.connections -= 1
            self._proven -= 1
            connection.account.seen_us = clock.now_us()
        connection.socket.close()
        connection.socket = None
        connection.backlog.clear()
        self._held_bytes -= connection.held_bytes
        if not self._accepting:
            self.epoll.modify(self.listener.fileno(), _IN)
            self._accepting = True

    def close_all(self) -> None:
        """Close all connections: the node stops."""
        for connection in tuple(self.by_descriptor.values()):
            self.close(connection, "node stopped")
        self.epoll.close()

    def _hold(self, connection: Connection) -> None:
        """Count the bytes that are kept for the connection; if too many, close the greediest."""
        held = connection.channel.buffered + connection.backlog_bytes + connection.output.size
        self._held_bytes += held - connection.held_bytes
        connection.held_bytes = held
        if self._held_bytes > HELD_BYTES:
            greediest = max(self.by_descriptor.values(), key=lambda other: other.held_bytes)
            self.close(greediest, "held too much")
