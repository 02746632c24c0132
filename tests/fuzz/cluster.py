"""A small cluster in virtual time for step harnesses: real servers, clients, dispatchers and codec.

Each input has a cluster of its own, as it is after the same beginning: a formatted volume, with a
directory and a file of an honest user. Nothing is drawn but from the input.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.crypto.digest import AuthenticatorKeys, replica_history_digest
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.errors import MalformedMessage
from bftfs.filesystem import object_types
from bftfs.filesystem.directory import Creation, DirectoryCreation
from bftfs.filesystem.registry import CREATE, FORMAT, MAKE_DIRECTORY
from bftfs.filesystem.volume import Format
from bftfs.identifiers import BlockId, NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    HistoryGroup,
    ObjectHistorySet,
    decode_conditioned,
    history_of,
    logical_timestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.replica import Replica
from bftfs.server.block_verification import VerificationSettings
from bftfs.server.step import Ready, Server
from bftfs.simulation.deployment import Deployment, Sizes
from bftfs.simulation.network import Endpoint, Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.world import World
from bftfs.storage import MemoryStorage
from bftfs.wire.codec import encode
from tests.builders import ClusterClient, Outcome, SimulatedCluster
from tests.fuzz.choices import Choices
from tests.fuzz.values import NESTED, Pool, mutate, mutate_octets

SIZES = Sizes.smallest(t=1, b=1)
TYPES = object_types()
ROOT_USER = Credentials(0, 0)
OWNER = Credentials(1000, 1000)

VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
DIRECTORY = object_id(ObjectKind.DIRECTORY, placement=2, unique=b"d" * 14)
FILE = object_id(ObjectKind.INODE, placement=0, unique=b"f" * 14)
FRESH = tuple(
    object_id(ObjectKind.INODE, placement=number, unique=bytes([number]) * 14)
    for number in range(1, 5)
)
OBJECTS = (ROOT, DIRECTORY, FILE, VOLUME, *FRESH)
BLOCKS = tuple(block_id(FILE, incarnation=0, number=number) for number in range(3))

# What each correct node tells of itself.
ACCOUNT = HealthReply(
    1,
    1,
    True,
    (),
    store_bytes=20,
    used_bytes=10,
    free_bytes=1 << 40,
    objects=5,
    requests=0,
    memory_bytes=0,
)

_MOST_EVENTS = 6_000
_GOES_ON = 400


class Stuck(AssertionError):
    """An operation of a correct client that does not end."""


class _Recording(SimulatedNetwork):
    """A network that remembers what was said."""

    def __init__(self, world: World) -> None:
        super().__init__(world, NetworkFaults(delay_us=(100, 100)))
        self.requests: list[tuple[Any, bytes]] = []
        self.replies: list[tuple[Any, bytes]] = []

    def send(
        self,
        source: Endpoint,
        target: Endpoint,
        kind: Kind,
        number: int,
        message: Any,
        body: bytes | memoryview = b"",
    ) -> None:
        said = self.requests if kind is Kind.REQUEST else self.replies
        if isinstance(message, msgspec.Struct) and len(said) < 256:
            said.append((message, bytes(body)))
        super().send(source, target, kind, number, message, body)


class _Account:
    """Answers `HealthRequest`, as a node process does."""

    def step(self, *_: Any) -> Ready:
        return Ready(ACCOUNT)


class _Deployment(Deployment):
    """Nodes that tell how they are as well."""

    def servers(self, node: NodeId, *, begins_runs: bool = True) -> dict[type, Server]:
        servers = super().servers(node, begins_runs=begins_runs)
        assert isinstance(servers, dict)
        servers[HealthRequest] = _Account()
        return servers


class FuzzCluster(SimulatedCluster):
    """The cluster of one input."""

    network: _Recording

    def __init__(self, disks: tuple[MemoryStorage, ...] = (), *, verifies: bool = False) -> None:
        super().__init__(
            SIZES,
            types=TYPES,
            network=_Recording,
            deployment=_Deployment,
            commit_us=(20, 20),
            verification=VerificationSettings() if verifies else None,
        )
        for node, disk in zip(self.nodes, disks, strict=False):
            node.disk._tables = disk.snapshot()._tables
            node.crash(down_us=None)
            node.start()
        self.pool = Pool()
        for value in (*OBJECTS, *BLOCKS, *(_method.encode() for _method in _METHOD_NAMES)):
            self.pool.add(value)

    principal = SimulatedCluster.client

    def start(self, client: ClusterClient, conversation: Conversation[Any]) -> Outcome:
        """Begin a conversation."""
        return client.start(conversation)

    def finish(self, outcome: Outcome) -> Any:
        """Let the conversation end."""
        if not self.world.run(until=lambda: outcome.done, most_events=_MOST_EVENTS):
            raise Stuck(f"a correct client's operation has not ended after {_MOST_EVENTS} events")
        return outcome.value()

    def run(self, client: ClusterClient, conversation: Conversation[Any]) -> Any:
        """The result of a conversation."""
        return self.finish(self.start(client, conversation))

    def go_on(self, most_events: int = _GOES_ON) -> None:
        """Let things happen for a while."""
        self.world.run(until=lambda: False, most_events=most_events)

    def row(self, node: int, name: ObjectId) -> tuple[bytes, bytes]:
        """What a node's disk says of an object: replica history and authenticator."""
        row = Replica(self.nodes[node].disk, name).row
        return row.history, row.authenticator

    def keys(self, node: int) -> AuthenticatorKeys:
        """A node's keys; a harness uses those of the Byzantine one."""
        return self.deployment.keys(NodeId(node))

    def history_set(
        self, choices: Choices, name: ObjectId, *, forged_by: int
    ) -> tuple[ObjectHistorySet, bytes]:
        """What a client may show of an object: true histories, and those that one node forges."""
        known: dict[bytes, list[int]] = {}
        authenticators: dict[int, bytes] = {}
        for node in range(SIZES.n):
            history, authenticator = self.row(node, name)
            if node == forged_by and choices.flag():
                history = mutate_history(choices, history, self.pool)
                authenticator = self.keys(node).make(
                    replica_history_digest(object=name, encoded=history)
                )
            if history and not choices.flag(8):
                known.setdefault(history, []).append(node)
                authenticators[node] = authenticator
        groups = tuple(HistoryGroup(history, bytes(nodes)) for history, nodes in known.items())
        macs = b"".join(authenticators[node] for nodes in known.values() for node in nodes)
        return ObjectHistorySet(name, groups), macs

    def check_servers(self) -> None:
        """No method has failed for another reason than a refusal."""
        assert not TYPES.failures, "a method has a bug"


