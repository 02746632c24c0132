"""A node whose folder was copied back has forgotten something, and must know that it has.

The administrator's machine keeps the folder of each node as it was made; a backup keeps its store
as it was some day. What it accepted since, nothing in the folder tells; its peers have heard of it.
"""

from __future__ import annotations

import pytest

from bftfs.identifiers import NodeId
from bftfs.simulation.world import SECOND_US
from bftfs.storage import MemoryStorage
from tests.seams.test_lost_disks import CASES, LOSER, ONE, OTHER, Schedule, balances, deposit
from tests.seams.world import Tables, World

HEALED_US = 1_300 * SECOND_US  # two passes
copied = pytest.mark.parametrize("folder", ["older", "empty"])
is_open = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="it counts as whole from the first second"
)


def copy_in(folder: str, older: Tables) -> Tables:
    """The store in the folder that is copied back."""
    return older if folder == "older" else MemoryStorage()._tables


@is_open
@copied
def test_it_says_that_it_has_forgotten(folder: str) -> None:
    """A client was told that its update is durable; then the folder is copied back."""
    world = World()
    user = world.user("user")
    user.run(deposit(user, ONE, 100))
    world.run_for(5 * SECOND_US)
    older = world.copy_of(LOSER)
    user.run(deposit(user, ONE, 50))
    world.put_back({LOSER: copy_in(folder, older)})
    recoveries = world.deployment.recoveries
    world.run_until(lambda: recoveries[NodeId(LOSER)].rebuilding, within_us=60 * SECOND_US)
    world.run_for(HEALED_US)
    assert not recoveries[NodeId(LOSER)].rebuilding


def test_a_new_cluster_has_forgotten_nothing() -> None:
    """Nor has a node that was down, or has lost nothing in a crash."""
    world = World()
    user = world.user("user")
    user.run(deposit(user, ONE, 100))
    world.nodes[0].crash(down_us=SECOND_US)
    world.nodes[1].crash(down_us=100 * SECOND_US)
    user.run(deposit(user, ONE, 50))
    for _ in range(60):
        world.run_for(5 * SECOND_US)
        assert not any(each.rebuilding for each in world.deployment.recoveries.values())


@is_open
@copied
@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_it_does_not_bring_back_what_was_barred(t: int, b: int, liars: int, folder: str) -> None:
    """As with a lost disk: a barrier is forgotten, and what it ended is accepted again."""
    schedule = Schedule(t, b, (ONE, OTHER))
    world = schedule.world
    older = world.copy_of(LOSER)
    schedule.update_partially(within=True)
    schedule.bar()
    world.put_back({LOSER: copy_in(folder, older)})
    world.run_for(40 * SECOND_US)  # a pass of healing
    schedule.update_further()
    schedule.lie(liars)
    user = schedule.neighbour("user of the first account", liars)
    balances(user, ONE)
    user.run(deposit(user, ONE, 7))
    schedule.copy()
    one, other = balances(world.user("reader"), ONE, OTHER)
    assert one + other in (207, 208), "all that was moved is still there"
