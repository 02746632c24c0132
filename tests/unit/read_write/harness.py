"""Real clients and servers of PASIS read/write in one process, in virtual time, on one seed.

Messages pass the real codec. Each takes a delay drawn from the seed; a node's behaviour may replace
what the honest server answers.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.credentials import Credentials
from bftfs.crypto.authenticator import AuthenticatorKeys
from bftfs.engine import Engine
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import Reply, Request, WriteRequest
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.writing import Encoded, encode
from bftfs.server.step import Grant, Ready, Role, Sender
from bftfs.storage import MemoryStorage, Table
from bftfs.thresholds import ReadWriteThresholds
from bftfs.wire.codec import Decoder
from bftfs.wire.codec import encode as encode_message

START_US = 1_700_000_000_000_000
USER = Credentials(uid=1000, gid=1000)
INODE: ObjectId = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
BLOCK: BlockId = block_id(INODE, incarnation=0, number=0)  # rotation 0: node i holds fragment i
DEFAULT = ReadWriteThresholds.for_nodes(6, t=1, b=1)

REQUEST: Decoder[Request] = Decoder(Request)
REPLY: Decoder[Reply] = Decoder(Reply)

Answer = tuple[Any, Buffer]
Honest = Callable[[], Answer]
Behaviour = Callable[["Node", Sender, Any, Honest], Answer | None]


def honest(_node: Node, _sender: Sender, _message: Any, answer: Honest) -> Answer | None:
    return answer()


def mute(_node: Node, _sender: Sender, _message: Any, _answer: Honest) -> Answer | None:
    return None


def client_id(name: str) -> ClientId:
    return ClientId(hashlib.blake2b(name.encode(), digest_size=16).digest())


@dataclass
class Node:
    """One storage node: its disk, the real server, and how it behaves."""

    number: NodeId
    server: ReadWriteServer
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    behaviour: Behaviour = honest
    served: list[Any] = field(default_factory=list)

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


class Outcome:
    """How a conversation ended."""

    def __init__(self) -> None:
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, result: Any, error: BaseException | None) -> None:
        self.over, self.result, self.error = True, result, error


class Principal:
    """A client with an engine of its own."""

    def __init__(self, world: World, name: str, *, patience_total_us: int | None) -> None:
        self.world = world
        self.id = client_id(name)
        self.sender = Sender(Role.CLIENT, self.id, None, Grant())
        self.client = ReadWriteClient(
            self.id, world.thresholds, patience_total_us=patience_total_us
        )
        self.skew_us = 0
        self.sent: list[tuple[NodeId, Any]] = []
        self.engine = Engine(
            send=self._send,
            now_us=lambda: START_US + world.now_us + self.skew_us,
            monotonic_us=lambda: world.now_us,
            draw=world.random.randrange,
        )

    def _send(self, node: NodeId, number: int, message: Any, body: Buffer) -> None:
        self.sent.append((node, message))
        self.world.carry_request(self, node, number, message, bytes(body))

    def start(self, conversation: Coroutine[Any, Any, Any]) -> Outcome:
        outcome = Outcome()
        self.engine.start(conversation, outcome)
        return outcome

    def do(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        """Run one conversation to its end."""
        outcome = self.start(conversation)
        self.world.run(outcome)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

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
        self.random = Random(seed)
        self.delay_us = delay_us
        self.loss = loss
        self.now_us = 0
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = count()
        self.clients: list[Principal] = []
        N = thresholds.N
        self.keys = [
            AuthenticatorKeys(
                NodeId(node),
                tuple(b"%d/%d" % (min(node, peer), max(node, peer)) for peer in range(N)),
            )
            for node in range(N)
        ]
        self.nodes = [
            Node(NodeId(node), server(NodeId(node), thresholds, self.keys[node]))
            for node in range(N)
        ]

    def client(self, name: str = "alice", *, patience_total_us: int | None = None) -> Principal:
        principal = Principal(self, name, patience_total_us=patience_total_us)
        self.clients.append(principal)
        return principal

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now_us + delay_us, next(self._sequence), action))

    def carry_request(
        self, client: Principal, number: NodeId, request_number: int, message: Any, body: bytes
    ) -> None:
        encoded = encode_message(message)
        if self.random.random() < self.loss:
            return
        self.after(
            self._delay(),
            lambda: self._serve(client, self.nodes[number], request_number, encoded, body),
        )

    def _delay(self) -> int:
        return self.random.randint(*self.delay_us)

    def _serve(
        self, client: Principal, node: Node, request_number: int, encoded: bytes, body: bytes
    ) -> None:
        message = REQUEST.decode(encoded)
        node.served.append(message)
        answer = node.behaviour(
            node,
            client.sender,
            message,
            lambda: node.step(client.sender, message, body, START_US + self.now_us),
        )
        if answer is None or self.random.random() < self.loss:
            return
        reply, fragment = encode_message(answer[0]), bytes(answer[1])
        self.after(
            self._delay(),
            lambda: client.engine.deliver(
                node.number, request_number, REPLY.decode(reply), memoryview(fragment)
            ),
        )

    def run(self, *outcomes: Outcome, most_events: int = 200_000) -> None:
        """Let things happen until all `outcomes` are there."""
        for _ in range(most_events):
            if all(outcome.over for outcome in outcomes):
                return
            self._next_event()
        raise AssertionError("the conversations did not come to an end")

    def settle(self) -> None:
        """Let everything that is on its way arrive."""
        while self._agenda:
            self._next_event()

    def _next_event(self) -> None:
        deadlines = [
            (deadline, at)
            for at, client in enumerate(self.clients)
            if (deadline := client.engine.next_deadline_us()) is not None
        ]
        deadline = min(deadlines, default=None)
        if self._agenda and (deadline is None or self._agenda[0][0] <= deadline[0]):
            self.now_us, _, action = heapq.heappop(self._agenda)
            action()
        elif deadline is not None:
            self.now_us = max(self.now_us, deadline[0])
            self.clients[deadline[1]].engine.expire()
        else:
            raise AssertionError("nothing will ever happen again")

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
