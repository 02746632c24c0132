"""Nodes and clients of a simulated world: the real servers and conversations, hosted in it.

A node collects what arrives into batches, steps them with the dispatcher that real nodes use,
commits, and sends; it can crash at any of these points. A client runs conversations on the engine
that the mount uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bftfs.conversation import Conversation
from bftfs.crypto.digest import Body
from bftfs.engine import Engine, Outcome, Running
from bftfs.envelope import REPLIES, REQUESTS
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.read_write.messages import Notice
from bftfs.server.dispatcher import Dispatcher, Incoming
from bftfs.server.step import Background, Sender, Server
from bftfs.simulation.disk import Disk
from bftfs.simulation.network import Endpoint, Kind, SimulatedNetwork
from bftfs.simulation.world import START_US, World
from bftfs.storage import Write

Servers = Mapping[type, Server]

# A message to many nodes, or from many alike, is decoded once: a decoder is a function
# of the bytes, and messages cannot be changed.
_MESSAGES_KEPT = 4_096
_decode_request = lru_cache(_MESSAGES_KEPT)(REQUESTS.decode)
_decode_reply = lru_cache(_MESSAGES_KEPT)(REPLIES.decode)


class NodeServices(dict[type, Server]):
    """The servers of a node that also has work of its own."""

    def __init__(
        self,
        servers: Servers,
        background: tuple[Background, ...],
        on_damage: Callable[[ObjectId], None],
    ) -> None:
        super().__init__(servers)
        self.background = background
        self.on_damage = on_damage


@dataclass(frozen=True, slots=True)
class DiskFaults:
    """How often a node crashes around a commit, and for how long. Probabilities are per batch."""

    before_commit: float = 0.0  # loses the batch
    after_commit: float = 0.0  # keeps the batch and loses the replies
    down_us: tuple[int, int] = (1_000, 2_000_000)


class SimulatedPrincipal:
    """An endpoint with an engine: what nodes and clients have in common."""

    def __init__(
        self, world: World, network: SimulatedNetwork, endpoint: Endpoint, skew_us: int
    ) -> None:
        self.world = world
        self.network = network
        self.endpoint = endpoint
        self.requests = 0  # that it has sent
        self.skew_us = skew_us
        self._armed_us: int | None = None
        self.malformed = 0
        self.engine = self._new_engine()

    def wall_clock_us(self) -> int:
        """This principal's idea of the time."""
        return START_US + self.world.now_us + self.skew_us

    def _new_engine(self) -> Engine:
        # Request numbers are drawn anew, so that replies to a former life are recognised as such.
        return Engine(
            send=self._send_request,
            now_us=self.wall_clock_us,
            monotonic_us=lambda: self.world.now_us,
            draw=self.world.draw,
            first_request=1 + self.world.draw(1 << 40),
        )

    def _send_request(self, node: NodeId, number: int, message: Any, body: Body) -> None:
        self.requests += 1
        self.network.send(self.endpoint, node_endpoint(node), Kind.REQUEST, number, message, body)

    def _deliver_reply(self, source: Endpoint, number: int, metadata: bytes, body: bytes) -> None:
        try:
            message = _decode_reply(metadata)
        except MalformedMessage:
            self.malformed += 1
            return
        self.engine.deliver(NodeId(source[1]), number, message, body)  # type: ignore[index]
        self.arm()

    def arm(self) -> None:
        """See to it that the engine is woken at its next deadline."""
        deadline_us, armed_us = self.engine.next_deadline_us(), self._armed_us
        if deadline_us is None or (armed_us is not None and armed_us <= deadline_us):
            return
        self._armed_us = deadline_us
        self.world.after(
            max(0, deadline_us - self.world.now_us), self._tick, self.engine, deadline_us
        )

    def _tick(self, engine: Engine, deadline_us: int) -> None:
        if engine is not self.engine or deadline_us != self._armed_us:
            return  # of a former life; or an earlier deadline came, after which it was armed anew
        self._armed_us = None
        engine.expire()
        self.arm()


def node_endpoint(node: NodeId) -> Endpoint:
    """Where messages to a node go."""
    return ("node", node)


