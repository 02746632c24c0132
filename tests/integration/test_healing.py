"""Real node processes that come back without their store, or without a part of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from bftfs.conversation import Receive, Send
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId, block_number_of
from bftfs.limits import SECOND_US
from bftfs.read_write.messages import ReadRequest
from bftfs.read_write.timestamp import VERSIONS_END, successor_of, timestamp_of
from bftfs.storage import Table, Write
from nodes.store import Store
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric
from tests.integration.test_protocols import Client, items

MISSED = 100  # and more: blocks that are written while a node is down


def stored(deployment: Deployment, node: int, table: Table = Table.FRAGMENT) -> dict[bytes, bytes]:
    """The fragments (or other rows) of a node that does not run."""
    store = Store.open(
        deployment.node(node).store,
        cluster=deployment.description.cluster_id,
        node=NodeId(node),
    )
    with store.batch() as batch:
        found = {bytes(key): bytes(value) for key, value in batch.scan(table, b"", VERSIONS_END)}
    store.close()
    return found


class Used(NamedTuple):
    """Six nodes that the tests share; a client that has written something, and what it was."""

    deployment: Deployment
    client: Client
    written: dict[int, bytes]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """All nodes have their part of what was written, and run when a test has ended.

    While a node is down, no other may miss anything, however slow it is; then that one heals.
    """
    deployment = Deployment(tmp_path_factory.mktemp("healing") / "cluster", module="nodes")
    deployment.start([0, 1, 2, 3, 5])
    client, written = Client(deployment), items(30)
    client.write_all(written)
    client.increment_all([0, 1, 2, 3, 4, 5] * 3)
    deployment.start([4])
    await_that(lambda: metric(deployment, "bftfs_heal_blocks_rebuilt", 4) >= len(written))
    await_that(lambda: metric(deployment, "bftfs_heal_objects_rebuilt", 4) >= 6)
    yield Used(deployment, client, written)
    client.network.close()
    deployment.close()


def test_a_node_rebuilds_a_lost_store_without_a_command(used: Used) -> None:
    deployment, client, written = used
    assert deployment.stop(2) == 0
    before = stored(deployment, 2)
    assert len(before) >= len(written)
    shutil.rmtree(deployment.node(2).store)
    deployment.start([2])
    client.increment_all([0, 1, 2])  # while it is in use
    await_that(lambda: metric(deployment, "bftfs_recovering", 2) == 0)
    assert deployment.node(2).recovery.read_text().split()[-1] == "rebuilt"
    deployment.kill(4)  # now it is needed for every quorum
    reader = Client(deployment, 1)
    assert reader.read_all(written) == written
    assert reader.fetch_all(range(6)) == [4, 4, 4, 3, 3, 3]
    assert reader.increment_all([0, 5]) == [5, 4]
    reader.write_all({77: b"more"})
    assert deployment.stop(2) == 0
    after = stored(deployment, 2)
    assert {key: after[key] for key in before} == before
    events = [json.loads(line)["event"] for line in deployment.node(2).log.read_text().splitlines()]
    assert "rebuilding" in events
    assert "rebuilt" in events
    reader.network.close()
    deployment.start([2, 4])


def damage_rows(store: Store) -> None:
    """Of fragments, and of objects' states; all was checked long ago."""
    with store.batch() as batch:
        for table in (Table.FRAGMENT, Table.STATE):
            rows = list(batch.scan(table, b"", VERSIONS_END))[::2]
            batch.apply([Write(table, key, damaged(value)) for key, value in rows])
        batch.apply([Write(Table.META, b"scrubbed", (1).to_bytes(8, "big"))])
        batch.commit()


def damaged(value: bytes) -> bytes:
    """Another value, whatever this one is."""
    return value[:-1] + bytes((value[-1] ^ 0xFF,))


def lose_rows(store: Store) -> None:
    with store.batch() as batch:
        keys = list(batch.keys(Table.FRAGMENT, b"", VERSIONS_END))
        batch.apply([Write(Table.FRAGMENT, key, None) for key in keys[::3]])
        batch.apply([Write(Table.BLOCK, key, None) for key in keys[1::3]])
        batch.commit()


def serves(client: Client, node: int, key: bytes, fragment: bytes) -> bool:
    """True if the node has this fragment of this version, whoever brought it.

    It may be silent for a while: the client has to find out that it was started again.
    """
    request = ReadRequest(
        BlockId(key[:BLOCK_ID_BYTES]), successor_of(timestamp_of(key)), want_data=True, history=0
    )

    async def is_told() -> bool:
        await Send(NodeId(node), request)
        delivery = await Receive(patience_us=SECOND_US)
        return delivery is not None and bytes(delivery.body) == fragment

    return client.network.perform(is_told())


@pytest.mark.parametrize("damage", [damage_rows, lose_rows])
def test_a_node_mends_a_store_of_which_a_part_is_lost(
    used: Used, damage: Callable[[Store], None]
) -> None:
    deployment, client, _ = used
    # Or verification would bring back some of what is lost, and leave less to healing.
    nodes = range(deployment.description.n)
    await_that(lambda: not any(metric(deployment, "bftfs_possible_versions", n) for n in nodes))
    assert deployment.stop(2) == 0
    before = stored(deployment, 2), stored(deployment, 2, Table.STATE)
    assert len(before[0]) >= 30
    assert len(before[1]) == 6
    store = Store.open(
        deployment.node(2).store, cluster=deployment.description.cluster_id, node=NodeId(2)
    )
    damage(store)
    store.close()
    lost = stored(deployment, 2), stored(deployment, 2, Table.STATE)
    assert lost[0] != before[0]
    deployment.start([2])
    if damage is damage_rows:
        fragments = sum(lost[0][key] != before[0][key] for key in before[0])
        assert fragments >= 15
        assert sum(lost[1][key] != before[1][key] for key in before[1]) == 3
        await_that(lambda: metric(deployment, "bftfs_scrub_passes", 2) == 1)
        assert metric(deployment, "bftfs_scrub_damaged", 2) >= fragments + 2
        await_that(lambda: metric(deployment, "bftfs_damaged_objects", 2) == 0)
    await_that(lambda: all(serves(client, 2, key, value) for key, value in before[0].items()))
    assert metric(deployment, "bftfs_heal_blocks_rebuilt", 2) > 0
    assert deployment.stop(2) == 0
    after = stored(deployment, 2), stored(deployment, 2, Table.STATE)
    assert after[0] == before[0]
    assert after[1].keys() >= before[1].keys()
    assert not after[1].items() & (lost[1].items() - before[1].items())
    deployment.start([2])


def test_a_node_that_was_down_gets_what_it_missed(used: Used) -> None:
    deployment, client, _ = used
    deployment.kill(3)
    client.write_all({MISSED + number: item for number, item in items(20).items()})
    client.increment_all([3, 4, 5])
    deployment.start([3])
    await_that(lambda: metric(deployment, "bftfs_heal_blocks_passes", 3) >= 1)
    await_that(lambda: metric(deployment, "bftfs_heal_objects_rebuilt", 3) >= 3)
    assert deployment.stop(3) == 0
    missed = [key for key in stored(deployment, 3) if block_number_of(BlockId(key)) >= MISSED]
    assert len(missed) == 20
    deployment.start([3])
