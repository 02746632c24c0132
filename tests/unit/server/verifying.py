"""A simulated cluster whose nodes verify, for tests of lazy verification and healing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import BlockId, NodeId, ObjectKind, block_id, object_id
from bftfs.read_write.messages import Notice, ReadReply, ReadRequest, WriteRequest
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.read_write.writing import Encoded, encode
from bftfs.server.block_verification import LazyVerifier, VerificationSettings
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.network import Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.principals import node_endpoint
from bftfs.simulation.world import World
from bftfs.storage import Table
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds
from tests.builders import USER, ClusterClient, SimulatedCluster

FILE = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
SECOND_US = 1_000_000


def block(number: int) -> BlockId:
    """Its responsible nodes are `number` and the b next."""
    return block_id(FILE, incarnation=0, number=number)


class CountingNetwork(SimulatedNetwork):
    """Counts messages between different nodes, by kind."""

    def __init__(self, world: World) -> None:
        super().__init__(world, NetworkFaults())
        self.between_nodes: Counter[type] = Counter()
        self.within_nodes: Counter[type] = Counter()

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source[0] == target[0] == "node":
            counter = self.within_nodes if source == target else self.between_nodes
            counter[type(message)] += 1
        super().send(source, target, kind, number, message, body)


class Cluster(SimulatedCluster):
    """Nodes that verify, and clients."""

    network: CountingNetwork

    def __init__(
        self,
        settings: VerificationSettings | None = None,
        *,
        sizes: Sizes | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__(
            sizes,
            seed=seed,
            network=CountingNetwork,
            verification=settings or VerificationSettings(),
        )

    def client(self, name: str = "alice") -> Client:
        return Client(self, self.deployment.client(name))

    def forge_proofs(self, liar: int, kind: type, forged: bytes) -> list[Any]:
        """From now on the liar's replies of this kind have one proof only; those that it sends."""
        send, lies = self.network.send, []

        def lying(
            source: Any, target: Any, of: Kind, number: int, message: Any, body: Any = b""
        ) -> None:
            if source == ("node", liar) and isinstance(message, kind):
                message = msgspec.structs.replace(message, proofs=(forged,) * 6)
                lies.append(message)
            send(source, target, of, number, message, body)

        self.network.send = lying  # type: ignore[method-assign]
        return lies

    def verifier(self, node: int) -> LazyVerifier:
        verifier = self.nodes[node].dispatcher._servers[Notice]
        assert isinstance(verifier, LazyVerifier)
        return verifier

    def lose_store(self, node: int) -> None:
        """The node comes back at once, with an empty disk, and knows it."""
        self.deployment.lose_disk(NodeId(node))

    def row(self, node: int, name: BlockId, timestamp: BlockTimestamp) -> bytes | None:
        return self.nodes[node].disk.get(Table.BLOCK, version_key(name, timestamp))

    def hosting(self, name: BlockId, timestamp: BlockTimestamp) -> list[int]:
        return [node for node in range(self.sizes.n) if self.row(node, name, timestamp) is not None]

    def verified(self, name: BlockId, timestamp: BlockTimestamp) -> list[int]:
        return [
            node
            for node in self.hosting(name, timestamp)
            if (self.row(node, name, timestamp) or b"\0")[0] & VERIFIED
        ]

    def pieces(self, item: bytes) -> Encoded:
        thresholds = self.sizes.read_write
        return encode(ErasureCode(thresholds.m, thresholds.N), item)

    def poisoned(self, item: bytes) -> Encoded:
        """A write one of whose fragments is not the item's."""
        pieces = self.pieces(item)
        fragments = list(pieces.fragments)
        fragments[-1] = bytes(byte ^ 0x55 for byte in bytes(fragments[-1]))
        checksum = cross_checksum.make(fragments)
        return Encoded(tuple(fragments), checksum, cross_checksum.verifier(checksum))

    def place(
        self, author: Client, name: BlockId, pieces: Encoded, nodes: list[int] | range
    ) -> BlockTimestamp:
        """A write that reaches `nodes` only, without a client that would finish it."""
        timestamp = BlockTimestamp(self.now_us, author.host.client, pieces.verifier)
        request = WriteRequest(
            name, timestamp, pieces.cross_checksum, USER.uid, USER.gid, USER.groups
        )
        N = self.sizes.read_write.N
        for node in nodes:
            fragment = bytes(pieces.fragments[(node - rotation_of(name, N)) % N])
            self.network.send(
                author.host.endpoint,
                node_endpoint(NodeId(node)),
                Kind.REQUEST,
                0,
                request,
                fragment,
            )
        self.run_for(10_000)
        return timestamp


class Client(ClusterClient):
    """A client of blocks."""

    do = ClusterClient.run

    def write(self, name: BlockId, item: bytes) -> BlockTimestamp:
        timestamp: BlockTimestamp = self.do(self.blocks.write(name, item, USER))
        return timestamp

    def read(self, name: BlockId) -> bytes | None:
        item: bytes | None = self.do(self.blocks.read(name)).item
        return item


def minimal(b: int) -> Sizes:
    """The source's minimal system, N = 4b + 1 and m = b + 1, for blocks."""
    query_update = QueryUpdateThresholds.smallest(t=0, b=0)
    read_write = ReadWriteThresholds.smallest(t=b, b=b)
    return Sizes(
        QueryUpdateThresholds(n=read_write.N, t=0, b=0, q=read_write.N, r=read_write.N)
        if query_update.n != read_write.N
        else query_update,
        read_write,
    )


READ_MESSAGES = (ReadRequest, ReadReply)