class SimulatedNode(SimulatedPrincipal):
    """A storage node: disk, servers, dispatcher, and the moments at which it may crash.

    `servers` makes the servers of one life: whatever they keep in memory is lost with it.
    """

    def __init__(
        self,
        world: World,
        network: SimulatedNetwork,
        node: NodeId,
        *,
        servers: Callable[[], Servers],
        senders: Mapping[Endpoint, Sender],
        skew_us: int = 0,
        commit_us: tuple[int, int] = (20, 200),
        on_commit: Callable[[NodeId, Sequence[Write]], None] | None = None,
        on_notice: Callable[[NodeId, Notice], None] | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(world, network, endpoint or node_endpoint(node), skew_us)
        self.node = node
        self.disk = Disk()
        self.faults = DiskFaults()
        self._servers = servers
        self._senders = senders
        self._commit_us = commit_us
        self._on_commit = on_commit
        self._on_notice = on_notice
        self._inbox: deque[tuple[Endpoint, int, Any, bytes]] = deque()
        self._batch_due = False
        self._life = 0
        self.crashes = 0
        self.up = False
        self.start()

    def start(self) -> None:
        """Come up with nothing but the disk; nothing happens if the node is up."""
        if self.up:
            return
        self._life += 1
        self.engine = self._new_engine()
        self._armed_us = None
        self._inbox.clear()
        self._batch_due = False
        servers = self._servers()
        self.dispatcher = (
            Dispatcher(
                servers=servers,
                engine=self.engine,
                background=servers.background,
                on_damage=servers.on_damage,
            )
            if isinstance(servers, NodeServices)
            else Dispatcher(servers=servers, engine=self.engine)
        )
        self.dispatcher.on_supply = self._due
        if self.dispatcher.has_supplies:
            self._due()
        self.network.attach(self.endpoint, self._receive)
        self.up = True
        self.arm()

    def crash(self, *, down_us: int | None) -> None:
        """Stop at once, losing all but what is committed; come back after `down_us`, or never."""
        if not self.up:
            return
        self.up = False
        self.crashes += 1
        self.disk.crash()
        self.network.detach(self.endpoint)
        self.engine = self._new_engine()  # whatever the old one waits for is forgotten
        if down_us is not None:
            self.world.after(down_us, self._come_back, self._life)

    def become(self, servers: Callable[[], Servers]) -> None:
        """Restart with other servers: how a node turns Byzantine."""
        self._servers = servers
        self.crash(down_us=None)
        self.start()

    def _send_request(self, node: NodeId, number: int, message: Any, body: Body) -> None:
        if self._on_notice is not None and type(message) is Notice:
            self._on_notice(self.node, message)
        super()._send_request(node, number, message, body)

    def _come_back(self, life: int) -> None:
        if life == self._life:
            self.start()

    def _receive(
        self, source: Endpoint, kind: Kind, number: int, metadata: bytes, body: bytes
    ) -> None:
        if kind is Kind.REPLY:
            self._deliver_reply(source, number, metadata, body)
            return
        try:
            message = _decode_request(metadata)
        except MalformedMessage:
            self.malformed += 1
            return
        self._inbox.append((source, number, message, body))
        self._due()

    def _due(self) -> None:
        if self._batch_due:
            return
        self._batch_due = True
        self.world.after(self.world.between(*self._commit_us), self._batch, self._life)

    def _batch(self, life: int) -> None:
        if life != self._life or not self.up:
            return
        self._batch_due = False
        dispatcher, now_us = self.dispatcher, self.wall_clock_us()
        dispatcher.resume(self.disk, now_us)
        while self._inbox:
            source, number, message, body = self._inbox.popleft()
            sender = self._senders.get(source)
            if sender is not None:
                request = Incoming(source, sender, number, message, body)
                dispatcher.handle(self.disk, request, now_us)
        if self._crashes(self.faults.before_commit):
            return
        if self._on_commit is not None:
            self._on_commit(self.node, self.disk.uncommitted())
        self.disk.commit()
        if self._crashes(self.faults.after_commit):
            return
        outbox, dispatcher.outbox = dispatcher.outbox, []
        for reply in outbox:
            self.network.send(
                self.endpoint, reply.origin, Kind.REPLY, reply.number, reply.message, reply.body
            )
        self.arm()

    def _crashes(self, probability: float) -> bool:
        if not probability or not self.world.chance(probability):
            return False
        self.crash(down_us=self.world.between(*self.faults.down_us))
        return True


class SimulatedClient(SimulatedPrincipal):
    """A client: an engine that runs conversations."""

    def __init__(
        self,
        world: World,
        network: SimulatedNetwork,
        client: ClientId,
        *,
        skew_us: int = 0,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(world, network, endpoint or ("client", client), skew_us)
        self.client = client
        self._running: dict[Running, None] = {}
        network.attach(self.endpoint, self._receive)

    def start(self, conversation: Conversation[Any], outcome: Outcome) -> Running:
        """Run a conversation; `outcome(result, error)` when it ends."""
        running: Running | None = None
        over = False

        def ended(result: Any, error: BaseException | None) -> None:
            nonlocal over
            over = True
            if running is not None:
                self._running.pop(running, None)
            outcome(result, error)

        running = self.engine.start(conversation, ended)
        if not over:
            self._running[running] = None
        self.arm()
        return running

    def crash(self) -> None:
        """Forget every conversation; nothing more is heard of them."""
        running, self._running = self._running, {}
        for conversation in running:
            conversation.cancel()
        self.engine = self._new_engine()
        self._armed_us = None

    def _receive(
        self, source: Endpoint, kind: Kind, number: int, metadata: bytes, body: bytes
    ) -> None:
        if kind is Kind.REPLY:
            self._deliver_reply(source, number, metadata, body)
