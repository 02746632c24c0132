"""What a copy copies, and what decides candidates of several objects. [Q/U §4.3.7]"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from bftfs.asking.quorum import ThresholdQuorums
from bftfs.identifiers import ObjectId
from bftfs.query_update.classification import Evidence, Undecided
from bftfs.query_update.history import INITIAL, ZERO, Candidate
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import A, B, at, barrier, copy, history, method, seen

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))  # n=6, q=5, r=3


def behind(*groups: tuple[int, tuple[Candidate, ...]], bar: int = 9, initial: bool = True) -> Any:
    """Histories of five servers, each ending with the barrier at `bar`."""
    return [
        history(*candidates, barrier(bar), initial=initial)
        for count, candidates in groups
        for _ in range(count)
    ]


def evidence(
    barred: dict[ObjectId, list[bytes]],
    others: dict[ObjectId, list[bytes]] | None = None,
    facts: dict[bytes, bool] | None = None,
) -> Evidence:
    return Evidence(
        {name: seen(name, *histories) for name, histories in barred.items()},
        {name: seen(name, *histories) for name, histories in (others or {}).items()},
        QUORUMS,
        facts or {},  # type: ignore[arg-type]
    )


def test_of_one_object_the_latest_that_is_repairable_is_copied() -> None:
    assert evidence({A: behind((2, (method(1), method(2, 1))), (3, (method(1),)))}).settle() == {
        A: at(1)
    }
    assert evidence({A: behind((3, (method(1), method(2, 1))), (2, (method(1),)))}).settle() == {
        A: at(2)
    }
    assert evidence({A: behind((2, (method(1),)), (3, ()))}).settle() == {A: ZERO}


def test_histories_of_different_moments_decide_nothing() -> None:
    histories = [
        history(method(time), method(time + 1, time), barrier(20), initial=False)
        for time in (1, 3, 5, 7, 9)
    ]
    assert evidence({A: histories}).settle() == Undecided(INITIAL, (A,))


M = method(2, 1, A, B)
BELOW = method(1)


def test_what_is_at_all_of_its_objects_is_copied_at_all() -> None:
    both = behind((3, (BELOW, M)), (2, (BELOW,)))
    assert evidence({A: both, B: both}).settle() == {A: at(2), B: at(2)}


def test_an_object_that_was_not_looked_at_leaves_it_undecided() -> None:
    both = behind((3, (BELOW, M)), (2, (BELOW,)))
    assert evidence({A: both}).settle() == Undecided(M, (B,))


def test_an_object_without_a_barrier_leaves_it_undecided() -> None:
    open_b = [history(BELOW, M)] * 3 + [history(BELOW)] * 2
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: open_b}).settle()
    assert found == Undecided(M, (B,))


def test_complete_at_one_object_is_established_at_all() -> None:
    complete = [history(BELOW, M)] * 5
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: complete}).settle()
    assert found == {A: at(2)}


def test_incomplete_below_a_barrier_is_dead_everywhere() -> None:
    found = evidence(
        {
            A: behind((3, (BELOW, M)), (2, (BELOW,))),
            B: behind((2, (BELOW, M)), (3, (BELOW,))),
        }
    ).settle()
    assert found == {A: at(1), B: at(1)}


def test_a_barrier_older_than_the_candidate_does_not_decide() -> None:
    late = method(12, 1, A, B)
    found = evidence(
        {
            A: behind((3, (BELOW, late)), (2, (BELOW,)), bar=20),
            B: behind((5, (BELOW,)), bar=9),  # histories from before the candidate was made
        }
    ).settle()
    assert found == Undecided(late, (B,))


def test_established_if_a_method_was_built_on_it_elsewhere() -> None:
    onward = [history(M, method(3, 2))] * 3 + [history(BELOW)] * 2
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: onward}).settle()
    assert found == {A: at(2)}


def test_dead_if_something_later_elsewhere_was_not_built_on_it() -> None:
    past = [history(BELOW, copy(3, 1))] * 3 + [history(BELOW, M)] * 2
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: past}).settle()
    assert found == {A: at(1)}


def test_what_r_minus_one_servers_say_decides_nothing() -> None:
    past = [history(BELOW, copy(3, 1))] * 2 + [history(BELOW, M)] * 3
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: past}).settle()
    assert found == Undecided(M, (B,))


def test_chains_are_followed_as_far_as_the_histories_reach() -> None:
    chain = [history(M, method(3, 2), method(4, 3))] * 3 + [history(BELOW)] * 2
    assert evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: chain}).settle() == {A: at(2)}
    pruned = [history(method(5, 4), method(6, 5))] * 3 + [history(BELOW)] * 2
    found = evidence({A: behind((3, (BELOW, M)), (2, (BELOW,)))}, {B: pruned}).settle()
    assert found == Undecided(M, ())


UNKNOWN_THERE = [history(method(5, 4), method(6, 5))] * 5


def test_what_can_be_at_no_quorum_is_dead_though_it_is_repairable() -> None:
    """All were heard: three have it, and the others have accepted something later."""
    every = behind((3, (BELOW, M)), (3, (BELOW,)))
    assert evidence({A: every}, {B: UNKNOWN_THERE}).settle() == {A: at(1)}


def test_who_was_not_heard_or_may_accept_it_yet_leaves_it_undecided() -> None:
    but_one = behind((3, (BELOW, M)), (2, (BELOW,)))
    assert evidence({A: but_one}, {B: UNKNOWN_THERE}).settle() == Undecided(M, ())
    late = [*but_one, history(BELOW)]
    assert evidence({A: late}, {B: UNKNOWN_THERE}).settle() == Undecided(M, ())


def taken_for_dead() -> list[Any]:
    """All that may be reported of an established M, with one liar, of which it is said: dead."""
    found = []
    servers = range(QUORUMS.n)
    for liar, heard, having in product(
        (None, *servers),
        (combination for size in (5, 6) for combination in combinations(servers, size)),
        combinations(servers, QUORUMS.q),
    ):
        with_it, without = history(BELOW, M, barrier(9)), history(BELOW, barrier(9))
        reported = [with_it if each in having and each != liar else without for each in heard]
        if evidence({A: reported}, {B: UNKNOWN_THERE}).settle() == {A: at(1)}:
            found.append((liar, heard, having))
    return found


def test_what_is_established_is_never_taken_for_dead() -> None:
    assert taken_for_dead() == []


def test_must_fail_where_nobody_is_supposed_to_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThresholdQuorums, "may_be_quorum", ThresholdQuorums.is_quorum)
    assert taken_for_dead()


@pytest.mark.parametrize(("established", "copied"), [(True, 2), (False, 1)])
def test_statements_of_servers_decide(established: bool, copied: int) -> None:
    both = behind((3, (BELOW, M)), (2, (BELOW,)))
    found = evidence({A: both}, facts={at(2): established}).settle()
    assert found == {A: at(copied)}


def test_a_copy_over_both_objects_that_only_one_shows_is_dead() -> None:
    again = copy(4, 2, A, B)
    found = evidence(
        {
            A: behind((5, (BELOW, M))),
            B: behind((3, (BELOW, M, again)), (2, (BELOW, M))),
        }
    ).settle()
    assert found == {A: at(2), B: at(2)}


def test_a_copy_that_skips_an_object_knew_it_established() -> None:
    alone = copy(4, 2)
    found = evidence(
        {A: behind((3, (BELOW, M)), (2, (BELOW,)))},
        {B: [history(BELOW, M, alone)] * 3 + [history(BELOW, M)] * 2},
    ).settle()
    assert found == {A: at(2)}


def test_below_a_dead_method_is_what_it_was_conditioned_on() -> None:
    # ⟨3,2⟩ of one object is repairable too, but a later potential candidate was not built on it.
    other = method(3, 1)
    dead = method(4, 1, A, B)
    found = evidence(
        {A: behind((3, (BELOW, other, dead)), (2, (BELOW,)))}, facts={at(4): False}
    ).settle()
    assert found == {A: at(1)}


def test_a_copy_is_settled_over_objects_that_agree_or_not_at_all() -> None:
    # B is settled at something else although M is at both: nothing must be copied in parts.
    later = method(3, 2)
    found = evidence(
        {
            A: behind((3, (BELOW, M)), (2, (BELOW,))),
            B: behind((3, (M, later)), (2, (BELOW,)), initial=False),
        }
    ).settle()
    assert found == {A: at(2), B: at(3)}  # M is established: a method was built on it
