"""How a server notices that its store is an older copy, and nothing else makes it think so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bftfs import limits
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import RunReply, RunRequest
from bftfs.server import known_runs, runs
from bftfs.server.known_runs import RUN_MOST, made, proof_of, run_of, stored
from bftfs.server.recovery import UNSURE
from bftfs.server.runs import Runs
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table, Write
from tests.unit.server.test_healing import Counting
from tests.unit.server.verifying import Cluster

NODE = NodeId(2)
LIAR = 5


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What servers notice: which one, and why it has forgotten something."""
    found: list[tuple[int, str]] = []
    forget = Runs._forget

    def telling(one: Runs, reason: str) -> None:
        if not one._recovery.is_lost:
            found.append((one._node, reason))
        forget(one, reason)

    monkeypatch.setattr(Runs, "_forget", telling)
    return found


def known(cluster: Cluster, maker: int = NODE) -> list[int]:
    """The latest run of a server, as each server has stored it."""
    return [run_of(proof_of(node.disk, maker)) for node in cluster.nodes]


def restart(cluster: Cluster, node: int = NODE) -> None:
    cluster.nodes[node].crash(down_us=1)
    cluster.run_for(SECOND_US)


def is_whole(cluster: Cluster, node: int = NODE) -> bool:
    return cluster.deployment.recoveries[NodeId(node)].is_whole


def lose(cluster: Cluster, lost: Callable[[Any, Any, Any], bool]) -> None:
    """From now on messages are lost, if `lost` says so."""
    send = cluster.network.send

    def losing(source: Any, target: Any, kind: Kind, number: int, message: Any, *rest: Any) -> None:
        if not lost(source, target, message):
            send(source, target, kind, number, message, *rest)

    cluster.network.send = losing  # type: ignore[method-assign]


def test_each_start_begins_a_run_that_all_hear_of(told: list[Any]) -> None:
    cluster = Cluster()
    cluster.run_for(SECOND_US)
    assert known(cluster) == [1] * 6
    for run in (2, 3):
        restart(cluster)
        assert known(cluster) == [run] * 6
    for node in cluster.nodes:
        node.crash(down_us=1)
    cluster.run_for(SECOND_US)
    assert known(cluster) == [4] * 6
    assert Counting(cluster).increment(0) == 1
    assert not told


def test_a_run_lasts_for_some_minutes(told: list[Any]) -> None:
    """So a snapshot of the whole machine, which lies where it lay, is noticed if it is older."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    snapshot = cluster.nodes[NODE].disk.copy()
    cluster.run_for(limits.RUN_EVERY_US + SECOND_US)
    assert known(cluster) == [2] * 6
    assert counting.increment(0) == 2
    cluster.deployment.put_back(NODE, snapshot, elsewhere=False)
    cluster.run_for(20 * SECOND_US)
    assert told == [(NODE, runs._OLDER)]
    assert is_whole(cluster)
    cluster.nodes[0].crash(down_us=None)
    assert Counting(cluster, "bob").fetch(0) == 2


def test_a_copy_of_a_copy_is_noticed_as_well(told: list[Any]) -> None:
    """And what a node has begun to rebuild, and was copied then, is not taken for rebuilt."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    first = cluster.nodes[NODE].disk.copy()
    restart(cluster)
    counting.increment(0)
    for copies in range(1, 4):
        cluster.deployment.put_back(NODE, first)
        cluster.run_for(20 * SECOND_US)
        assert len(told) == copies
        assert is_whole(cluster)
        second = cluster.nodes[NODE].disk.copy()
    cluster.deployment.put_back(NODE, second)
    cluster.run_for(20 * SECOND_US)
    assert len(told) == 4
    assert cluster.deployment.healers[NODE][0]._keys.lives[NODE] == 4
    cluster.nodes[0].crash(down_us=None)
    assert Counting(cluster, "bob").fetch(0) == 2


