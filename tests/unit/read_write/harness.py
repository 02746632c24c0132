"""Nodes and clients of PASIS read/write in the simulator's virtual time.

A node's `behaviour` may replace what its server answers, and a write may be handed to any nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_args

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.credentials import Grant
from bftfs.identifiers import BlockId, NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import Request, WriteRequest
from bftfs.read_write.placement import nodes_by_fragment, rotation_of
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.writing import Encoded, encode
from bftfs.server.step import Ready, Role, Sender
from bftfs.simulation import world as simulation
from bftfs.simulation.deployment import client_named
from bftfs.simulation.principals import SimulatedClient, SimulatedNode
from bftfs.simulation.world import START_US
from bftfs.storage import MemoryStorage, Table
from bftfs.thresholds import ReadWriteThresholds
from tests.builders import USER, Outcome, RoutedNetwork, keys_of

INODE: ObjectId = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
BLOCK: BlockId = block_id(INODE, incarnation=0, number=0)  # rotation 0: node i holds fragment i
DEFAULT = ReadWriteThresholds.for_nodes(6, t=1, b=1)

Answer = tuple[Any, Buffer]
Honest = Callable[[], Answer]
Behaviour = Callable[["Node", Sender, Any, Honest], Answer | None]


def honest(_node: Node, _sender: Sender, _message: Any, answer: Honest) -> Answer | None:
    return answer()


def mute(_node: Node, _sender: Sender, _message: Any, _answer: Honest) -> Answer | None:
    return None


class _Behaving:
    """A server as its node's behaviour has it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def step(self, view: Any, sender: Sender, message: Any, body: Buffer, now_us: int) -> Ready:
        node = self._node
        node.served.append(message)
        answer = node.behaviour(
            node, sender, message, lambda: node.step(sender, message, body, now_us)
        )
        return Ready() if answer is None else Ready(answer[0], bytes(answer[1]))


class Node(SimulatedNode):
    """One storage node: its disk, the real server, and how it behaves."""

    def __init__(self, world: World, number: int, server: Callable[..., ReadWriteServer]) -> None:
        self.number = NodeId(number)
        self.server = server(self.number, world.thresholds, world.keys[number])
        self.behaviour: Behaviour = honest
        self.served: list[Any] = []
        super().__init__(
            world.agenda,
            world.network,
            self.number,
            servers=lambda: dict.fromkeys(get_args(Request), _Behaving(self)),
            senders=world.senders,
            commit_us=(0, 0),
        )

    @property
    def storage(self) -> MemoryStorage:
        return self.disk

    @property
    def is_busy(self) -> bool:
        return self._batch_due

    def step(self, sender: Sender, message: Any, body: Buffer, now_us: int) -> Answer:
        """What the honest server answers; its writes are applied."""
        ready: Ready = self.server.step(self.storage, sender, message, body, now_us)
        self.storage.apply(ready.writes)
        return ready.reply, ready.body

    def hosts(self, timestamp: BlockTimestamp, block: BlockId = BLOCK) -> bool:
        return self.storage.get(Table.BLOCK, version_key(block, timestamp)) is not None

    def lose(self, timestamp: BlockTimestamp, block: BlockId = BLOCK) -> None:
        """Forget a version, as a disk that was replaced does."""
        key = version_key(block, timestamp)
        self.storage._tables[Table.BLOCK].pop(key, None)
        self.storage._tables[Table.FRAGMENT].pop(key, None)

    def rot(self, timestamp: BlockTimestamp, block: BlockId = BLOCK) -> None:
        """Damage the fragment of a version on disk."""
        rows = self.storage._tables[Table.FRAGMENT]
        key = version_key(block, timestamp)
        rows[key] = bytes([rows[key][0] ^ 1]) + rows[key][1:]


class _Host(SimulatedClient):
    """Remembers what it sent."""

    def __init__(self, world: World, name: str, grant: Grant) -> None:
        super().__init__(world.agenda, world.network, client_named(name))
        self.sent: list[tuple[NodeId, Any]] = []
        world.senders[self.endpoint] = Sender(Role.CLIENT, self.client, None, grant)

    def _send_request(self, node: NodeId, number: int, message: Any, body: Buffer) -> None:
        self.sent.append((node, message))
        super()._send_request(node, number, message, body)


class ResponseQuorums:
    """The quorums of a world with blocks only: N - t nodes answer, and b may lie."""

    def __init__(self, thresholds: ReadWriteThresholds) -> None:
        self.n = thresholds.N
        self.everyone = Nodes.of(range(thresholds.N))
        self._thresholds = thresholds

    def is_quorum(self, nodes: Nodes) -> bool:
        return len(nodes) >= self._thresholds.responses

    def is_repairable(self, nodes: Nodes) -> bool:
        return len(nodes) >= self._thresholds.repairable

    def includes_benign(self, nodes: Nodes) -> bool:
        return len(nodes) > self._thresholds.b

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        return nodes_by_fragment(self.n)[placement % self.n]

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        return min(self._thresholds.responses, len(order))


