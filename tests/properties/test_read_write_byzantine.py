"""Every adversary at every node, alone, together, and with crashes beside: blocks stay registers.

Judged from outside: the operations of the correct clients, which overlap as the seed wills, are
linearizable, and every one of them comes to its end.
"""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from bftfs.thresholds import ReadWriteThresholds
from tests.unit.read_write import adversaries
from tests.unit.read_write.campaign import Campaign
from tests.unit.read_write.harness import DEFAULT, Behaviour, World, mute


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
def test_nodes_crash_and_come_back_with_their_commits(seed: int) -> None:
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
