"""Real clients and servers of Query/Update in one process, in virtual time, on one seed.

Messages pass the real codec and the real dispatcher. Each takes a delay drawn from the seed;
`route` may drop or delay any of them, and a node's `behaviour` may replace what the honest server
does.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.credentials import Credentials
from bftfs.crypto.authenticator import AuthenticatorKeys
from bftfs.engine import Engine
from bftfs.envelope import REPLIES, REQUESTS
from bftfs.identifiers import ClientId, NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import counter_types
from bftfs.query_update.messages import Request
from bftfs.query_update.object_type import ObjectTypes
from bftfs.query_update.replica import Replica
from bftfs.query_update.server import QueryUpdateServer
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery
from bftfs.server.step import Grant, Ready, Role, Sender
from bftfs.storage import MemoryStorage
from bftfs.thresholds import QueryUpdateThresholds
from bftfs.wire.codec import encode

START_US = 1_700_000_000_000_000
USER = Credentials(uid=1000, gid=1000)
SMALLEST = QueryUpdateThresholds.smallest(t=1, b=1)


def counter_id(number: int = 0, *, placement: int = 0) -> ObjectId:
    """A counter; object ids ascend with `number` among equal placements."""
    return object_id(ObjectKind.COUNTER, placement=placement, unique=number.to_bytes(14, "big"))


def client_named(name: str) -> ClientId:
    return ClientId(hashlib.blake2b(name.encode(), digest_size=16).digest())


class Stuck(AssertionError):
    """Nothing more happens, and what was waited for has not."""


Endpoint = tuple[str, Any]
# Source, target and message; gives the delay in microseconds, or None to drop the message.
Route = Callable[[Endpoint, Endpoint, Any], int | None]
# The honest step, and what it is called with; gives what the node does instead.
Behaviour = Callable[[Callable[..., Ready], Any, Sender, Any, int], Ready]


def honest(step: Callable[..., Ready], view: Any, sender: Sender, message: Any, now: int) -> Ready:
    return step(view, sender, message, b"", now)


class _Behaving:
    """A server as its node's behaviour has it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        node = self._node
        node.received.append((sender, message))
        return node.behaviour(node.server.step, view, sender, message, now_us)


class Node:
    """A node: store, server, dispatcher."""

    def __init__(self, cluster: Cluster, number: int, types: ObjectTypes) -> None:
        self.cluster = cluster
        self.number = NodeId(number)
        self.storage = MemoryStorage()
        self.keys = cluster.keys(number)
        recovery = Recovery()
        self.healer = ObjectHealer(self.number, cluster.quorums, self.keys, recovery)
        self.server = QueryUpdateServer(
            self.number, cluster.quorums, self.keys, types, recovery=recovery, doubts=self.healer
        )
        self.behaviour: Behaviour = honest
        self.skew_us = 0
        self.received: list[tuple[Sender, Any]] = []
        name = client_named(f"node {number}")
        self.sender = Sender(Role.NODE, name, self.number, Grant((), False))
        self.engine = cluster.engine(("node", self.number))
        behaving = _Behaving(self)
        finisher = Finisher(self.number, name, cluster.quorums, self.server.incomplete, self.healer)
        self.dispatcher = Dispatcher(
            servers=dict.fromkeys(Request.__args__, behaving),
            engine=self.engine,
            background=(finisher,) if cluster.background else (),
        )
        self.dispatcher.on_supply = lambda: cluster.after(1, self.resume)

    def now_us(self) -> int:
        return START_US + self.cluster.now_us + self.skew_us

    def resume(self) -> None:
        self.dispatcher.resume(self.storage, self.now_us())
        self.send()

    def receive(self, source: Endpoint, sender: Sender, number: int, message: Any) -> None:
        self.dispatcher.handle(
            self.storage,
            origin=source,
            sender=sender,
            number=number,
            message=message,
            body=b"",
            now_us=self.now_us(),
        )
        self.send()

    def send(self) -> None:
        outbox, self.dispatcher.outbox = self.dispatcher.outbox, []
        for reply in outbox:
            self.cluster.carry(
                ("node", self.number), reply.origin, reply.number, encode(reply.message), False
            )
        self.cluster.arm(self.engine)

    def replica(self, name: ObjectId) -> Replica:
        return Replica(self.storage, name)


@dataclass(slots=True)
class Outcome:
    """What a conversation came to."""

    done: bool = False
    result: Any = None
    error: BaseException | None = None

    def value(self) -> Any:
        assert self.done, "the conversation has not ended"
        if self.error is not None:
            raise self.error
        return self.result


class Client:
    """A client of the cluster; `qu` is the real thing."""

    def __init__(self, cluster: Cluster, name: str, grant: Grant, **options: Any) -> None:
        self.cluster = cluster
        self.name = name
        self.skew_us = 0
        self.clock_us: int | None = None  # a clock that stands still, if set
        self.sender = Sender(Role.CLIENT, client_named(name), None, grant)
        self.engine = cluster.engine(("client", name))
        peers = Peers(cluster.quorums)
        self.qu = QueryUpdateClient(self.sender.client, peers, cluster.types, **options)

    def now_us(self) -> int:
        if self.clock_us is not None:
            return self.clock_us
        return START_US + self.cluster.now_us + self.skew_us

    def start(self, conversation: Coroutine[Any, Any, Any]) -> Outcome:
        outcome = Outcome()

        def ended(result: Any, error: BaseException | None) -> None:
            outcome.done, outcome.result, outcome.error = True, result, error

        outcome_running = self.engine.start(conversation, ended)
        self.cluster.running.append(outcome_running)
        self.cluster.arm(self.engine)
        return outcome

    def run(self, conversation: Coroutine[Any, Any, Any], *, within_us: int = 120_000_000) -> Any:
        """Run a conversation to its end."""
        outcome = self.start(conversation)
        self.cluster.run(lambda: outcome.done, within_us=within_us)
        return outcome.value()


