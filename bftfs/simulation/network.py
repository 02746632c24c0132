"""The simulated network: delay, loss, duplication, reordering and partitions, drawn from the world.

Every message passes the real codec: it is encoded where it is sent and decoded, strictly, where it
arrives. Origins are authentic, as on the real channel; contents are whatever the sender made them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bftfs.crypto.digest import Body
from bftfs.simulation.world import World
from bftfs.wire.codec import encode

Endpoint = Hashable


class Kind(Enum):
    """The kind of a message, for its receiver."""

    REQUEST = "request"
    REPLY = "reply"


# Takes a message: source, kind, request number, metadata, body.
Receiver = Callable[[Endpoint, Kind, int, bytes, bytes], None]


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """How badly the network behaves. Probabilities are per message."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_us: tuple[int, int] = (50, 500)  # drawn uniformly: wide bounds reorder
    straggling: float = 0.0  # probability of a delay a hundred times as long


@dataclass(slots=True)
class Traffic:
    """The traffic so far."""

    sent: int = 0
    requests: int = 0  # of those that were sent
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    cut: int = 0
    bytes: int = 0


class SimulatedNetwork:
    """Carries messages between endpoints of one world."""

    def __init__(self, world: World, faults: NetworkFaults) -> None:
        self._world = world
        self.faults = faults
        self.traffic = Traffic()
        self._receivers: dict[Endpoint, Receiver] = {}
        self._islands: dict[Endpoint, int] = {}  # endpoint -> the side of the partition it is on
        self.distances_us: dict[Endpoint, int] = {}  # how much longer all its ways are
        self._severed: set[tuple[Endpoint, Endpoint]] = set()  # (source, target)
        self._encoded: tuple[Any, bytes] = (None, b"")  # the message sent last

    def attach(self, endpoint: Endpoint, receiver: Receiver) -> None:
        """Messages to `endpoint` go to `receiver` from now on."""
        self._receivers[endpoint] = receiver

    def detach(self, endpoint: Endpoint) -> None:
        """Messages to `endpoint` are lost from now on."""
        self._receivers.pop(endpoint, None)

    def partition(self, islands: dict[Endpoint, int]) -> None:
        """Let only endpoints on the same side talk; those not named are on side 0."""
        self._islands = islands

    def sever(self, source: Endpoint, target: Endpoint) -> None:
        """Cut the way from `source` to `target`; the way back stays open."""
        self._severed.add((source, target))

    def heal(self) -> None:
        """End all partitions and mend all ways."""
        self._islands = {}
        self._severed.clear()

    def send(
        self,
        source: Endpoint,
        target: Endpoint,
        kind: Kind,
        number: int,
        message: Any,
        body: Body = b"",
    ) -> None:
        """Encode `message` and carry it, perhaps. An adversary may pass encoded bytes instead."""
        # The hottest path of a simulation: what it draws, and in which order, decides every seed.
        last, metadata = self._encoded
        if message is not last:  # one that goes to many nodes in a row is encoded once
            metadata = message if type(message) is bytes else encode(message)
            self._encoded = (message, metadata)
        payload = body if type(body) is bytes else bytes(body)
        traffic, world, faults = self.traffic, self._world, self.faults
        random = world.random.random
        distances = self.distances_us
        traffic.sent += 1
        traffic.requests += kind is Kind.REQUEST
        traffic.bytes += len(metadata) + len(payload)
        copies = 1
        if faults.duplication and random() < faults.duplication:
            copies = 2
            traffic.duplicated += 1
        least_us, most_us = faults.delay_us
        while copies:
            copies -= 1
            if faults.loss and random() < faults.loss:
                traffic.lost += 1
                continue
            delay_us = least_us + int(random() * (most_us - least_us + 1))
            if distances:
                delay_us += distances.get(source, 0) + distances.get(target, 0)
            if faults.straggling and random() < faults.straggling:
                delay_us *= 100
            world.after(delay_us, self._arrive, source, target, kind, number, metadata, payload)

    def _arrive(
        self,
        source: Endpoint,
        target: Endpoint,
        kind: Kind,
        number: int,
        metadata: bytes,
        body: bytes,
    ) -> None:
        islands = self._islands
        if (islands and islands.get(source, 0) != islands.get(target, 0)) or (
            self._severed and (source, target) in self._severed
        ):
            self.traffic.cut += 1
            return
        receiver = self._receivers.get(target)
        if receiver is None:
            self.traffic.lost += 1
            return
        self.traffic.delivered += 1
        receiver(source, kind, number, metadata, body)
