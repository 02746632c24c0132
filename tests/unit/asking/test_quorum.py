"""Quorum systems: thresholds as predicates, and preferred quorums."""

from __future__ import annotations

import pytest

from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.thresholds import QueryUpdateThresholds

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))


def test_thresholds_as_predicates() -> None:
    assert [QUORUMS.is_quorum(Nodes.of(range(size))) for size in (4, 5, 6)] == [False, True, True]
    assert [QUORUMS.is_repairable(Nodes.of(range(size))) for size in (2, 3)] == [False, True]
    assert [QUORUMS.includes_benign(Nodes.of(range(size))) for size in (0, 1, 2)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("placement", [0, 4, 5, 6, 255])
def test_preference_is_a_rotation(placement: int) -> None:
    order = QUORUMS.preference(placement)
    assert sorted(order) == list(range(6))
    assert order[0] == placement % 6
    assert QUORUMS.first_quorum(order) == 5
    assert QUORUMS.first_quorum(order[:3]) == 3
