"""When a server that rebuilds waits for others to decide about a copy, and when it need not."""

import pytest

from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.identifiers import NodeId, ObjectKind, object_id
from bftfs.query_update.history import ZERO, CulledObjectHistorySet, Hosted, parse_history
from bftfs.server.undecided import is_undecided
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import at, barrier, copy, history, method

NAME = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
BASE = history(method(10))
LEFT = history(method(10), method(20, 10))
BARRED = history(method(10), barrier(30, 20))
COPIED = history(method(10), barrier(30, 20), copy(40, 10))
ME = NodeId(0)
SIZES = [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 1), (3, 2)]


def seen(*histories: bytes) -> CulledObjectHistorySet:
    """Servers 1, 2 and so on report these."""
    by_history: dict[bytes, list[int]] = {}
    for node, each in enumerate(histories, 1):
        by_history.setdefault(each, []).append(node)
    return CulledObjectHistorySet(
        NAME, tuple(Hosted(parse_history(each), Nodes.of(on)) for each, on in by_history.items())
    )


def test_a_copy_at_as_many_as_one_liar_makes_repairable_is_waited_for() -> None:
    quorums = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))
    two = seen(COPIED, COPIED, BARRED, BARRED, LEFT)
    assert is_undecided(two, quorums, ME, ZERO)
    assert is_undecided(two, quorums, ME, at(20))
    assert not is_undecided(two, quorums, ME, at(40)), "it has the copy itself"
    assert not is_undecided(seen(COPIED, BARRED, BARRED, BARRED, LEFT), quorums, ME, ZERO)
    assert is_undecided(seen(COPIED, BARRED, BARRED, LEFT), quorums, ME, ZERO), "one is unheard"
    assert not is_undecided(seen(COPIED, COPIED, COPIED, BARRED, LEFT), quorums, ME, ZERO)
    assert not is_undecided(seen(*[BARRED] * 5), quorums, ME, ZERO)


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_those_that_may_fail_beside_it_keep_no_object_waiting(t: int, b: int) -> None:
    """Some show a copy that nobody else has, and some say nothing."""
    sizes = QueryUpdateThresholds.smallest(t=t, b=b)
    quorums = ThresholdQuorums(sizes)
    for liars in range(min(b, t - 1) + 1):
        for silent in range(t - liars):
            told = [COPIED] * liars + [BASE] * (sizes.n - 1 - liars - silent)
            assert not is_undecided(seen(*told), quorums, ME, ZERO)
