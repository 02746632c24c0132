"""One principal's connections to the nodes of its cluster, and the engine that speaks over them.

The sockets are watched by an epoll descriptor, which can itself be waited for. A host waits until
`fileno()` is readable, and calls `turn`, or until `next_deadline_us()`, and calls `expire`. Trio, a
node's own loop and blocking tools host the same `Links`; one wake-up serves all that has arrived.

Requests leave when the host calls `flush` (as `turn` does at its end), so that all requests that
are ready for one node go out in one write. Delivery is not promised. While a node cannot be
reached, the latest few requests to it are kept; conversations that need more ask again. If a node
does not know our key, they are answered with a refusal, so that a client that was revoked is told
instead of waiting.

Concurrency: one thread. Conversations run inside `turn` and inside `engine.start`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from bftfs.asking.refusal import Refused
from bftfs.cluster import ClusterDescription, Member
from bftfs.crypto.digest import Body
from bftfs.crypto.keys import Identity
from bftfs.engine import Engine
from bftfs.errors import NotAdmitted, OtherVersion, PeerFault
from bftfs.identifiers import NodeId
from bftfs.limits import MIB, SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.sockets import RECEIVE_BYTES, Output, dial
from bftfs.wire.channel import ENTROPY_BYTES, ClientChannel
from bftfs.wire.codec import encode

OUTPUT_BYTES = 16 * MIB  # unsent requests to one node; more are dropped
EARLY_REQUESTS = 256  # requests that are kept for a node until it can be reached
EARLY_BYTES = 16 * MIB
GREETING_PATIENCE_US = 5 * SECOND_US  # for connecting and shaking hands
BACKOFF_FIRST_US = 50_000
BACKOFF_LAST_US = 2 * SECOND_US
ATTEMPTS = 4  # to make a connection that is not persistent, before its waiting requests are dropped
EVENTS_PER_TURN = 64
SILENT_US = 2 * SECOND_US  # a node that owes an answer for so long counts as silent

_NOT_GREETED = (
    "closed by the node at the greeting; it may run another release of bftfs, or be of another "
    "cluster"
)
_NOT_ADMITTED = Refused(errno.EACCES, "the cluster does not know this client's key (any more)")

_IN = select.EPOLLIN
_IN_OUT = select.EPOLLIN | select.EPOLLOUT
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR

Request = tuple[int, bytes, Body]  # number, metadata, body


class Waiting(NamedTuple):
    """Too few nodes answer: the silent ones, each with the reason, and how many are needed."""

    silent: tuple[tuple[NodeId, str], ...]
    needed: int

    def __str__(self) -> str:
        silent = ", ".join(f"node {node} ({why})" for node, why in self.silent)
        more = "1 more node" if self.needed == 1 else f"{self.needed} more nodes"
        return f"waiting for {more}; silent are {silent}"


@dataclass(slots=True, eq=False, repr=False)
class NodeLink:
    """The state of the connection to one node."""

    member: Member
    socket: socket.socket | None = None
    channel: ClientChannel | None = None
    output: Output = field(default_factory=Output)
    queued: bool = False  # True while it is in the list of links to be flushed
    interest: int = 0  # the events that epoll watches
    opened: bool = False  # True if the channel is established: requests may go out
    opened_us: int = 0  # when it was established last
    early: deque[Request] = field(default_factory=deque)  # waiting for that
    early_bytes: int = 0
    failures: int = 0  # since a connection has last lived for `BACKOFF_LAST_US`
    # When a dialled connection must be open; when a lost one may be dialled again.
    deadline_us: int | None = None
    reason: str = ""  # why the connection was lost last
    lost: bool = False  # True if that was reported, and not yet that it was found again
    owes_since_us: int = 0  # the first request since it was last heard; 0 if there is none


class Links:
    """Connections to all nodes. `persistent` ones are made at once and made again when lost;
    others when there is something to send."""

    def __init__(
        self,
        description: ClusterDescription,
        identity: Identity,
        *,
        decode: Callable[[bytes], Any],
        persistent: bool,
        report: Callable[[NodeId, str], None] = lambda _node, _why: None,
    ) -> None:
        """`report` is told of nodes that are lost, with the reason, and found again ("")."""
        self.engine = Engine(
            send=self._send, now_us=clock.now_us, monotonic_us=clock.monotonic_us, draw=clock.draw
        )
        self.dropped = 0  # requests that were not sent
        self.lost: Counter[str] = Counter()  # connections, by reason
        self._description = description
        self._identity = identity
        self._persistent = persistent
        self._report = report
        self._links = tuple(NodeLink(member) for member in description.members)
        self._by_descriptor: dict[int, NodeLink] = {}
        self._unflushed: list[NodeLink] = []
        self._due: dict[NodeLink, None] = {}  # those that have a deadline: none, as a rule
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._decode = decode
        self._encoded: tuple[Any, bytes] = (None, b"")  # a message goes to several nodes
        self._sending_us = 0  # when the first request was made since the last flush; 0: none was
        if persistent:
            for link in self._links:
                self._dial(link)

    def fileno(self) -> int:
        """The descriptor that is readable whenever `turn` has something to do."""
        return self._epoll.fileno()

    def next_deadline_us(self) -> int | None:
        """By when `expire` must be called, in monotonic microseconds; None if it need not."""
        deadline = self.engine.next_deadline_us()
        for link in self._due:
            if link.deadline_us is not None and (deadline is None or link.deadline_us < deadline):
                if link.socket is None and not (self._persistent or link.early):
                    continue  # it is dialled when there is something to send
                deadline = link.deadline_us
        return deadline

    def turn(self, timeout_s: float | None = 0) -> None:
        """Wait at most `timeout_s`, then do all that is due: receive, run, expire, send."""
        by_descriptor = self._by_descriptor
        for descriptor, events in self._poll(timeout_s, EVENTS_PER_TURN):
            link = by_descriptor.get(descriptor)
            if link is None:
                continue
            if events & _IN:
                self._receive(link)
            elif events & _GONE:
                self._lose(link, "connection lost")
            if events & _OUT and link.socket is not None:
                self._write(link)
        self.flush()

    def expire(self) -> None:
        """Wake conversations whose patience has run out; dial lost nodes again."""
        now = clock.monotonic_us()
        for link in tuple(self._due):
            if link.deadline_us is None or link.deadline_us > now:
                continue
            if link.socket is not None:
                self._lose(link, "no answer to the greeting")
            elif self._persistent or link.early:
                self._dial(link)
        self.engine.expire()
        self.flush()

    def flush(self) -> None:
        """Send the requests that are ready, each node's in one write."""
        self._sending_us = 0
        unflushed = self._unflushed
        if unflushed:
            for link in unflushed:
                link.queued = False
                if link.interest == _IN:  # otherwise the socket is full, and epoll will tell
                    self._write(link)
            unflushed.clear()

    def unreachable(self) -> tuple[tuple[NodeId, str], ...]:
        """The nodes to which a connection was tried in vain, and why."""
        return tuple(
            (link.member.node, link.reason)
            for link in self._links
            if link.failures and not link.opened
        )

    def waiting_for(self) -> Waiting | None:
        """The nodes that a conversation in progress waits for, if too few answer."""
        before = clock.monotonic_us() - SILENT_US
        silent = tuple(
            (link.member.node, "does not answer" if link.opened else link.reason or "no connection")
            for link in self._links
            if (link.failures and not link.opened) or 0 < link.owes_since_us <= before
        )
        description = self._description
        quorum = max(description.query_update.q, description.read_write.responses)
        needed = quorum - (description.n - len(silent))
        return Waiting(silent, needed) if needed > 0 else None

    @property
    def open(self) -> int:
        """The number of nodes to which requests can be sent at once."""
        return sum(link.opened for link in self._links)

    def close(self) -> None:
        """Close all connections. Conversations in progress hear nothing more."""
        for link in self._links:
            if link.socket is not None:
                link.socket.close()
                link.socket = None
                link.opened = False
        self._by_descriptor.clear()
        self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -----------------------------------------------------------------------------------------

    def _send(self, node: NodeId, number: int, message: Any, body: Body) -> None:
        """Send a request; called by the engine."""
        link = self._links[node]
        known, metadata = self._encoded
        if message is not known:
            metadata = encode(message)
            self._encoded = (message, metadata)
        if not link.owes_since_us:
            if not self._sending_us:
                self._sending_us = clock.monotonic_us()
            link.owes_since_us = self._sending_us
        if link.opened:
            output = link.output
            if output.size > OUTPUT_BYTES:
                self.dropped += 1
                return
            assert link.channel is not None
            output.add(link.channel.seal_request(number, metadata, body))
            if not link.queued:
                link.queued = True
                self._unflushed.append(link)
            return
        link.early.append((number, metadata, body))
        link.early_bytes += len(metadata) + len(body)
        while len(link.early) > EARLY_REQUESTS or link.early_bytes > EARLY_BYTES:
            _, forgotten, payload = link.early.popleft()
            link.early_bytes -= len(forgotten) + len(payload)
            self.dropped += 1
        if link.socket is None and (
            link.deadline_us is None or link.deadline_us <= clock.monotonic_us()
        ):
            self._dial(link)

    def _dial(self, link: NodeLink) -> None:
        try:
            connection = dial(link.member.address)
        except OSError as error:
            self._back_off(link, error.strerror or str(error))
            return
        link.socket = connection
        link.deadline_us = clock.monotonic_us() + GREETING_PATIENCE_US
        self._due[link] = None
        link.output = Output()
        channel = ClientChannel(
            identity=self._identity,
            node=link.member.node,
            node_public_key=link.member.public_key,
            cluster_id=self._description.cluster_id,
            view=self._description.view,
            entropy=os.urandom(ENTROPY_BYTES),
        )
        link.channel = channel
        link.output.add([channel.opening()])
        self._by_descriptor[connection.fileno()] = link
        link.interest = _IN_OUT  # epoll tells when it is connected
        self._epoll.register(connection.fileno(), _IN_OUT)

    def _lose(self, link: NodeLink, reason: str) -> None:
        connection = link.socket
        if connection is None:
            return
        # Not forgiven by a greeting alone: a path that damages what follows would be dialled as
        # fast as possible.
        if link.opened and clock.monotonic_us() - link.opened_us >= BACKOFF_LAST_US:
            link.failures = 0
        self._by_descriptor.pop(connection.fileno(), None)
        connection.close()
        link.socket = None
        link.channel = None
        link.opened = False
        link.interest = 0
        link.output = Output()
        self._back_off(link, reason)

    def _back_off(self, link: NodeLink, reason: str) -> None:
        self.lost[reason] += 1
        link.reason = reason
        if not link.lost:
            link.lost = True
            self._report(link.member.node, reason)
        pause = min(BACKOFF_FIRST_US << min(link.failures, 16), BACKOFF_LAST_US)
        link.failures += 1
        if not self._persistent and link.failures > ATTEMPTS:
            self.dropped += len(link.early)
            link.early.clear()
            link.early_bytes = 0
        # Half of it is drawn, so that many clients do not come back at the same moment.
        link.deadline_us = clock.monotonic_us() + pause // 2 + clock.draw(pause // 2)
        self._due[link] = None

    def _write(self, link: NodeLink) -> None:
        assert link.socket is not None
        try:
            link.output.write(link.socket)
        except OSError as error:
            self._lose(link, error.strerror or "connection lost")
            return
        interest = _IN_OUT if link.output.size else _IN
        if interest != link.interest:
            link.interest = interest
            self._epoll.modify(link.socket.fileno(), interest)

    def _receive(self, link: NodeLink) -> None:
        assert link.socket is not None
        assert link.channel is not None
        try:
            size = link.socket.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(link, error.strerror or "connection lost")
            return
        if not size:
            self._lose(link, "closed by the node" if link.opened else _NOT_GREETED)
            return
        node, decode, deliver = link.member.node, self._decode, self.engine.deliver
        try:
            frames = link.channel.receive(self._scratch[:size])
            replies = [(frame.number, decode(frame.metadata), frame.body) for frame in frames]
        except PeerFault as fault:
            if isinstance(fault, NotAdmitted):
                self._lose(link, str(fault))
                self._reject(link)
            elif isinstance(fault, OtherVersion):
                self._lose(link, fault.evidence)
            else:
                self._lose(link, type(fault).__name__)
            return
        if not link.opened and link.channel.established:
            self._open(link)
        if replies:
            link.owes_since_us = 0
        for number, message, body in replies:
            deliver(node, number, message, body)

    def _reject(self, link: NodeLink) -> None:
        """Answer the requests that wait for a node that does not know our key."""
        waiting = tuple(link.early)
        link.early.clear()
        link.early_bytes = 0
        link.owes_since_us = 0
        for number, _, _ in waiting:
            self.engine.deliver(link.member.node, number, _NOT_ADMITTED, b"")

    def _open(self, link: NodeLink) -> None:
        """The node has proven its identity: send the requests that waited for that."""
        assert link.channel is not None
        link.opened = True
        if link.lost:
            link.lost = False
            self._report(link.member.node, "")
        link.opened_us = clock.monotonic_us()
        link.deadline_us = None
        self._due.pop(link, None)
        link.output.add(link.channel.confirmation())
        for number, metadata, body in link.early:
            link.output.add(link.channel.seal_request(number, metadata, body))
        link.early.clear()
        link.early_bytes = 0
        if link.output.size and not link.queued:
            link.queued = True
            self._unflushed.append(link)