class Cluster:
    """Nodes, clients, and the agenda that moves them."""

    def __init__(
        self,
        thresholds: QueryUpdateThresholds = SMALLEST,
        *,
        types: ObjectTypes | None = None,
        seed: int = 0,
        quorums: Any = None,
        background: bool = False,
    ) -> None:
        """With `background`, servers finish what clients leave behind."""
        self.background = background
        self.random = Random(seed)
        self.quorums = quorums or ThresholdQuorums(thresholds)
        self.types = types or counter_types()
        self.now_us = 0
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = count()
        self._secrets: dict[tuple[int, int], bytes] = {}
        self.route: Route = lambda source, target, message: self.random.randrange(50, 500)
        self.clients: dict[str, Client] = {}
        self._armed: dict[Engine, int] = {}  # when each is woken next
        self.running: list[Any] = []
        self.sent: list[tuple[Endpoint, Endpoint, Any]] = []
        self.nodes = [Node(self, number, self.types) for number in range(self.quorums.n)]

    def keys(self, number: int) -> AuthenticatorKeys:
        def secret(other: int) -> bytes:
            pair = (min(number, other), max(number, other))
            secret = hashlib.blake2b(repr(pair).encode()).digest()[:32]
            return self._secrets.setdefault(pair, secret)

        return AuthenticatorKeys(
            NodeId(number), tuple(secret(other) for other in range(self.quorums.n))
        )

    def client(self, name: str, *, grant: Grant | None = None, **options: Any) -> Client:
        client = self.clients[name] = Client(self, name, grant or Grant(), **options)
        return client

    def engine(self, endpoint: Endpoint) -> Engine:
        def send(node: NodeId, number: int, message: Any, body: Any) -> None:
            self.carry(endpoint, ("node", node), number, encode(message), True)

        def now() -> int:
            kind, name = endpoint
            return self.nodes[name].now_us() if kind == "node" else self.clients[name].now_us()

        return Engine(
            send=send,
            now_us=now,
            monotonic_us=lambda: self.now_us,
            draw=self.random.randrange,
        )

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now_us + delay_us, next(self._sequence), action))

    def arm(self, engine: Engine) -> None:
        deadline, armed = engine.next_deadline_us(), self._armed.get(engine)
        if deadline is not None and (armed is None or deadline < armed):
            self._armed[engine] = deadline
            self.after(max(0, deadline - self.now_us), lambda: self._expire(engine, deadline))

    def _expire(self, engine: Engine, deadline: int) -> None:
        if self._armed.get(engine) != deadline:
            return  # an earlier deadline came, after which it was armed anew
        del self._armed[engine]
        engine.expire()
        self.arm(engine)

    def carry(
        self, source: Endpoint, target: Endpoint, number: int, encoded: bytes, request: bool
    ) -> None:
        message = (REQUESTS if request else REPLIES).decode(encoded)
        delay = self.route(source, target, message)
        self.sent.append((source, target, message))
        if delay is None:
            return
        self.after(delay, lambda: self._arrive(source, target, number, message, request))

    def _arrive(
        self, source: Endpoint, target: Endpoint, number: int, message: Any, request: bool
    ) -> None:
        if request:
            kind, name = source
            sender = self.nodes[name].sender if kind == "node" else self.clients[name].sender
            self.nodes[target[1]].receive(source, sender, number, message)
            return
        kind, name = target
        engine = self.nodes[name].engine if kind == "node" else self.clients[name].engine
        engine.deliver(NodeId(source[1]), number, message)
        self.arm(engine)

    def run(
        self, until: Callable[[], bool] = lambda: False, *, within_us: int = 10_000_000
    ) -> None:
        """Let things happen until `until()`, or until nothing is on the agenda if it is False."""
        limit = self.now_us + within_us
        while not until():
            if not self._agenda or self._agenda[0][0] > limit:
                if until.__name__ == "<lambda>" and not self._agenda:
                    return
                raise Stuck(f"nothing more happened by {self.now_us} µs")
            self.now_us, _, action = heapq.heappop(self._agenda)
            action()

    def settle(self) -> None:
        """Let everything happen that is under way."""
        while self._agenda:
            self.now_us, _, action = heapq.heappop(self._agenda)
            action()

    # --- faults ---------------------------------------------------------------------------------

    def block(self, *, client: str | None = None, nodes: tuple[int, ...]) -> None:
        """Drop what the client (or anybody) sends to `nodes`, from now on."""
        before = self.route

        def route(source: Endpoint, target: Endpoint, message: Any) -> int | None:
            if (
                target[0] == "node"
                and target[1] in nodes
                and (client is None or source == ("client", client))
            ):
                return None
            return before(source, target, message)

        self.route = route

    def mute(self, *nodes: int) -> None:
        """These nodes receive nothing and say nothing from now on."""
        before = self.route

        def route(source: Endpoint, target: Endpoint, message: Any) -> int | None:
            for kind, name in (source, target):
                if kind == "node" and name in nodes:
                    return None
            return before(source, target, message)

        self.route = route

    def heal(self) -> None:
        """All messages arrive again."""
        self.route = lambda source, target, message: self.random.randrange(50, 500)

    def histories(self, name: ObjectId) -> list[bytes]:
        return [node.replica(name).row.history for node in self.nodes]