def test_it_serves_nothing_while_too_few_answer(told: list[Any]) -> None:
    cluster = Cluster()
    Counting(cluster).increment(0)
    for node in (0, 1, NODE):
        cluster.nodes[node].crash(down_us=None)
    cluster.nodes[NODE].start()
    cluster.run_for(30 * SECOND_US)
    recovery = cluster.deployment.recoveries[NODE]
    assert (recovery.is_whole, recovery.waits_for) == (False, UNSURE)
    cluster.nodes[0].start()
    cluster.run_for(5 * SECOND_US)
    assert (recovery.is_whole, recovery.waits_for) == (True, "")
    assert Counting(cluster, "bob").increment(0) == 2
    assert not told


def test_what_is_asked_meanwhile_is_answered_when_a_run_has_begun() -> None:
    """A quorum is just up; a client asks before the last of it knows where it stands."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    cluster.nodes[0].crash(down_us=None)
    cluster.nodes[NODE].crash(down_us=1)
    assert counting.increment(0) == 2
    assert is_whole(cluster)


def test_a_crash_before_others_hear_of_a_run_makes_it_forget_nothing(told: list[Any]) -> None:
    cluster = Cluster()
    cluster.run_for(SECOND_US)
    deaf = [True]

    def lost(_source: Any, target: Any, message: Any) -> bool:
        registers = isinstance(message, RunRequest) and message.proof
        return bool(registers and deaf[0] and target != ("node", 0))

    lose(cluster, lost)
    cluster.nodes[NODE].crash(down_us=1)
    cluster.run_for(SECOND_US // 2)
    assert not is_whole(cluster)
    assert known(cluster) == [2, 1, 2, 1, 1, 1]
    deaf[0] = False
    restart(cluster)
    assert known(cluster) == [3] * 6
    assert not told


def test_a_crash_before_a_run_is_durable_makes_it_forget_nothing(told: list[Any]) -> None:
    """Nobody has heard of it by then: the batch that stores it is committed first."""
    cluster = Cluster()
    cluster.run_for(SECOND_US)
    node = cluster.nodes[NODE]
    crashes = 0

    def commits(_node: NodeId, writes: Any) -> None:
        nonlocal crashes
        if crashes < 3 and any(write.key == stored(NODE, b"").key for write in writes):
            crashes += 1
            node.crash(down_us=1)

    node._on_commit = commits
    commit = node.disk.commit
    node.disk.commit = lambda: commit() if node.up else None  # type: ignore[method-assign]
    restart(cluster)
    assert crashes == 3
    assert known(cluster) == [2] * 6
    assert not told


@pytest.mark.parametrize("claimed", [0, 1, 10**6])
def test_a_liar_neither_hides_a_run_nor_invents_one(told: list[Any], claimed: int) -> None:
    """The proof is its own authenticator: nobody else can make one, only hold one back."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    folder = cluster.nodes[NODE].disk.copy()
    forged = made(cluster.deployment.keys(NodeId(LIAR)), claimed)
    lies = cluster.forge_proofs(LIAR, RunReply, forged)
    restart(cluster)
    assert lies
    assert is_whole(cluster)
    assert not told
    counting.increment(0)
    cluster.deployment.put_back(NODE, folder, elsewhere=False)
    cluster.run_for(20 * SECOND_US)
    assert told == [(NODE, runs._OLDER)]
    assert is_whole(cluster)


def test_who_has_lost_its_disk_learns_the_others_runs_again(told: list[Any]) -> None:
    """Or, after all have lost theirs in turn, nobody would notice a copy."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    folder = cluster.nodes[NODE].disk.copy()
    restart(cluster)
    for other in (0, 1, 3, 4, 5):
        cluster.lose_store(other)
        cluster.run_for(20 * SECOND_US)
        assert is_whole(cluster, other)
    assert known(cluster) == [2] * 6
    assert counting.increment(0) == 2
    cluster.deployment.put_back(NODE, folder, elsewhere=False)
    cluster.run_for(20 * SECOND_US)
    assert told == [(NODE, runs._OLDER)]


def test_two_processes_with_one_store_find_each_other_out(told: list[Any]) -> None:
    """The one that goes on hears of the other's run, with its next one, and begins a new life."""
    cluster = Cluster()
    cluster.run_for(SECOND_US)
    keys = cluster.deployment.keys(NODE)
    for node in cluster.nodes:
        if node.node != NODE:
            node.disk.apply([stored(NODE, made(keys, 2))])
            node.disk.commit()
    cluster.run_for(limits.RUN_EVERY_US + 20 * SECOND_US)
    assert told == [(NODE, runs._OLDER)]
    assert is_whole(cluster)
    assert keys.lives[NODE] == 0
    assert cluster.deployment.healers[NODE][0]._keys.lives[NODE] == 1


