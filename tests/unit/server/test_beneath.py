"""What a server that rebuilds takes over before the latest candidate of an object."""

from __future__ import annotations

import pytest

from bftfs.asking.quorum import ThresholdQuorums
from bftfs.query_update.history import Candidate
from bftfs.server.beneath import Beneath, beneath_it, together
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import A, B, C, barrier, copy, history, method, seen

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))  # n=6, q=5, r=3
BASE, M = method(1), method(2, 1)
COPY, AGAIN = copy(4, 2), copy(6, 4)


def under(candidate: Candidate, *groups: tuple[int, tuple[Candidate, ...]]) -> Beneath | None:
    """What is beneath it, if so many servers report this, and so many that."""
    told = [history(*candidates) for count, candidates in groups for _ in range(count)]
    return beneath_it(seen(A, *told), QUORUMS, candidate)


def test_a_method_is_made_on_what_is_established() -> None:
    assert under(M, (3, (BASE, M)), (2, (BASE,))) == Beneath(BASE)
    assert under(M, (2, (BASE, M)), (1, (M,)), (2, ())) == Beneath(BASE), "b + 1 say so"
    first = method(1)
    assert under(first, (3, (first,))) == Beneath()


def test_what_a_benign_server_need_not_have_said_is_not_believed() -> None:
    assert under(M, (1, (BASE, M)), (3, (M,))) == Beneath(), "those that pruned it know M"


def test_a_copy_may_copy_what_is_not_established() -> None:
    bar = barrier(3, 2)
    assert under(COPY, (3, (BASE, M, bar, COPY)), (2, (BASE, bar))) == Beneath(BASE, (M,))
    twice = (BASE, M, COPY, barrier(5, 4), AGAIN)
    assert under(AGAIN, (3, twice), (2, (BASE,))) == Beneath(BASE, (M, COPY))


def test_a_copy_of_what_is_established() -> None:
    assert under(copy(4, 1), (3, (BASE, barrier(3, 1), copy(4, 1)))) == Beneath(None, (BASE,))
    assert under(copy(4), (3, (copy(4),))) == Beneath()


def test_what_r_do_not_have_is_passed() -> None:
    assert under(
        AGAIN, (2, (BASE, M, COPY, AGAIN)), (1, (BASE, M, AGAIN)), (2, (BASE,))
    ) == Beneath(BASE, (M,))


def test_what_nobody_knows_is_waited_for() -> None:
    assert under(COPY, (1, (BASE, M, COPY)), (2, (BASE, COPY)), (2, (BASE,))) is None


@pytest.mark.parametrize("elsewhere", [(), (method(2, 1, A, B),)])
def test_an_operation_is_taken_over_at_all_objects_or_at_none(
    elsewhere: tuple[Candidate, ...],
) -> None:
    joint = method(2, 1, A, B)
    found = {A: Beneath(BASE, (joint,)), B: Beneath(BASE, elsewhere)}
    assert together(found) == {A: Beneath(BASE, elsewhere), B: Beneath(BASE, elsewhere)}


def test_what_is_copied_at_some_of_its_objects_is_established() -> None:
    wide = method(2, 1, A, B, C)
    found = {A: Beneath(BASE, (wide,)), B: Beneath(BASE)}
    assert together(found) == found
