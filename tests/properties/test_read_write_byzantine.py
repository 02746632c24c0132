"""Every adversary at every node, alone, together, and with crashes beside: blocks stay registers.

Judged from outside: the operations of the correct clients, which overlap as the seed wills, are
linearizable, and every one of them comes to its end.
"""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from bftfs.identifiers import block_id
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.simulation.checkers.linearizability import RegisterOperation, check_register
from bftfs.thresholds import ReadWriteThresholds
from tests.unit.read_write import adversaries
from tests.unit.read_write.harness import (
    DEFAULT,
    INODE,
    START_US,
    USER,
    Behaviour,
    Outcome,
    Principal,
    World,
    mute,
    poisoned,
)

BLOCKS = [block_id(INODE, incarnation=0, number=number) for number in range(2)]


class Campaign:
    """Random operations of several clients on two blocks, one in flight for each client."""

    def __init__(self, world: World, *, clients: int = 4, mallory: bool = False) -> None:
        self.world = world
        self.random = Random(world.random.random())
        self.clients = [world.client(f"client {number}") for number in range(clients)]
        self.mallory = world.client("mallory") if mallory else None
        self.histories: list[list[RegisterOperation]] = [[] for _ in BLOCKS]
        self._values = 0

    def run(self, operations: int) -> None:
        """Perform `operations`, and judge what they saw."""
        running: dict[Principal, tuple[Outcome, int, str, bytes, int]] = {}
        started = events = 0
        while started < operations or running:
            for client in self.clients:
                if client not in running and started < operations:
                    running[client] = self._start(client)
                    started += 1
                    if self.mallory is not None and self.random.random() < 0.3:
                        self._misbehave(self.mallory)
            if not any(outcome.over for outcome, *_ in running.values()):
                self.world._next_event()
                events += 1
                assert events < 3_000 * operations, "an operation does not come to its end"
            for client in list(running):
                if running[client][0].over:
                    self._end(client, *running.pop(client))
        for number, history in enumerate(self.histories):
            assert check_register(history, name=f"block {number}") == []

    def _value(self) -> bytes:
        self._values += 1
        return b"value %d " % self._values * self.random.randint(1, 9)

    def _start(self, client: Principal) -> tuple[Outcome, int, str, bytes, int]:
        number = self.random.randrange(len(BLOCKS))
        invoked = self.world.now_us
        if self.random.random() < 0.5:
            value = self._value()
            outcome = client.start(client.client.write(BLOCKS[number], value, USER))
            return outcome, number, "write", value, invoked
        return client.start(client.client.read(BLOCKS[number])), number, "read", b"", invoked

    def _end(
        self, client: Principal, outcome: Outcome, number: int, kind: str, value: bytes, at: int
    ) -> None:
        assert outcome.error is None, outcome.error
        seen = value if kind == "write" else outcome.result.item
        self.histories[number].append(
            RegisterOperation(client.id.hex()[:4], kind, seen, at, self.world.now_us)
        )

    def _misbehave(self, mallory: Principal) -> None:
        """A partial write: some nodes get it, the client forgets about it."""
        number = self.random.randrange(len(BLOCKS))
        N = self.world.thresholds.N
        nodes = self.random.sample(range(N), self.random.randint(1, N))
        value = self._value()
        time_us = START_US + self.world.now_us + self.random.randint(-5_000, 5_000)
        encoded = self.world.encoded(value)
        if self.random.random() < 0.3:  # and poisonous
            encoded = poisoned(encoded, self.random.randrange(N))
        else:
            self.histories[number].append(
                RegisterOperation("mallory", "write", value, self.world.now_us)
            )
        stamp, _ = self.world.place(mallory, encoded, nodes, time_us=time_us, block=BLOCKS[number])
        assert isinstance(stamp, BlockTimestamp)


@pytest.mark.parametrize("seed", range(30))
def test_without_faults(seed: int) -> None:
    Campaign(World(seed=seed, delay_us=(100, 5_000))).run(60)


@pytest.mark.parametrize("seed", range(15))
def test_with_loss_and_a_byzantine_client(seed: int) -> None:
    Campaign(World(seed=seed, loss=0.05), mallory=True).run(60)