_METHOD_NAMES = tuple(TYPES._methods)


@cache
def beginning() -> tuple[MemoryStorage, ...]:
    """The disks after the same few operations of an honest user."""
    cluster = FuzzCluster()
    client = cluster.principal("beginning")
    update = client.objects.update
    cluster.run(client, update((VOLUME, ROOT), FORMAT, Format(4096, 0o755), ROOT_USER))
    cluster.run(
        client,
        update((ROOT, DIRECTORY), MAKE_DIRECTORY, DirectoryCreation(b"d", 0o755, 0), ROOT_USER),
    )
    creation = Creation(b"f", 0o100644, 0, 0, b"", 4096)
    cluster.run(client, update((ROOT, FILE), CREATE, creation, ROOT_USER))
    cluster.run(client, client.blocks.write(BLOCKS[0], b"first", ROOT_USER))
    return tuple(node.disk.snapshot() for node in cluster.nodes)


def begun(*, verifies: bool = False) -> FuzzCluster:
    """A cluster that has begun, with or without the lazy verification of blocks."""
    return FuzzCluster(beginning(), verifies=verifies)


# --- structure inside of byte strings -------------------------------------------------------


def mutate_history(choices: Choices, encoded: bytes, pool: Pool) -> bytes:
    """Nearly the same replica history; mostly one that can be parsed."""
    try:
        history = parse_history(encoded)
    except MalformedMessage:
        return mutate_octets(choices, encoded, False, pool)
    candidates = list(history.candidates)
    how = choices.number(8)
    if how == 0:
        return mutate_octets(choices, encoded, False, pool)
    if how == 1 and candidates:
        del candidates[choices.number(len(candidates))]
    elif how == 2:
        return b""
    else:
        latest = time_of(history.latest)
        time_us = choices.pick((latest + 1, latest + 10**6, (1 << 64) - 1, 1, latest))
        barrier = choices.flag()
        timestamp = logical_timestamp(
            time_us=time_us,
            barrier=barrier,
            client=choices.pick(pool.of_length(16) or (bytes(16),)),  # type: ignore[arg-type]
            digest=choices.octets(2) * 16,
        )
        base = choices.pick([ZERO, *(each.timestamp for each in candidates if not each.barrier)])
        objects = () if barrier or choices.flag() else tuple(sorted(OBJECTS))[: choices.number(5)]
        candidates.append(Candidate(timestamp, base, objects, not barrier and choices.flag(4)))
        if not choices.flag(8):
            candidates.sort(key=lambda each: each.timestamp)
    if not candidates:
        return b""
    return history_of(candidates, initial=history.initial ^ choices.flag(8))


def _mutate_conditioned(choices: Choices, encoded: bytes, pool: Pool) -> bytes:
    try:
        return encode(mutate(choices, decode_conditioned(encoded), Conditioned, pool))
    except MalformedMessage:
        return mutate_octets(choices, encoded, False, pool)


def _mutate_histories(
    choices: Choices, histories: tuple[bytes, ...], pool: Pool
) -> tuple[bytes, ...]:
    changed = list(histories)
    at = choices.number(len(changed))
    changed[at] = mutate_history(choices, changed[at], pool)
    return tuple(changed)


NESTED["conditioned"] = _mutate_conditioned
NESTED["history"] = mutate_history
NESTED["histories"] = _mutate_histories

__all__ = ["BLOCKS", "OBJECTS", "BlockId", "ClusterClient", "FuzzCluster", "begun"]
