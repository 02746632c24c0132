"""A node whose folder was copied back has forgotten something, and must know that it has.

The administrator's machine keeps the folder of each node as it was made; a backup keeps its store
as it was some day. What it accepted since, nothing in the folder tells; its peers have heard of it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.identifiers import NodeId
from bftfs.server import runs
from bftfs.server.runs import Runs
from bftfs.simulation.disk import Tables
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from bftfs.storage import MemoryStorage
from tests.seams.test_lost_disks import (
    CASES,
    LOSER,
    ONE,
    OTHER,
    REPAIRS,
    Schedule,
    balances,
    deposit,
    read_before_late_messages,
)
from tests.seams.world import World

HEALED_US = 1_300 * SECOND_US  # two passes
copied = pytest.mark.parametrize("folder", ["older", "empty"])


def copy_in(folder: str, older: Tables) -> Tables:
    """The store in the folder that is copied back."""
    return older if folder == "older" else MemoryStorage()._tables


# --- it notices -----------------------------------------------------------------------------------


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


@copied
@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_it_does_not_bring_back_what_was_barred(t: int, b: int, liars: int, folder: str) -> None:
    """As with a lost disk: a barrier is forgotten, and what it ended is accepted again."""
    schedule = Schedule(t, b, (ONE, OTHER))
    world = schedule.world
    older = world.copy_of(LOSER)
    schedule.update_partially(within=True)
    schedule.bar()
    go_on(schedule, LOSER, copy_in(folder, older), liars)


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_nor_what_was_barred_since_it_accepted_it(t: int, b: int, liars: int) -> None:
    """The copy has the update, and not the barrier: the node keeps it, and signs it anew."""
    schedule = Schedule(t, b, (ONE, OTHER))
    schedule.update_partially(within=True)
    host = schedule.hosts[0]
    older = schedule.world.copy_of(host)
    schedule.bar()
    go_on(schedule, host, older, liars)


def go_on(schedule: Schedule, node: int, copy: Tables, liars: int) -> None:
    """The folder of a node is copied back; all that was moved is still there in the end."""
    world = schedule.world
    world.put_back({node: copy})
    world.run_for(40 * SECOND_US)  # a pass of healing
    schedule.update_further()
    schedule.lie(liars)
    user = schedule.neighbour("user of the first account", liars)
    balances(user, ONE)
    user.run(deposit(user, ONE, 7))
    schedule.copy()
    one, other = balances(world.user("reader"), ONE, OTHER)
    assert one + other in (207, 208)


def read_before_it_knows() -> int:
    """What is read of an account with 150 at first, while a node with an old folder starts.

    It hears nothing from the others yet; and the reader does not reach one that knows the update.
    """
    world = World(1, 0)
    user, reader = world.user("user"), world.user("reader")
    loser = ("node", NodeId(LOSER))
    user.run(deposit(user, ONE, 100))
    world.run_for(605 * SECOND_US)
    older = world.copy_of(LOSER)
    world.nodes[LOSER].crash(down_us=1)
    world.run_for(SECOND_US)

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if kind is Kind.REPLY:
            return bool(target == loser)
        if source[0] == target[0] == "node":
            return isinstance(message, REPAIRS)
        return bool(source == reader.host.endpoint and target == ("node", NodeId(2)))

    world.ways.hold(late)
    user.run(deposit(user, ONE, 50))
    world.put_back({LOSER: older}, elsewhere=False)
    return read_before_late_messages(world, reader)


def test_it_says_nothing_before_it_knows() -> None:
    assert read_before_it_knows() == 150


# --- each part of the rule is needed --------------------------------------------------------------


def test_must_fail_a_node_that_answers_before_a_run_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = Runs.__init__

    def hasty(one: Runs, *given: Any, **named: Any) -> None:
        begin(one, *given, **named)
        one._recovery.awaits = None

    monkeypatch.setattr(Runs, "__init__", hasty)
    assert read_before_it_knows() == 100


@pytest.mark.parametrize(("folder", "reason"), [("older", runs._COPIED), ("empty", runs._OLDER)])
def test_must_fail_a_node_that_does_not_notice(
    monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    """Neither by the place where its store lies, nor by the run that others know of."""
    forget = Runs._forget

    def unaware(one: Runs, noticed: str) -> None:
        if noticed != reason:
            forget(one, noticed)

    monkeypatch.setattr(Runs, "_forget", unaware)
    with pytest.raises(AssertionError):
        test_it_does_not_bring_back_what_was_barred(1, 0, 0, folder)
