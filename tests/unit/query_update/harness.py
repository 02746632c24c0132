"""Nodes and clients of Query/Update in the simulator's virtual time, open to every interference.

`Cluster.route` may drop or delay any message, a node's `behaviour` may replace what its server
does, and everything that was sent or received can be looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.credentials import Grant
from bftfs.engine import Running
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import counter_types
from bftfs.query_update.messages import Request
from bftfs.query_update.object_type import ObjectTypes
from bftfs.query_update.replica import Replica
from bftfs.query_update.server import QueryUpdateServer
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Role, Sender
from bftfs.simulation.deployment import client_named
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import (
    NodeServices,
    Servers,
    SimulatedClient,
    SimulatedNode,
    node_endpoint,
)
from bftfs.simulation.world import World
from bftfs.storage import MemoryStorage
from bftfs.thresholds import QueryUpdateThresholds
from tests.builders import Outcome, Route, RoutedNetwork, keys_of

SMALLEST = QueryUpdateThresholds.smallest(t=1, b=1)


def counter_id(number: int = 0, *, placement: int = 0) -> ObjectId:
    """A counter; object ids ascend with `number` among equal placements."""
    return object_id(ObjectKind.COUNTER, placement=placement, unique=number.to_bytes(14, "big"))


class Stuck(AssertionError):
    """Time is over, and what was waited for has not happened."""


Endpoint = tuple[str, Any]
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


class Node(SimulatedNode):
    """A node with a Query/Update server only."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.number = NodeId(number)
        self.keys = cluster.keys(number)
        self.behaviour: Behaviour = honest
        self.received: list[tuple[Sender, Any]] = []
        self._cluster = cluster
        name = client_named(f"node {number}")
        self.sender = Sender(Role.NODE, name, self.number, Grant((), False))
        cluster.senders[node_endpoint(self.number)] = self.sender
        super().__init__(
            cluster.world,
            cluster.network,
            self.number,
            servers=self._serve,
            senders=cluster.senders,
            commit_us=(0, 0),
        )

    def _serve(self) -> Servers:
        recovery = Recovery()
        peers = Peers(self._cluster.quorums, trusted=Nodes.of([self.number]))
        self.healer = ObjectHealer(self.number, peers, self.keys, recovery)
        self.server = QueryUpdateServer(
            self.number,
            peers,
            self.keys,
            self._cluster.types,
            recovery=recovery,
            doubts=self.healer,
        )
        finisher = Finisher(self.number, peers, self.server.incomplete, self.healer)
        return NodeServices(
            dict.fromkeys(Request.__args__, _Behaving(self)),
            (finisher,) if self._cluster.background else (),
            lambda _: None,
        )

    @property
    def storage(self) -> MemoryStorage:
        return self.disk

    def now_us(self) -> int:
        return self.wall_clock_us()

    def receive(self, source: Endpoint, message: Any) -> None:
        """Take a message that nobody sent over the network."""
        self._inbox.append((source, 0, message, b""))
        self._due()

    def send(self) -> None:
        """To be called after conversations were started on the engine by hand."""
        self.arm()

    def replica(self, name: ObjectId) -> Replica:
        return Replica(self.disk, name)


class Client(SimulatedClient):
    """A client of the cluster; `qu` is the real thing."""

    def __init__(self, cluster: Cluster, name: str, grant: Grant, **options: Any) -> None:
        self.cluster = cluster
        self.name = name
        self.clock_us: int | None = None  # a clock that stands still, if set
        self.sender = Sender(Role.CLIENT, client_named(name), None, grant)
        endpoint = ("client", name)
        cluster.senders[endpoint] = self.sender
        super().__init__(cluster.world, cluster.network, self.sender.client, endpoint=endpoint)
        peers = Peers(cluster.quorums)
        self.qu = QueryUpdateClient(self.client, peers, cluster.types, **options)

    def wall_clock_us(self) -> int:
        return super().wall_clock_us() if self.clock_us is None else self.clock_us

    def now_us(self) -> int:
        return self.wall_clock_us()

    def start(self, conversation: Coroutine[Any, Any, Any]) -> Outcome:  # type: ignore[override]
        """Begin a conversation."""
        outcome = Outcome()
        self.cluster.running.append(super().start(conversation, outcome))
        return outcome

    def run(self, conversation: Coroutine[Any, Any, Any], *, within_us: int = 120_000_000) -> Any:
        """Run a conversation to its end."""
        outcome = self.start(conversation)
        self.cluster.run(lambda: outcome.done, within_us=within_us)
        return outcome.value()


class Cluster:
    """Nodes and clients in one world."""

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
        self.quorums = quorums or ThresholdQuorums(thresholds)
        self.types = types or counter_types()
        self.world = World(seed)
        self.random = self.world.random
        self.network = RoutedNetwork(self.world)
        self.senders: dict[Any, Sender] = {}
        self.clients: dict[str, Client] = {}
        self.running: list[Running] = []
        self.nodes = [Node(self, number) for number in range(self.quorums.n)]

    @property
    def now_us(self) -> int:
        return self.world.now_us

    @property
    def sent(self) -> list[tuple[Any, Any, Any]]:
        """Every message so far: source, target, content."""
        return self.network.sent

    @property
    def route(self) -> Route:
        """What delays or drops messages."""
        return self.network.route

    @route.setter
    def route(self, route: Route) -> None:
        self.network.route = route

    def keys(self, number: int) -> Any:
        return keys_of(self.quorums.n)[number]

    def client(self, name: str, *, grant: Grant | None = None, **options: Any) -> Client:
        client = self.clients[name] = Client(self, name, grant or Grant(), **options)
        return client

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        self.world.after(delay_us, action)

    def request(self, source: Endpoint, target: Endpoint, message: Any) -> None:
        """Send a request whose reply nobody waits for."""
        self.network.send(source, target, Kind.REQUEST, 0, message)

    def run(
        self, until: Callable[[], bool] = lambda: False, *, within_us: int = 10_000_000
    ) -> None:
        """Let things happen until `until()`, or until nothing is on the agenda."""
        deadline_us = self.now_us + within_us
        in_time = self.world.run(until=until, most_events=sys.maxsize, deadline_us=deadline_us)
        if in_time and not until():
            raise Stuck(f"nothing more happened by {self.now_us} µs")

    def settle(self) -> None:
        """Let everything happen that is under way."""
        self.world.run(until=lambda: False, most_events=sys.maxsize)

    # --- faults ---------------------------------------------------------------------------------

    def block(self, *, client: str | None = None, nodes: tuple[int, ...]) -> None:
        """Drop what the client (or anybody) sends to `nodes`, from now on."""
        before = self.route

        def route(source: Endpoint, target: Endpoint, message: Any) -> int | None:
            is_blocked = target[0] == "node" and target[1] in nodes
            if is_blocked and (client is None or source == ("client", client)):
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
        self.route = self.network.any_delay

    def histories(self, name: ObjectId) -> list[bytes]:
        return [node.replica(name).row.history for node in self.nodes]
