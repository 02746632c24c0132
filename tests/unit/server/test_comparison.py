"""What a node believes of its peers' descriptions."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bftfs import cluster
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.conversation import Pause
from bftfs.envelope import DescriptionReply, HealthReply
from bftfs.identifiers import NodeId
from bftfs.server import comparison
from bftfs.server.comparison import Comparison, told_by_a_correct_one, with_a_correct_one

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


class Known:
    """What a node knows of descriptions; the serial of one that is offered is its first byte."""

    def __init__(self) -> None:
        self.serial = 2
        self.read: set[bytes] = set()
        self.compared: list[int] = []
        self.offered: list[tuple[int, bytes]] = []

    def offer(self, encoded: bytes, signature: bytes, *, by: NodeId) -> None:
        self.offered.append((by, signature))
        if signature == b"signed":
            self.serial = max(self.serial, encoded[0])

    def lacks(self, digest: bytes) -> bool:
        return digest not in self.read

    def compare(self, peers_serial: int) -> None:
        self.compared.append(peers_serial)


def test_a_liar_that_says_it_twice_is_one_liar() -> None:
    assert told_by_a_correct_one([["x", "x"], ["y"], ["y", "z"]], b=1) == ["y"]
    assert told_by_a_correct_one([["x", "x"], ["y"]], b=0) == ["x", "y"]
    assert told_by_a_correct_one([], b=0) == []


def test_a_node_asks_the_others_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One liar claims much and has nothing; who has a later description is asked for it, once."""
    rounds: list[dict[int, HealthReply]] = [
        {1: report(2), 2: report(1)},
        {},
        {4: report(9), 5: report(3), 1: report(3)},
        {4: report(9), 5: report(3), 1: report(3)},
    ]
    asked: list[tuple[int, ...]] = []
    wanted: list[int] = []

    async def reports(_peers: Peers, nodes: tuple[int, ...]) -> Any:
        asked.append(nodes)
        return rounds.pop(0)

    async def ask_all(_peers: Peers, requests: Any, _judge: Any, **_: Any) -> Any:
        [node] = requests
        wanted.append(node)
        return {node: DescriptionReply(b"\x03", b"forged" if node == 4 else b"signed")}

    monkeypatch.setattr(comparison, "health_reports", reports)
    monkeypatch.setattr(comparison, "ask_all", ask_all)
    peers = Peers(ThresholdQuorums(DESCRIPTION.query_update))
    known = Known()
    work: Any = Comparison(NodeId(0), DESCRIPTION, peers, known).run(None)  # type: ignore[arg-type]
    assert isinstance(work.send(None), Pause)
    assert not asked
    while rounds:
        assert isinstance(work.send(None), Pause)
    work.close()
    assert asked == [(1, 2, 3, 4, 5)] * 4
    assert known.compared == [1, 0, 3, 3]
    assert wanted == [4, 5, 4]
    assert known.offered == [(4, b"forged"), (5, b"signed"), (4, b"forged")]
