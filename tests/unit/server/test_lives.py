"""How a server begins a new life: later than any it has had, whatever liars say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from bftfs.crypto.digest import LIFE_DIGEST, LIFE_MOST, life_of
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import LifeReply, LifeRequest
from bftfs.server.known_lives import proof_of, stored
from bftfs.simulation.disk import Disk
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Write
from tests.unit.server.test_healing import Counting
from tests.unit.server.verifying import Cluster

LOSER = 2


def lives(cluster: Cluster) -> list[int]:
    """The life of the server that lost its store, as each server has stored it."""
    return [life_of(proof_of(node.disk, LOSER)) for node in cluster.nodes]


def test_each_loss_begins_a_later_life_that_all_hear_of() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    for life in range(1, 4):
        assert counting.increment(0) == life
        cluster.lose_store(LOSER)
        cluster.run_for(20 * SECOND_US)
        assert lives(cluster) == [life] * 6


def test_it_survives_restarts() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    for node in cluster.nodes:
        node.crash(down_us=1)
    cluster.run_for(SECOND_US)
    cluster.nodes[5].crash(down_us=None)
    assert Counting(cluster, "bob").increment(LOSER) == 1
    keys = cluster.deployment.healers[NodeId(0)][0]._keys
    assert keys.lives == (0, 0, 1, 0, 0, 0)


@pytest.mark.parametrize("claimed", [0, 10**6])
def test_a_liar_makes_it_neither_repeat_a_life_nor_skip_some(claimed: int) -> None:
    """The proof is its own authenticator: nobody else can make one, only hold one back."""
    cluster = Cluster()
    Counting(cluster).increment(0)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    forged = cluster.deployment.keys(NodeId(5)).make(LIFE_DIGEST, life=claimed)
    lies = cluster.forge_proofs(5, LifeReply, forged)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    assert lies
    assert not cluster.deployment.recoveries[NodeId(LOSER)].rebuilding
    assert lives(cluster) == [2] * 6


def test_it_begins_none_while_too_few_answer() -> None:
    cluster = Cluster()
    Counting(cluster).increment(0)
    for node in (0, 1):
        cluster.nodes[node].crash(down_us=None)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    assert cluster.deployment.recoveries[NodeId(LOSER)].is_lost
    cluster.nodes[0].start()
    cluster.run_for(30 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(LOSER)].is_lost


def test_who_missed_it_hears_of_it_with_the_next_request() -> None:
    """With one fault, a server that recovers needs all others; to one the news was lost."""
    cluster = Cluster()
    Counting(cluster).increment(0)
    send = cluster.network.send

    def losing(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if target != ("node", 5) or not isinstance(message, LifeRequest):
            send(source, target, kind, number, message, body)

    cluster.network.send = losing  # type: ignore[method-assign]
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    assert not cluster.deployment.recoveries[NodeId(LOSER)].rebuilding
    assert lives(cluster) == [1] * 6


def test_nobody_hears_of_a_life_that_was_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up loses the step; the server would come back in an earlier life."""
    cluster = Cluster()
    Counting(cluster).increment(0)
    disk = cluster.nodes[LOSER].disk
    is_full = True

    def apply(writes: Iterable[Write]) -> None:
        kept = [each for each in writes if not (is_full and each.key.startswith(b"life"))]
        Disk.apply(disk, kept)

    monkeypatch.setattr(disk, "apply", apply)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    assert cluster.deployment.recoveries[NodeId(LOSER)].is_lost
    assert lives(cluster) == [0] * 6
    is_full = False
    cluster.run_for(60 * SECOND_US)
    assert lives(cluster) == [1] * 6


def test_who_has_used_up_all_lives_begins_none() -> None:
    """It was Byzantine once, with the same key: it stays lost, and everybody else goes on."""
    cluster = Cluster()
    Counting(cluster).increment(0)
    last = cluster.deployment.keys(NodeId(LOSER)).make(LIFE_DIGEST, life=LIFE_MOST)
    for node in cluster.nodes:
        if node.node != LOSER:
            node.disk.apply([stored(LOSER, last)])
            node.disk.commit()
            node.crash(down_us=1)
    cluster.lose_store(LOSER)
    cluster.run_for(20 * SECOND_US)
    assert cluster.deployment.recoveries[NodeId(LOSER)].is_lost
    assert Counting(cluster, "bob").increment(0) == 2
