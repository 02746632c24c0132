"""One record of the nodes for both protocols: what one finds out, the other knows."""

from __future__ import annotations

from typing import Any

from bftfs.asking.peers import Condition
from bftfs.asking.quorum import Nodes
from bftfs.conversation import Conversation, Now
from bftfs.identifiers import NodeId, ObjectKind, block_id, object_id
from bftfs.query_update.counter import Increment, counter_types
from bftfs.simulation.network import Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.world import World
from bftfs.storage import Table
from tests.builders import USER, ClusterClient, SimulatedCluster

COUNTER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
FILE = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
BLOCK = block_id(FILE, incarnation=0, number=0)
DOWN = NodeId(0)


class Recorded(SimulatedNetwork):
    """Takes down to which nodes clients send requests."""

    def __init__(self, world: World) -> None:
        super().__init__(world, NetworkFaults())
        self.asked: list[int] = []

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if kind is Kind.REQUEST and source[0] != "node":
            self.asked.append(target[1])
        super().send(source, target, kind, number, message, body)


def first_asked(
    cluster: SimulatedCluster, client: ClusterClient, work: Conversation[Any]
) -> list[int]:
    """The nodes that the client asks first."""
    network: Any = cluster.network
    network.asked.clear()
    client.run(work)
    asked: list[int] = network.asked[:5]
    return asked


def increment(client: ClusterClient) -> Conversation[Any]:
    return client.objects.update((COUNTER,), "counter.increment", Increment(1), USER)


def prepared() -> tuple[SimulatedCluster, ClusterClient]:
    cluster = SimulatedCluster(types=counter_types(), network=Recorded)
    client = cluster.client()
    client.run(increment(client))
    client.run(client.blocks.write(BLOCK, b"item" * 100, USER))
    cluster.run_for(1_000)
    return cluster, client


def test_a_node_that_is_down_is_found_out_once_by_reads() -> None:
    cluster, client = prepared()
    cluster.nodes[DOWN].crash(down_us=None)
    assert DOWN in first_asked(cluster, client, client.blocks.read(BLOCK))
    assert client.peers.condition(DOWN) is Condition.SILENT
    assert DOWN not in first_asked(cluster, client, increment(client))


def test_a_node_that_is_down_is_found_out_once_by_updates() -> None:
    cluster, client = prepared()
    cluster.nodes[DOWN].crash(down_us=None)
    while client.peers.willing(DOWN):
        client.run(increment(client))
    assert DOWN not in first_asked(cluster, client, client.blocks.read(BLOCK))


def test_a_damaged_disk_is_remembered_by_both() -> None:
    cluster, client = prepared()
    disk = cluster.nodes[DOWN].disk
    (key,) = disk.keys(Table.FRAGMENT, b"", b"\xff" * 99)
    disk.rot(Table.FRAGMENT, key, 0)
    assert client.run(client.blocks.read(BLOCK)).item == b"item" * 100
    assert client.peers.condition(DOWN) is Condition.DAMAGED
    assert client.peers.faults[DOWN] == 1
    assert DOWN not in first_asked(cluster, client, increment(client))


def test_a_lie_told_of_metadata_is_known_to_readers() -> None:
    cluster, client = prepared()

    async def convict() -> None:
        client.peers.convict(Nodes.of([DOWN]), await Now())

    client.run(convict())
    assert client.peers.condition(DOWN) is Condition.LYING
    assert DOWN not in first_asked(cluster, client, client.blocks.read(BLOCK))
