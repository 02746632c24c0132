"""The position of an adversary: a node or a client, with its state and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.identifiers import ClientId, NodeId
from bftfs.server.step import Ready, Sender, Server
from bftfs.simulation.deployment import Sizes
from bftfs.storage import StorageView


@dataclass(frozen=True, slots=True)
class NodePosition:
    """One node: its honest servers by request, and its keys."""

    node: NodeId
    servers: Mapping[type, Server]
    keys: AuthenticatorKeys
    sizes: Sizes
    random: Random

    def honest(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """The step of a correct node."""
        return self.servers[type(message)].step(view, sender, message, body, now_us)


NodeAdversary = Callable[[NodePosition], Server]


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


class ClientAdversary(Protocol):
    """A client that misbehaves over and over."""

    async def act(self) -> None:
        """Misbehave once."""


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