@pytest.mark.parametrize("liar", range(DEFAULT.N))
@pytest.mark.parametrize(
    "behaviour", [*adversaries.stateless(), mute], ids=lambda behaviour: behaviour.__name__
)
def test_every_adversary_at_every_node(behaviour: Behaviour, liar: int) -> None:
    world = World(seed=liar)
    world.nodes[liar].behaviour = behaviour
    Campaign(world, mallory=True).run(40)


@pytest.mark.parametrize("liar", range(DEFAULT.N))
def test_an_amnesiac_at_every_node(liar: int) -> None:
    world = World(seed=liar)
    world.nodes[liar].behaviour = adversaries.stale()
    Campaign(world, mallory=True).run(40)


@pytest.mark.parametrize(
    ("one", "other"),
    list(combinations([*adversaries.stateless(), mute], 2)),
    ids=lambda behaviour: behaviour.__name__,
)
def test_two_adversaries_together(one: Behaviour, other: Behaviour) -> None:
    sizes = ReadWriteThresholds.smallest(t=2, b=2)
    world = World(sizes, seed=7)
    world.nodes[1].behaviour = one
    world.nodes[4].behaviour = other
    Campaign(world, clients=3, mallory=True).run(25)


@pytest.mark.parametrize(
    "behaviour", adversaries.stateless(), ids=lambda behaviour: behaviour.__name__
)
@pytest.mark.parametrize(
    "sizes",
    [
        ReadWriteThresholds.smallest(t=2, b=1),
        ReadWriteThresholds.for_nodes(8, t=2, b=1),
        ReadWriteThresholds(N=12, t=2, b=1, QC=5, m=2),
    ],
    ids=str,
)
def test_an_adversary_beside_a_crashed_node(
    sizes: ReadWriteThresholds, behaviour: Behaviour
) -> None:
    world = World(sizes, seed=3)
    world.nodes[0].behaviour = mute
    world.nodes[3].behaviour = behaviour
    Campaign(world, clients=3, mallory=True).run(25)


@pytest.mark.parametrize("seed", range(10))
def test_nodes_that_crash_and_come_back_with_what_they_had_committed(seed: int) -> None:
    world = World(seed=seed)
    campaign = Campaign(world)
    down = [0]

    def move_the_crash() -> None:
        world.nodes[down[0]].behaviour = lambda _node, _sender, _message, honest: honest()
        down[0] = world.random.randrange(DEFAULT.N)
        world.nodes[down[0]].behaviour = mute
        world.after(20_000, move_the_crash)

    move_the_crash()
    campaign.run(60)


SIZES = [
    DEFAULT,
    ReadWriteThresholds.smallest(t=1, b=1),
    ReadWriteThresholds.smallest(t=2, b=1),
    ReadWriteThresholds.smallest(t=2, b=2),
    ReadWriteThresholds.for_nodes(8, t=2, b=1),
    ReadWriteThresholds(N=12, t=2, b=1, QC=5, m=2),
    ReadWriteThresholds(N=9, t=1, b=1, QC=3, m=2),
    ReadWriteThresholds.smallest(t=1, b=0),
    ReadWriteThresholds.for_nodes(7, t=2, b=0),
]
SEEDS_THAT_ONCE_FAILED = [1872, 2436, 10611, 10937, 12892]


@pytest.mark.parametrize("seed", [*range(100), *SEEDS_THAT_ONCE_FAILED])
def test_random_clusters_networks_and_adversaries(seed: int) -> None:
    """Swarm configuration: each seed draws the sizes, the delays, the loss, and who is faulty."""
    random = Random(seed)
    sizes = random.choice(SIZES)
    delay_us = random.choice([50, 100]), random.choice([200, 1_000, 20_000, 120_000])
    world = World(sizes, seed=seed, delay_us=delay_us, loss=random.choice([0, 0, 0.02, 0.2]))
    for position, number in enumerate(random.sample(range(sizes.N), sizes.t)):
        if random.random() < 0.3:
            continue
        world.nodes[number].behaviour = (
            random.choice([*adversaries.stateless(), adversaries.stale(), mute])
            if position < sizes.b
            else mute
        )
    clients, mallory = random.randint(1, 5), random.random() < 0.6
    Campaign(world, clients=clients, mallory=mallory).run(random.choice([20, 60]))