def test_who_has_used_up_all_runs_begins_none() -> None:
    """It was Byzantine once, with the same key: it stays silent, and everybody else goes on."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    last = made(cluster.deployment.keys(NODE), RUN_MOST)
    for node in cluster.nodes:
        node.disk.apply([stored(NODE, last)])
        node.disk.commit()
    restart(cluster)
    assert not is_whole(cluster)
    assert counting.increment(0) == 2


def test_only_later_runs_that_the_server_itself_has_begun_are_kept() -> None:
    cluster = Cluster()
    deployment = cluster.deployment
    view, mine, theirs = cluster.nodes[0].disk, deployment.keys(NodeId(0)), deployment.keys(NODE)
    cluster.run_for(SECOND_US)

    def keeps(proof: bytes) -> bool:
        return known_runs.note(view, mine, NODE, proof) == [stored(NODE, proof)]

    theirs.learn(NODE, 3)
    assert keeps(made(theirs, 2))  # of a new life, or of an earlier one
    mine.learn(NODE, 4)
    assert keeps(made(theirs, 2))
    assert not keeps(made(theirs, 1))
    assert not keeps(made(theirs, RUN_MOST + 1))
    assert not keeps(made(deployment.keys(NodeId(LIAR)), 2))
    assert not keeps(made(theirs, 2)[:-1])
    assert not keeps(b"")


def test_a_store_that_was_laid_down_lies_nowhere() -> None:
    """So the folder of a node that was stopped can be moved: a copy has all that was accepted."""
    cluster = Cluster()
    disk = cluster.nodes[NODE].disk
    disk.apply([known_runs.lies_in(b"here")])
    assert known_runs.lies_elsewhere(disk, b"there")
    assert known_runs.laid_down(disk, b"there") == []
    disk.apply(known_runs.laid_down(disk, b"here"))
    assert not known_runs.lies_elsewhere(disk, b"there")
    assert known_runs.laid_down(disk, b"there") == []


def test_what_was_compared_in_an_earlier_life_is_compared_again() -> None:
    """The walk over objects was half way when the machine failed."""
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    cluster.run_for(30 * SECOND_US)
    folder = cluster.nodes[NODE].disk.copy()
    for walk in (b"heal objects", b"heal blocks"):
        folder[Table.META][walk] = b"\1" + b"\xf0" * 16
    cluster.nodes[0].crash(down_us=None)
    counting.increment(0)
    cluster.nodes[0].start()
    cluster.run_for(SECOND_US)
    cluster.deployment.put_back(NODE, folder)
    cluster.run_for(20 * SECOND_US)
    assert is_whole(cluster)
    walked = cluster.deployment.healers[NODE][0].tally
    assert walked.compared == 1
    cluster.nodes[0].crash(down_us=None)
    assert Counting(cluster, "bob").fetch(0) == 2


def test_a_row_that_is_not_its_own_is_no_run() -> None:
    cluster = Cluster()
    cluster.run_for(SECOND_US)
    disk, keys = cluster.nodes[NODE].disk, cluster.deployment.keys(NODE)
    assert known_runs.own(disk, keys) == 1
    disk.apply([Write(Table.META, stored(NODE, b"").key, (9).to_bytes(8, "big") + bytes(104))])
    assert known_runs.own(disk, keys) == 0
