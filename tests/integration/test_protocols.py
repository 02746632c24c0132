"""Both protocols on six real node processes: crashes, a node that comes back, a node that lies."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
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
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric

ROOT = Credentials(uid=0, gid=0)
FILE = object_id(ObjectKind.INODE, placement=0, unique=b"f" * 14)
PATIENCE_US = 60_000_000
LIAR = 3
HONEST = ("nodes",)
NEVER_WRITTEN = 1_000_000  # and not many after it: a block of its own test


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

    def fetch_all(self, numbers: Iterable[int]) -> list[int]:
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


class Running:
    """Six nodes that several tests share. One of them may lie: another one in each test."""

    def __init__(self, path: Path) -> None:
        self.deployment = Deployment(path, module="nodes")
        self._adversary: str | None = None
        self._numbers = itertools.count()
        self._clients: list[Client] = []
        self.deployment.start()

    def beside(self, adversary: str | None) -> None:
        """Have this adversary take over the node that lies; None: nobody."""
        if adversary == self._adversary:
            return
        self.deployment.kill(LIAR)
        program = HONEST if adversary is None else ("tests.lying_node", adversary)
        self.deployment.start([LIAR], program=program)
        # Until then it takes nothing from authors.
        await_that(lambda: metric(self.deployment, "bftfs_clock_confirmed", LIAR) == 1)
        self._adversary = adversary

    def names(self) -> tuple[range, dict[int, bytes]]:
        """Counters and blocks that no other test uses: four, and eight of different lengths.

        With the preferred quorums and rotations of the first ones.
        """
        first = self.deployment.description.n * next(self._numbers)
        return range(first, first + 4), {
            10 * first + number: item for number, item in items(8).items()
        }

    def client(self, number: int = 0) -> Client:
        self._clients.append(Client(self.deployment, number))
        return self._clients[-1]

    def let_clients_go(self) -> None:
        for client in self._clients:
            client.network.close()
        self._clients.clear()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("shared") / "cluster")
    yield running
    running.deployment.close()


@pytest.fixture
def running(shared: Running) -> Iterator[Running]:
    yield shared
    shared.let_clients_go()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Six nodes of this test alone, none of them started."""
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    yield deployment
    deployment.close()


def items(count: int) -> dict[int, bytes]:
    return {number: os.urandom(1 + number * 7919) for number in range(count)}


def test_two_clients_count_together(running: Running) -> None:
    running.beside(None)
    (one, other, *_), _ = running.names()
    first, second = running.client(0), running.client(1)
    seen = []
    for _ in range(5):
        seen += first.increment_all([one, one, other, one])
        seen += second.increment_all([one, other, one, one])
    assert first.fetch_all([one, other]) == [30, 10]
    assert second.fetch_all([one, other]) == [30, 10]
    assert sorted(seen) == sorted([*range(1, 31), *range(1, 11)])


def test_blocks_of_one_client_are_read_by_the_other(running: Running) -> None:
    running.beside(None)
    written = {NEVER_WRITTEN + 1 + number: item for number, item in items(30).items()}
    running.client(0).write_all(written)
    assert running.client(1).read_all(written) == written
    assert running.client(1).read_all({NEVER_WRITTEN: b""}) == {NEVER_WRITTEN: None}


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


def test_a_node_that_was_away_catches_up_when_needed(deployment: Deployment) -> None:
    deployment.start()
    counting, reader = Client(deployment), Client(deployment, 1)
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
    assert reader.fetch_all(range(1)) == [60]
    assert reader.read_all(written) == written
    counting.network.close()
    reader.network.close()


@pytest.mark.parametrize("adversary", list(NODES))
def test_a_node_process_that_lies_changes_nothing(running: Running, adversary: str) -> None:
    """It has not told a lie yet about these counters and blocks, whatever it did before."""
    running.beside(adversary)
    first, second = running.client(0), running.client(1)
    counters, written = running.names()
    for turn in range(3):
        first.increment_all(list(counters))
        second.increment_all(list(counters))
        first.write_all({number: item + b"%d" % turn for number, item in written.items()})
    assert second.fetch_all(counters) == [6] * 4
    assert second.read_all(written) == {n: item + b"2" for n, item in written.items()}
    deployment = running.deployment
    assert deployment.processes[LIAR].poll() is None
    assert all(asked(deployment, LIAR, kind) for kind in ("Update", "WriteRequest"))


def asked(deployment: Deployment, node: int, kind: str) -> float:
    """How many requests of this kind a node has been sent since it was started."""
    return metric(deployment, f'bftfs_requests_total{{message="{kind}"}}', node)
