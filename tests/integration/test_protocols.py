"""Both protocols on six real node processes: crashes, a node that comes back, a node that lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.crypto.digest import client_id_of
from bftfs.envelope import REPLIES
from bftfs.filesystem import object_types
from bftfs.identifiers import BlockId, ObjectId, ObjectKind, block_id, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.counter import Fetch, Increment
from bftfs.read_write.client import ReadWriteClient
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.simulation.byzantine.registry import NODES
from tests.integration.deployment import Deployment

ROOT = Credentials(uid=0, gid=0)
FILE = object_id(ObjectKind.INODE, placement=0, unique=b"f" * 14)
PATIENCE_US = 60_000_000


def counter(number: int) -> ObjectId:
    return object_id(ObjectKind.COUNTER, placement=number, unique=b"%14d" % number)


def block(number: int) -> BlockId:
    return block_id(FILE, incarnation=0, number=number)


class Client:
    """One client of both protocols, on a blocking network."""

    def __init__(self, deployment: Deployment, number: int = 0) -> None:
        identity = deployment.clients[number]
        name = client_id_of(public_key=identity.public_key)
        description = deployment.description
        self.network = BlockingNetwork(description, identity, decode=REPLIES.decode)
        peers = Peers(ThresholdQuorums(description.query_update))
        self.objects = QueryUpdateClient(name, peers, object_types(), patience_total_us=PATIENCE_US)
        self.blocks = ReadWriteClient(
            name, description.read_write, peers, patience_total_us=PATIENCE_US
        )

    async def increment(self, number: int) -> Conversation[int]:
        answered = await self.objects.update(
            (counter(number),), "counter.increment", Increment(1), ROOT
        )
        return answered.answer.value

    async def fetch(self, number: int) -> Conversation[int]:
        answered = await self.objects.query((counter(number),), "counter.fetch", Fetch(), ROOT)
        return answered.answer.value

    async def write(self, number: int, item: bytes) -> Conversation[None]:
        await self.blocks.write(block(number), item, ROOT)

    async def read(self, number: int) -> Conversation[bytes | None]:
        return (await self.blocks.read(block(number))).item

    def increment_all(self, numbers: list[int]) -> list[int]:
        return self.network.perform_many(map(self.increment, numbers), in_flight=8)

    def fetch_all(self, numbers: range) -> list[int]:
        return self.network.perform_many(map(self.fetch, numbers), in_flight=8)

    def write_all(self, items: dict[int, bytes]) -> None:
        self.network.perform_many(
            (self.write(number, item) for number, item in items.items()), in_flight=8
        )

    def read_all(self, numbers: dict[int, bytes]) -> dict[int, bytes | None]:
        items = self.network.perform_many(map(self.read, numbers), in_flight=8)
        return dict(zip(numbers, items, strict=True))


@pytest.fixture(params=list(Durability), ids=lambda durability: durability.value)
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Six nodes, with one durability and then with the other."""
    deployment = Deployment(tmp_path / "cluster", module="nodes", durability=request.param)
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    yield deployment
    deployment.close()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def made(number: int = 0) -> Client:
        clients.append(Client(deployment, number))
        return clients[-1]

    yield made
    for each in clients:
        each.network.close()


def items(count: int) -> dict[int, bytes]:
    return {number: os.urandom(1 + number * 7919) for number in range(count)}


def test_two_clients_count_together(deployment: Deployment, client: Callable[..., Client]) -> None:
    deployment.start()
    first, second = client(0), client(1)
    seen = []
    for _ in range(5):
        seen += first.increment_all([0, 0, 1, 0])
        seen += second.increment_all([0, 1, 0, 0])
    assert first.fetch_all(range(2)) == [30, 10]
    assert second.fetch_all(range(2)) == [30, 10]
    assert sorted(seen) == sorted([*range(1, 31), *range(1, 11)])


def test_blocks_of_one_client_are_read_by_the_other(
    deployment: Deployment, client: Callable[..., Client]
) -> None:
    deployment.start()
    written = items(30)
    client(0).write_all(written)
    assert client(1).read_all(written) == written
    assert client(1).read_all({99: b""}) == {99: None}


def test_everything_survives_the_death_of_all_nodes(either: Deployment) -> None:
    either.start()
    before = Client(either)
    written = items(12)
    before.write_all(written)
    before.increment_all([0] * 5 + [1] * 3)
    for node in either.nodes:
        either.kill(node)
    either.start()
    assert before.increment_all([0, 1]) == [6, 4]
    after = Client(either, 1)
    assert after.read_all(written) == written
    assert after.fetch_all(range(2)) == [6, 4]
    before.network.close()
    after.network.close()


def test_a_node_that_was_away_catches_up_when_needed(
    deployment: Deployment, client: Callable[..., Client]
) -> None:
    deployment.start()
    counting = client()
    written = items(10)
    counting.increment_all([0] * 20)
    deployment.kill(0)
    counting.increment_all([0] * 30)
    counting.write_all(written)
    deployment.start([0])
    # With another node gone, the one that was away is in every quorum.
    deployment.kill(1)
    assert counting.increment_all([0] * 10)[-1] == 60
    assert counting.read_all(written) == written
    written = items(10)
    counting.write_all(written)
    reader = client(1)
    assert reader.fetch_all(range(1)) == [60]
    assert reader.read_all(written) == written


@pytest.mark.parametrize("adversary", list(NODES))
def test_a_node_process_that_lies_changes_nothing(
    deployment: Deployment, client: Callable[..., Client], adversary: str
) -> None:
    deployment.start([0, 1, 2, 4, 5])
    deployment.start([3], program=["tests.lying_node", adversary])
    first, second = client(0), client(1)
    written = items(8)
    for turn in range(3):
        first.increment_all([0, 1, 2, 3])
        second.increment_all([0, 1, 2, 3])
        first.write_all({number: item + b"%d" % turn for number, item in written.items()})
    assert second.fetch_all(range(4)) == [6] * 4
    assert second.read_all(written) == {n: item + b"2" for n, item in written.items()}
    assert deployment.processes[3].poll() is None