class Principal:
    """A client, and what it has sent."""

    def __init__(self, world: World, host: _Host, *, patience_total_us: int | None) -> None:
        self.world = world
        self.host = host
        self.id = self.host.client
        self.sender = world.senders[self.host.endpoint]
        self.engine = self.host.engine
        self.sent = self.host.sent
        self.peers = Peers(ResponseQuorums(world.thresholds))
        self.client = ReadWriteClient(
            self.id, world.thresholds, self.peers, patience_total_us=patience_total_us
        )

    @property
    def skew_us(self) -> int:
        return self.host.skew_us

    @skew_us.setter
    def skew_us(self, skew_us: int) -> None:
        self.host.skew_us = skew_us

    def start(self, conversation: Coroutine[Any, Any, Any]) -> Outcome:
        outcome = Outcome()
        self.host.start(conversation, outcome)
        return outcome

    def do(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        """Run one conversation to its end."""
        outcome = self.start(conversation)
        self.world.run(outcome)
        return outcome.value()

    # --- shorthands --------------------------------------------------------------------------

    def write(self, item: bytes, block: BlockId = BLOCK) -> BlockTimestamp:
        timestamp: BlockTimestamp = self.do(self.client.write(block, item, USER))
        return timestamp

    def read(self, block: BlockId = BLOCK, **bounds: Any) -> Any:
        return self.do(self.client.read(block, **bounds))


def poisoned(encoded: Encoded, foreign: int) -> Encoded:
    """A write that lists and carries a fragment which is not the item's."""
    fragments = list(encoded.fragments)
    fragments[foreign] = bytes(byte ^ 0x55 for byte in bytes(fragments[foreign]))
    checksum = cross_checksum.make(fragments)
    return Encoded(tuple(fragments), checksum, cross_checksum.verifier(checksum))


class World:
    """Nodes 0 … N-1 and any number of clients."""

    def __init__(
        self,
        thresholds: ReadWriteThresholds = DEFAULT,
        *,
        seed: int = 0,
        delay_us: tuple[int, int] = (100, 900),
        loss: float = 0.0,
        server: Callable[..., ReadWriteServer] = ReadWriteServer,
    ) -> None:
        self.thresholds = thresholds
        self.agenda = simulation.World(seed)
        self.random = self.agenda.random
        self.network = RoutedNetwork(self.agenda)
        self.network.route = lambda *_: (
            None if self.random.random() < loss else self.random.randint(*delay_us)
        )
        self.senders: dict[Any, Sender] = {}
        self.keys = keys_of(thresholds.N)
        self.nodes = [Node(self, node, server) for node in range(thresholds.N)]

    @property
    def now_us(self) -> int:
        return self.agenda.now_us

    @now_us.setter
    def now_us(self, now_us: int) -> None:
        self.agenda.now_us = now_us

    def client(
        self,
        name: str = "alice",
        *,
        patience_total_us: int | None = None,
        grant: Grant | None = None,
    ) -> Principal:
        host = _Host(self, name, grant or Grant())
        return Principal(self, host, patience_total_us=patience_total_us)

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        self.agenda.after(delay_us, action)

    def run(self, *outcomes: Outcome, most_events: int = 200_000) -> None:
        """Let things happen until all `outcomes` are there."""
        ended = self.agenda.run(
            until=lambda: all(outcome.done for outcome in outcomes), most_events=most_events
        )
        assert ended, "the conversations did not come to an end"

    def settle(self) -> None:
        """Let everything that is on its way arrive."""
        self.agenda.run(
            until=lambda: not self.network.under_way and not any(n.is_busy for n in self.nodes),
            most_events=200_000,
        )

    def next_event(self) -> None:
        events = self.agenda.events
        self.agenda.run(until=lambda: self.agenda.events > events, most_events=1)

    # --- what Byzantine clients do -----------------------------------------------------------

    def encoded(self, item: bytes) -> Encoded:
        return encode(ErasureCode(self.thresholds.m, self.thresholds.N), item)

    def place(
        self,
        author: Principal,
        encoded: Encoded,
        nodes: list[int] | range,
        *,
        time_us: int | None = None,
        block: BlockId = BLOCK,
    ) -> tuple[BlockTimestamp, list[Any]]:
        """Hand `nodes` their parts of a write, and nobody else; their replies."""
        time_us = START_US + self.now_us if time_us is None else time_us
        timestamp = BlockTimestamp(time_us, author.id, encoded.verifier)
        request = WriteRequest(
            block, timestamp, encoded.cross_checksum, USER.uid, USER.gid, USER.groups
        )
        N = self.thresholds.N
        replies = []
        for number in nodes:
            fragment = encoded.fragments[(number - rotation_of(block, N)) % N]
            reply, _ = self.nodes[number].step(
                author.sender, request, fragment, START_US + self.now_us
            )
            replies.append(reply)
        return timestamp, replies

    def placed(
        self,
        author: Principal,
        item: bytes,
        nodes: list[int] | range,
        *,
        time_us: int | None = None,
        block: BlockId = BLOCK,
    ) -> BlockTimestamp:
        """A write that reached `nodes` only."""
        timestamp, replies = self.place(
            author, self.encoded(item), nodes, time_us=time_us, block=block
        )
        assert not any(isinstance(reply, Refused) for reply in replies), replies
        return timestamp
