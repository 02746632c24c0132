"""Exhaustive loss patterns: a version is read, and repaired, whenever enough of it is left.

Each node has its fragment of the newest version, or has lost it (a disk that was replaced), or
holds a damaged one (a disk that rots); and at most t nodes are down. Wherever m correct fragments
can be reached, the version is returned, although an older complete one is there to fall back to;
afterwards N - t nodes hold it again. That goes beyond the fault model: more than t nodes may have
lost or damaged theirs.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest

from bftfs import limits
from bftfs.errors import QuorumUnavailable, VersionUnrecoverable
from bftfs.simulation.world import START_US
from bftfs.thresholds import ReadWriteThresholds
from tests.unit.read_write.harness import DEFAULT, World, mute

OLDER, ITEM = b"the older value", b"the value to be found"
GOOD, LOST, ROTTEN = "good", "lost", "rotten"


def world_with(sizes: ReadWriteThresholds, state: tuple[str, ...], down: tuple[int, ...]) -> World:
    world = World(sizes, seed=hash(down))
    alice = world.client("alice")
    world.placed(alice, OLDER, range(sizes.N), time_us=START_US)
    timestamp = world.placed(alice, ITEM, range(sizes.N), time_us=START_US + 1)
    for node, condition in zip(world.nodes, state, strict=True):
        if condition is LOST:
            node.lose(timestamp)
        elif condition is ROTTEN:
            node.rot(timestamp)
        if node.number in down:
            node.behaviour = mute
    return world


def check(sizes: ReadWriteThresholds, state: tuple[str, ...], down: tuple[int, ...]) -> None:
    world = world_with(sizes, state, down)
    up = [node for node in world.nodes if node.number not in down]
    good = [node for node in up if state[node.number] is GOOD]
    bob = world.client("bob", patience_total_us=2 * limits.SECOND_US)
    if len(good) >= sizes.m:
        version = bob.read()
        assert version.item == ITEM
        world.settle()
        hosting = [node for node in up if node.hosts(version.timestamp)]
        assert len(hosting) >= sizes.responses or len(hosting) >= sizes.complete
        assert world.client("carol").read() == version
        return
    # Too little is left: never a wrong value. Falling back to the older version is right where the
    # newer one looks as if it had never been completed.
    try:
        version = bob.read()
    except (VersionUnrecoverable, QuorumUnavailable):
        return
    assert version.item == OLDER


@pytest.mark.parametrize("down", [(), (0,), (2,), (5,)])
@pytest.mark.parametrize("damage", [LOST, ROTTEN])
def test_every_pattern_of_one_kind_in_the_default_cluster(
    damage: str, down: tuple[int, ...]
) -> None:
    for state in product((GOOD, damage), repeat=DEFAULT.N):
        check(DEFAULT, state, down)


@pytest.mark.parametrize("down", [(), *((node,) for node in range(5))])
def test_every_mixed_pattern_in_the_smallest_cluster(down: tuple[int, ...]) -> None:
    sizes = ReadWriteThresholds.smallest(t=1, b=1)
    for state in product((GOOD, LOST, ROTTEN), repeat=sizes.N):
        check(sizes, state, down)


@pytest.mark.parametrize("down", [(), (1,), (4,)])
def test_mixed_patterns_in_the_default_cluster(down: tuple[int, ...]) -> None:
    for good in combinations(range(DEFAULT.N), DEFAULT.m):
        for rest in product((LOST, ROTTEN), repeat=DEFAULT.N - DEFAULT.m):
            conditions = iter(rest)
            state = tuple(GOOD if node in good else next(conditions) for node in range(DEFAULT.N))
            check(DEFAULT, state, down)


@pytest.mark.parametrize(
    "sizes",
    [ReadWriteThresholds.for_nodes(7, t=2, b=0), ReadWriteThresholds.for_nodes(9, t=2, b=1)],
    ids=str,
)
def test_any_t_nodes_may_fail_in_any_way(
    sizes: ReadWriteThresholds,
) -> None:
    for faulty in combinations(range(sizes.N), sizes.t):
        for kinds in product((LOST, ROTTEN, "down"), repeat=sizes.t):
            if sum(kind is not LOST and kind != "down" for kind in kinds) > sizes.b:
                continue
            state = tuple(
                kinds[faulty.index(node)]
                if node in faulty and kinds[faulty.index(node)] != "down"
                else GOOD
                for node in range(sizes.N)
            )
            down = tuple(node for node, kind in zip(faulty, kinds, strict=True) if kind == "down")
            check(sizes, state, down)
