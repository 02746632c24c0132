"""What a node believes of its peers' descriptions."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bftfs import cluster
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.conversation import Pause
from bftfs.envelope import HealthReply
from bftfs.identifiers import NodeId
from bftfs.server import comparison
from bftfs.server.comparison import Comparison, with_a_correct_one

DESCRIPTION = cluster.create(
    [f"unix:/nowhere/{number}" for number in range(6)], t=1, b=1, draw=os.urandom
).description


def report(serial: int) -> HealthReply:
    return HealthReply(1, 1, True, (), 1, 1, 1, 1, 1, 1, description_serial=serial)


@pytest.mark.parametrize(
    ("claimed", "b", "believed"),
    [
        ((), 0, 0),
        ((5,), 0, 5),
        ((5,), 1, 0),
        ((5, 9, 3), 1, 5),
        ((7, 7, 9, 9, 1), 2, 7),
    ],
)
def test_b_liars_bring_nobody_to_believe(claimed: tuple[int, ...], b: int, believed: int) -> None:
    assert with_a_correct_one(claimed, b=b) == believed


def test_a_node_asks_the_others_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    rounds = [{1: report(3), 2: report(4)}, {}, {4: report(9), 5: report(8), 1: report(8)}]
    asked: list[tuple[int, ...]] = []

    async def reports(_peers: Peers, nodes: tuple[int, ...]) -> Any:
        asked.append(nodes)
        return rounds.pop(0)

    monkeypatch.setattr(comparison, "health_reports", reports)
    peers = Peers(ThresholdQuorums(DESCRIPTION.query_update))
    work: Any = Comparison(NodeId(0), DESCRIPTION, peers, told.append).run(None)  # type: ignore[arg-type]
    assert isinstance(work.send(None), Pause)
    assert not asked
    while rounds:
        assert isinstance(work.send(None), Pause)
    work.close()
    assert asked == [(1, 2, 3, 4, 5)] * 3
    assert told == [3, 0, 8]
