"""The constraint tables of both protocols, exhaustively over small systems.

The inequalities are written out a second time here, from the source, as the judge of the code.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest

from bftfs.errors import ImpossibleThresholds
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

# Label in the message -> whether the inequality holds. [PASIS §3.4.4]
READ_WRITE = {
    "0 <= b <= t": lambda N, t, b, QC, m: 0 <= b <= t,
    "(3.1)": lambda N, t, b, QC, m: N - t - b >= QC,
    "(3.4)": lambda N, t, b, QC, m: b + t < QC,
    "(3.5)": lambda N, t, b, QC, m: 1 <= m <= QC - t,
}

FAULTS = [(t, b) for t in range(5) for b in range(t + 1)]

# [Q/U §4.3.3]
QUERY_UPDATE = {
    "0 <= b <= t": lambda n, t, b, q, r: 0 <= b <= t,
    "(4.2)": lambda n, t, b, q, r: q + t <= n,
    "(4.3)": lambda n, t, b, q, r: 2 * q - b - n >= r,
    "(4.4)": lambda n, t, b, q, r: q + r - n > b,
}


@pytest.mark.parametrize("N", range(1, 10))
def test_read_write_sizes_are_those_of_the_inequalities(N: int) -> None:
    accepted = 0
    for t, b, QC, m in product(range(-1, 5), range(-1, 5), range(N + 2), range(N + 2)):
        broken = [label for label, holds in READ_WRITE.items() if not holds(N, t, b, QC, m)]
        if not broken:
            sizes = ReadWriteThresholds(N=N, t=t, b=b, QC=QC, m=m)
            assert sizes.repairable <= sizes.first_asked <= sizes.responses
            accepted += 1
            continue
        with pytest.raises(ImpossibleThresholds) as refusal:
            ReadWriteThresholds(N=N, t=t, b=b, QC=QC, m=m)
        assert any(label in refusal.value.inequality for label in broken)
    assert accepted > 0


@pytest.mark.parametrize("n", range(1, 11))
def test_query_update_sizes_are_those_of_the_inequalities(n: int) -> None:
    accepted = 0
    for t, b, q, r in product(range(-1, 4), range(-1, 4), range(n + 2), range(-1, n + 2)):
        broken = [label for label, holds in QUERY_UPDATE.items() if not holds(n, t, b, q, r)]
        if not broken:
            QueryUpdateThresholds(n=n, t=t, b=b, q=q, r=r)
            accepted += 1
            continue
        with pytest.raises(ImpossibleThresholds) as refusal:
            QueryUpdateThresholds(n=n, t=t, b=b, q=q, r=r)
        assert any(label in refusal.value.inequality for label in broken)
    assert accepted > 0


@pytest.mark.parametrize(
    ("sizes", "complete", "repairable"),
    [
        # The table of protocols.md 1.2: N, QC, m, complete, repairable from.
        (ReadWriteThresholds(N=5, t=1, b=1, QC=3, m=2), 4, 2),
        (ReadWriteThresholds(N=6, t=1, b=1, QC=4, m=3), 5, 3),
        (ReadWriteThresholds(N=9, t=2, b=2, QC=5, m=3), 7, 3),
        (ReadWriteThresholds(N=3 * 3 + 2, t=3, b=1, QC=2 * 3 + 1, m=3 + 1), 2 * 3 + 2, 3 + 1),
    ],
)
def test_the_table_of_sizes(sizes: ReadWriteThresholds, complete: int, repairable: int) -> None:
    assert (sizes.complete, sizes.repairable) == (complete, repairable)
    assert sizes.first_asked == complete


@pytest.mark.parametrize(("t", "b"), FAULTS)
def test_the_smallest_systems(t: int, b: int) -> None:
    smallest = ReadWriteThresholds.smallest(t=t, b=b)
    assert (smallest.N, smallest.QC, smallest.m) == (2 * t + 2 * b + 1, t + b + 1, b + 1)
    for QC, m in product(range(smallest.N + 1), repeat=2):
        with pytest.raises(ImpossibleThresholds):
            ReadWriteThresholds(N=smallest.N - 1, t=t, b=b, QC=QC, m=m)
    quorums = QueryUpdateThresholds.smallest(t=t, b=b)
    assert (quorums.n, quorums.q, quorums.r) == (3 * t + 2 * b + 1, 2 * t + 2 * b + 1, t + b + 1)
    for q, r in product(range(quorums.n + 1), repeat=2):
        with pytest.raises(ImpossibleThresholds):
            QueryUpdateThresholds(n=quorums.n - 1, t=t, b=b, q=q, r=r)


def test_a_cluster_of_any_sufficient_size_has_both_systems() -> None:
    for t, b in FAULTS:
        for n in range(2 * t + 2 * b + 1, 20):
            blocks = ReadWriteThresholds.for_nodes(n, t=t, b=b)
            assert (blocks.QC, blocks.m) == (n - t - b, n - 2 * t - b)
            assert blocks.first_asked == blocks.responses == n - t
            if n > 3 * t + 2 * b:
                assert QueryUpdateThresholds.for_nodes(n, t=t, b=b).q == n - t
            else:
                with pytest.raises(ImpossibleThresholds, match="3t"):
                    QueryUpdateThresholds.for_nodes(n, t=t, b=b)
        with pytest.raises(ImpossibleThresholds, match="2t"):
            ReadWriteThresholds.for_nodes(2 * t + 2 * b, t=t, b=b)


def test_the_default_cluster() -> None:
    assert ReadWriteThresholds.for_nodes(6, t=1, b=1) == ReadWriteThresholds(
        N=6, t=1, b=1, QC=4, m=3
    )
    assert QueryUpdateThresholds.for_nodes(6, t=1, b=1) == QueryUpdateThresholds(
        n=6, t=1, b=1, q=5, r=3
    )


def test_quorum_intersections_by_enumeration() -> None:
    """(4.3) and (4.4) as they are meant: over all quorums, repairable sets and liars."""
    sizes = QueryUpdateThresholds.smallest(t=1, b=1)
    servers = range(sizes.n)
    quorums = [set(quorum) for quorum in combinations(servers, sizes.q)]
    liars = [set(pair) for pair in combinations(servers, sizes.b)]
    for one, other in product(quorums, repeat=2):
        assert all(len((one & other) - lying) >= sizes.r for lying in liars)
    for quorum in quorums:
        for repairable in map(set, combinations(servers, sizes.r)):
            assert all((quorum & repairable) - lying for lying in liars)


def test_first_asked_nodes_meet_every_complete_write() -> None:
    """And QC + b nodes alone do not, in a system that the source never has."""
    sizes = ReadWriteThresholds(N=8, t=1, b=1, QC=3, m=1)
    complete_writes = [set(hosts) for hosts in combinations(range(sizes.N), sizes.QC)]
    asked = [set(nodes) for nodes in combinations(range(sizes.N), sizes.first_asked)]
    assert all(nodes & hosts for nodes in asked for hosts in complete_writes)
    assert not all(
        set(nodes) & hosts
        for nodes in combinations(range(sizes.N), sizes.complete)
        for hosts in complete_writes
    )


def test_refusals_name_the_inequality_and_the_values() -> None:
    with pytest.raises(ImpossibleThresholds) as refusal:
        ReadWriteThresholds(N=6, t=1, b=1, QC=5, m=3)
    assert str(refusal.value) == (
        "impossible configuration: QC <= N - t - b (3.1) does not hold for QC=5, N=6, t=1, b=1"
    )
    with pytest.raises(ImpossibleThresholds, match="GF"):
        ReadWriteThresholds(N=257, t=1, b=1, QC=255, m=1)


def _reports_suffice(thresholds: ReadWriteThresholds, reports: int) -> bool:
    """Whether the (b + 1)-th largest of any so many is that of a complete write, or later."""
    nodes = range(thresholds.N)
    return all(
        sum(node in hosts and node not in liars for node in reporting) > thresholds.b
        for liars in combinations(nodes, thresholds.b)
        # [PASIS §3.4.4] A write is complete once QC benign nodes host it.
        for hosts in combinations([node for node in nodes if node not in liars], thresholds.QC)
        for reporting in combinations(nodes, reports)
    )


@pytest.mark.parametrize(
    "thresholds",
    [
        ReadWriteThresholds(N=6, t=1, b=1, QC=4, m=3),
        ReadWriteThresholds.smallest(t=1, b=1),
        ReadWriteThresholds.smallest(t=2, b=1),
        ReadWriteThresholds(N=7, t=1, b=0, QC=4, m=3),
    ],
    ids=str,
)
def test_reports_of_the_time_are_as_many_as_are_needed(thresholds: ReadWriteThresholds) -> None:
    assert thresholds.times <= thresholds.responses
    assert _reports_suffice(thresholds, thresholds.times)
    assert not _reports_suffice(thresholds, thresholds.times - 1)
