"""The connections that a node accepts: who may connect, and how much one principal gets.

**Situation.** Anybody can connect, and clients of the cluster may be malicious. They may send
garbage, never read their replies, or open as many connections as they can.

**Rules.**

- A connection is read only while none of its requests waits to be stepped, and only while its peer
  takes its replies. So nobody can make the node queue requests without limit.
- Places and bytes are shared fairly (`bftfs.server.shares`). Strangers, connections that have
  greeted and proven ones have places apart from each other, and so a newcomer finds one at each
  step. If there is one too many, a connection of the largest holder is closed: of the address with
  most strangers, of the principal with most connections, or bytes. Nodes and the administrator keep
  one whatever clients do.
- A connection that has not greeted takes one of the few places for strangers. A correct peer greets
  in the moment in which it is connected. So a new connection is read at once, one that has to go is
  read once more before it goes, and of an address the one goes that came first: it has had most
  time. All strangers together have a share of the node's time, however many come
  (`STRANGERS_TIME_US`).
- A greeting may be a recorded one. A connection counts as its principal's once that is proven; a
  correct principal needs a round trip for it. Until then it takes no place of theirs.
- Bytes that break the rules close the connection on which they arrived, and no other. A principal
  that sends such bytes in authenticated messages too often must wait before it connects again
  (`Account`). Bytes that fail the channel's check count against nobody, because the network may
  have damaged them.
- A principal has limits, however many connections it has. [design §9] One that exceeds a limit is
  delayed (its connections are not read), then cut off; others do not notice. Principals take turns:
  one that has used its share of a turn, in requests or in time spent on them, waits until the
  others have had theirs; and where not all are served, the one that has been served least
  comes first (`Turns`).
- The administrator may change the clients in the cluster description while nodes run: a new client
  can connect at once, and one that was removed is cut off (`nodes.membership`).

**Tests.** `tests/seams/test_admission.py`, `tests/integration/test_node.py`, and the
fuzzer's target `connections`.

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from bftfs.asking.refusal import Refused
from bftfs.envelope import ClientUse
from bftfs.errors import PeerFault
from bftfs.identifiers import ClientId
from bftfs.limits import CONNECTIONS, KIB, MIB, SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.links import GREETING_PATIENCE_US
from bftfs.runtime.sockets import RECEIVE_BYTES, Output, adjust, network_of
from bftfs.server.dispatcher import Outgoing
from bftfs.server.shares import gives_way
from bftfs.server.step import Role, Sender
from bftfs.wire.channel import ENTROPY_BYTES, Frame, ServerChannel
from bftfs.wire.codec import encode
from nodes.membership import LiveMembership
from nodes.metrics import LoopTally

CONNECTIONS_PER_PRINCIPAL = 16  # one per mount and tool that uses the same key
STRANGERS_MAX = 64  # connections that sent no greeting yet
UNPROVEN_MAX = 256  # that greeted, and have not proven their names…
UNPROVEN_PER_PRINCIPAL = 16  # …and those of them in one name
PROVEN_MAX = CONNECTIONS - UNPROVEN_MAX - STRANGERS_MAX
STRANGERS_TIME_US = 1_000  # spent on those that have not greeted, before the others have their turn
REQUESTS_PER_TURN = 128  # of one principal, before the others have their turn…
TIME_PER_TURN_US = 4_000  # …or its share of this time, which is divided equally
BYTES_PER_US = 1 * KIB  # of requests and replies: what taking them in and storing them counts as
RECEIVES_PER_TURN = 8  # reads from one connection, before the others have their turn
UNSENT_BYTES = 1 * MIB  # a connection that leaves more of its replies unread is not served
HELD_BYTES = 64 * MIB  # requests and replies of all connections
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
    served_us: int = 0  # time and bytes spent on it while some were left over, since the start

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


class Turns:
    """The order in which waiting principals are served: as they come, as long as all are served.

    While some are left over, the one that has been served least comes first. A principal that comes
    back is served before those that did not stop, but no more often: what it did not use is lost.
    """

    __slots__ = ("_number", "_served_us", "left_some")

    def __init__(self) -> None:
        self._number = 0
        self._served_us = 0  # the least that a principal had got when the last turn began
        self.left_some = False  # True if not all were served in the last turn

    def begin(self, waiting: list[Connection], now_us: int) -> Turn:
        """Begin a turn, and put the connections that wait into its order."""
        self._number += 1
        if len(waiting) == 1:  # nobody is before it or behind it
            return Turn(self._number, 1, now_us)
        accounts = {id(each.account): each.account for each in waiting if each.account is not None}
        turn = Turn(self._number, len(accounts), now_us)
        turn.is_ordered = turn.is_shared and self.left_some
        if turn.is_ordered:
            for account in accounts.values():
                account.served_us = max(account.served_us, self._served_us)
            self._served_us = min(account.served_us for account in accounts.values())
            waiting.sort(key=_served_us)
        return turn


def _served_us(connection: Connection) -> int:
    return 0 if connection.account is None else connection.account.served_us


class Turn:
    """One turn of the loop, which the waiting principals share."""

    __slots__ = ("_last_us", "_number", "_share_us", "is_ordered", "is_shared", "volume")

    def __init__(self, number: int, principals: int, now_us: int) -> None:
        """Requires: turns have different numbers."""
        self._number = number
        self._last_us = now_us  # when the last request had been stepped
        self.volume = 0  # bytes of requests and replies: bodies, and large parts of replies
        self.is_shared = principals > 1  # otherwise time does not count
        self.is_ordered = False  # True if later turns depend on how much each one is served
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

    def charge(self, account: Account, now_us: int, size: int) -> None:
        """Charge the principal for its request, of so many bytes with its reply.

        It has taken the time since the last charge, and more before and after it.
        """
        spent_us = now_us - self._last_us
        account.spent_us += spent_us
        if self.is_ordered:
            account.served_us += spent_us + size // BYTES_PER_US
        self._last_us = now_us


# --- connections --------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Connection:
    """The state of one accepted connection. Replies are addressed to this object."""

    socket: socket.socket | None  # None once it is closed
    network: bytes  # the address that it has come from
    channel: ServerChannel[Sender]
    deadline_us: int  # its greeting, or the proof of that, must come before this time
    used: int = 0  # the turn in which it sent something last
    sender: Sender | None = None  # that its greeting names
    proven: bool = False  # True once it has proven to be that one
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
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        self._strangers_us = 0  # time spent on strangers in this turn
        self._unproven: OrderedDict[Connection, None] = OrderedDict()
        self._unflushed: list[Connection] = []
        self._proven = 0  # connections
        self._held_bytes = 0
        self._accepting = True
        self.epoll.register(listener.fileno(), _IN)

    # --- time --------------------------------------------------------------------------------

    def next_deadline_us(self) -> int | None:
        """By when the next greeting or proof is due; None if all connections have sent theirs."""
        if not self._strangers and not self._unproven:
            return None
        return min(
            (next(iter(each)).deadline_us for each in (self._strangers, self._unproven) if each),
            default=None,
        )

    def expire(self, now_us: int) -> None:
        """Close the connections that have not sent a greeting, or not proven theirs, in time."""
        for waiting in (self._strangers, self._unproven):
            while waiting:
                oldest = next(iter(waiting))
                if oldest.deadline_us > now_us:
                    break
                self.close(oldest, "said nothing")

    # --- in ----------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Strangers have their share of time again."""
        self._strangers_us = 0

    def accept(self) -> None:
        """Accept connections, and read what they have sent."""
        began_us = clock.monotonic_us()
        for _ in range(ACCEPTS_PER_TURN):
            if self._strangers_us >= STRANGERS_TIME_US:
                return
            try:
                accepted, address = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptor is left: connections are accepted again once one is closed.
                self.epoll.modify(self.listener.fileno(), 0)
                self._accepting = False
                return
            self._tally.accepted += 1
            self._admit_stranger(accepted, network_of(address), began_us)
            now_us = clock.monotonic_us()
            self._strangers_us += now_us - began_us
            began_us = now_us

    def _admit_stranger(self, accepted: socket.socket, network: bytes, now_us: int) -> None:
        """Take in a new connection; one of the address with most of them may have to go."""
        adjust(accepted)
        connection = Connection(
            accepted,
            network,
            self._new_channel(os.urandom(ENTROPY_BYTES)),
            now_us + GREETING_PATIENCE_US,
        )
        self.by_descriptor[accepted.fileno()] = connection
        self._strangers[connection] = None
        self.epoll.register(accepted.fileno(), _IN)
        self._receive(connection)
        while len(self._strangers) > STRANGERS_MAX:
            last = gives_way(self._strangers, _network)
            self._receive(last)  # its greeting may have come in the meantime
            if last in self._strangers:
                self.close(last, "too many strangers")

    def receive(self, connection: Connection) -> None:
        """Read the bytes that a peer has sent, unless requests of its are waiting."""
        if connection.account is not None:
            if not connection.backlog:
                self._receive(connection)
        elif self._strangers_us < STRANGERS_TIME_US:  # otherwise epoll tells again
            began_us = clock.monotonic_us()
            self._receive(connection)
            self._strangers_us += clock.monotonic_us() - began_us

    def _receive(self, connection: Connection) -> None:
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
        connection.used = self._tally.batches
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
            connection.backlog_bytes += _bytes_of(frames)
            self.queue(connection)
        kept = channel.buffered + connection.backlog_bytes
        if kept > UNCOUNTED_BYTES or connection.held_bytes:
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
            return
        account.connections += 1
        self._proven += 1
        connection.proven = True
        if self._proven > PROVEN_MAX:
            self._make_place(connection)

    def _make_place(self, newcomer: Connection) -> None:
        """There is one too many: one of the principal that has most goes, the longest idle one.

        If the newcomer's has as many now as any other, that is the newcomer: so nobody takes places
        in turns.
        """
        proven = [each for each in self.by_descriptor.values() if each.proven]
        proven.sort(key=lambda each: (each is not newcomer, _is_needed(each), each.used))
        last = gives_way(_dispensable(proven), _account)
        self.close(last, "too many connections" if last is newcomer else "gave way")

    def _answer(self, connection: Connection, sender: Sender, account: Account) -> bool:
        """Answer a greeting, which may be a recorded one; False if the connection was closed."""
        now_us = clock.monotonic_us()
        if account.barred(now_us):
            self.close(connection, "barred")
            return False
        if account.connections >= CONNECTIONS_PER_PRINCIPAL:
            self.close(connection, "too many connections of one principal")
            return False
        connection.sender, connection.account = sender, account
        connection.deadline_us = now_us + GREETING_PATIENCE_US
        del self._strangers[connection]
        self._unproven[connection] = None
        account.unproven += 1
        if account.unproven > UNPROVEN_PER_PRINCIPAL:
            namesakes = [other for other in self._unproven if other.account is account]
            self.close(gives_way(namesakes, _network), "too many greetings in one name")
        elif len(self._unproven) > UNPROVEN_MAX:
            last = gives_way(_dispensable(self._unproven), _account)
            self.close(last, "too many greetings")
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
        unsent = output.size
        try:
            output.write(connection.socket)
        except OSError as error:
            self.close(connection, error.strerror or "lost")
            return
        self._tally.bytes_sent += unsent - output.size
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
        self._strangers.pop(connection, None)
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
        """Count the bytes kept for the connection; if too many, the largest holder gives way."""
        held = connection.channel.buffered + connection.backlog_bytes + connection.output.size
        self._held_bytes += held - connection.held_bytes
        connection.held_bytes = held
        if self._held_bytes > HELD_BYTES:
            holding = [each for each in self.by_descriptor.values() if each.held_bytes]
            holding.sort(key=_held, reverse=True)
            self.close(gives_way(_dispensable(holding), _account, _held), "held too much")


_network = attrgetter("network")
_account = attrgetter("account")
_held = attrgetter("held_bytes")


def _bytes_of(frames: Iterable[Frame]) -> int:
    """What they are kept in: all of each, however few bytes of it have come last."""
    return sum(len(frame.metadata) + len(frame.body) for frame in frames)


def _dispensable(crowd: Iterable[Connection]) -> list[Connection]:
    """Those of them that may have to go, in their order.

    Not the only one of a node or of the administrator, whatever clients do.
    """
    everybody = list(crowd)
    count = Counter(map(_account, everybody))
    found = [each for each in everybody if not _is_needed(each) or count[each.account] > 1]
    return found or everybody


def _is_needed(connection: Connection) -> bool:
    """True if its principal is a node or the administrator."""
    return connection.sender is not None and connection.sender.role is not Role.CLIENT
