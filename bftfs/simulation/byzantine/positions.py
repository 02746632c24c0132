"""The position of an adversary: a node or a client, with its state and keys; and what it can do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, NamedTuple

from bftfs import limits
from bftfs.conversation import Effect, Send
from bftfs.crypto.digest import AuthenticatorKeys, Body, replica_history_digest
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId
from bftfs.query_update.history import Known
from bftfs.query_update.messages import InlineBarrier, InlineUpdate, Update, addressed
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.step import Ready, Sender, Server, Want
from bftfs.simulation.deployment import USER, Sizes
from bftfs.storage import StorageView, Write

# How far ahead of its clock a client dates what it makes: at the edge of what is sane, and beyond.
LEAPS_US = (
    1_000,
    1_000_000,
    limits.CLOCK_SKEW_US // 100,
    limits.CLOCK_SKEW_US - 1_000_000,
    limits.CLOCK_SKEW_US - 1_000,
    limits.CLOCK_SKEW_US + 1_000,
    2 * limits.CLOCK_SKEW_US,
    1 << 59,
)


@dataclass(slots=True)
class Pact:
    """What a node does for the client that it has a pact with. [pacts.Confederate]"""

    # The histories that it reports: one to half of all clients and nodes, one to the others.
    told: dict[ObjectId, tuple[bytes, bytes]] = field(default_factory=dict)
    # The versions of blocks that it hides from half of them, and says to have verified.
    planted: set[tuple[BlockId, BlockTimestamp]] = field(default_factory=set)
    # What it sends to other nodes in its own name.
    outbox: deque[tuple[NodeId, Any, bytes]] = field(default_factory=lambda: deque(maxlen=256))


@dataclass(frozen=True, slots=True)
class NodePosition:
    """One node: its honest servers by request, its keys, and its pact with a client."""

    node: NodeId
    servers: Mapping[type, Server]
    keys: AuthenticatorKeys
    sizes: Sizes
    random: Random
    pact: Pact = field(default_factory=Pact)

    def reported(self, name: ObjectId, history: bytes) -> Known:
        """A history of an object as this node reports it, with its authenticator."""
        digest = replica_history_digest(object=name, encoded=history)
        return Known(history, self.keys.make(digest))


class Asked(NamedTuple):
    """What a server's step is given."""

    view: StorageView
    sender: Sender
    message: Any
    body: Body
    now_us: int


class NodeAdversary:
    """A node that was taken over: it does what a correct one does, except in `answer`."""

    chances: ClassVar[tuple[float, ...]] = ()  # how often it misbehaves: one of them is drawn

    def __init__(self, position: NodePosition) -> None:
        self.position = position
        self.random = position.random
        self._chance = self.random.choice(self.chances) if self.chances else 1.0
        self._met: deque[Any] = deque(maxlen=256)
        self._postponed = 0

    def step(
        self, view: StorageView, sender: Sender, message: Any, body: Body, now_us: int
    ) -> Ready:
        """Serve one message, as a `Server` does."""
        return self.answer(Asked(view, sender, message, body, now_us))

    def answer(self, asked: Asked) -> Ready:
        """What the adversary does about one message."""
        raise NotImplementedError

    def honest(self, asked: Asked) -> Ready:
        """The step of a correct node."""
        return self.position.servers[type(asked.message)].step(*asked)

    def misbehaves(self) -> bool:
        """True if it is to misbehave this time."""
        return self.random.random() < self._chance

    def is_new(self, message: Any) -> bool:
        """True if this message was not seen before: hosts step a message that waited again."""
        if any(message is met for met in self._met):
            return False
        self._met.append(message)
        return True

    def after(self, *effects: Effect[Any]) -> Ready:
        """Await these effects first; then the host steps the message again."""

        async def perform(_view: StorageView) -> list[Write]:
            for effect in effects:
                await effect
            return []

        self._postponed += 1
        return Ready(wants=(Want(f"{type(self).__name__} {self._postponed}".encode(), perform),))

    def others(self) -> list[NodeId]:
        """All nodes but this one."""
        own = self.position.node
        return [NodeId(node) for node in range(self.position.sizes.n) if node != own]


@dataclass(frozen=True, slots=True)
class ClientPosition:
    """One client, what it may attack, and the Byzantine nodes that are in league with it."""

    name: str
    client: ClientId
    sizes: Sizes
    random: Random
    workload: Any
    now: Callable[[], float]
    allies: tuple[NodePosition, ...] = ()


class ClientAdversary:
    """A client that misbehaves over and over, and the tools of all of them."""

    user = USER  # that it claims to act for

    def __init__(self, position: ClientPosition) -> None:
        self.position = position
        self.random = position.random
        self.n = position.sizes.n

    async def act(self) -> None:
        """Misbehave once."""
        raise NotImplementedError

    def all_nodes(self) -> list[int]:
        """All nodes, in any order."""
        return self.random.sample(range(self.n), self.n)

    async def send(self, nodes: Iterable[int], message: Any, body: bytes = b"") -> None:
        """Send one message to each of `nodes`; of whole authenticators, each node's entries."""
        for node in nodes:
            await Send(NodeId(node), as_sent(message, node, self.n), body)


def as_sent(message: Any, node: int, n: int) -> Any:
    """`message` as that of n nodes is sent it: of whole authenticators, if any, its entries."""
    if isinstance(message, Update | InlineUpdate | InlineBarrier):
        with suppress(ValueError):  # what a liar has reported may be no authenticators
            return addressed(message, n)(NodeId(node))
    return message


def mutated(encoded: bytes, random: Random) -> bytes:
    """`encoded` with a few bytes changed, cut out or put in."""
    changed = bytearray(encoded)
    for _ in range(random.randint(1, 3)):
        position = random.randrange(len(changed) + 1)
        match random.randrange(3):
            case 0 if position < len(changed):
                changed[position] ^= 1 << random.randrange(8)
            case 1:
                del changed[position : position + random.randint(1, 9)]
            case _:
                changed[position:position] = random.randbytes(random.randint(1, 9))
    return bytes(changed)
