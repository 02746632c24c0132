"""The search for an order agrees with the exact checker of registers, and with brute force."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.simulation.checkers import models
from bftfs.simulation.checkers.models import ModelOperation, SearchExhausted, check_model
from bftfs.simulation.checkers.registers import RegisterOperation, check_register


def take(answer: bool | None, invoked: float, responded: float = inf) -> ModelOperation:
    return ModelOperation("c", "take", (), answer, invoked, responded)


def give(invoked: float, responded: float = inf) -> ModelOperation:
    return ModelOperation("c", "give", (), None, invoked, responded)


def lock(state: Hashable, operation: ModelOperation) -> Iterable[Hashable]:
    """A lock that is taken at once or not at all; giving it back always works."""
    if operation.name == "give":
        return [False]
    if operation.responded == inf:
        return [True]
    return [True] if operation.answer == (not state) else []


def check(*history: ModelOperation) -> list[str]:
    return check_model(history, initial=False, model=lock, name="lock")


def brute_force(history: list[ModelOperation]) -> bool:
    must = [each for each in history if each.responded < inf]
    optional = [each for each in history if each.responded == inf]
    for mask in range(1 << len(optional)):
        chosen = must + [o for bit, o in enumerate(optional) if mask >> bit & 1]
        for order in permutations(chosen):
            if any(
                later.responded < earlier.invoked
                for position, earlier in enumerate(order)
                for later in order[position + 1 :]
            ):
                continue
            states: list[Hashable] = [False]
            for each in order:
                states = [after for state in states for after in lock(state, each)]
            if states:
                return True
    return False


def test_two_cannot_take_it() -> None:
    assert check(take(True, 0, 1), take(True, 2, 3))
    assert check(take(True, 0, 2), take(True, 1, 3))


def test_who_comes_second_is_refused() -> None:
    assert check(take(True, 0, 2), take(False, 1, 3)) == []
    assert check(take(True, 0, 1), give(2, 3), take(False, 4, 5))


def test_what_never_ended_may_have_taken_place_or_not() -> None:
    assert check(take(None, 0), take(True, 1, 2)) == []
    assert check(take(None, 0), take(False, 1, 2)) == []
    assert check(take(None, 3), take(False, 1, 2))


operations = st.builds(
    lambda name, answer, invoked, length, ends: ModelOperation(
        "c",
        name,
        (),
        answer if name == "take" and ends else None,
        invoked,
        invoked + length if ends else inf,
    ),
    st.sampled_from(["take", "take", "give"]),
    st.booleans(),
    st.integers(0, 8),
    st.integers(1, 5),
    st.integers(0, 4).map(bool),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations, max_size=5))
def test_the_search_agrees_with_brute_force(history: list[ModelOperation]) -> None:
    assert (check(*history) == []) == brute_force(history)


def register(state: Hashable, operation: ModelOperation) -> Iterable[Hashable]:
    if operation.name == "write":
        return operation.arguments
    return [state] if operation.responded == inf or operation.answer == state else []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 8), st.integers(0, 12)),
        max_size=12,
    )
)
def test_the_search_agrees_with_the_checker_of_registers(
    drawn: list[tuple[bool, int, int, int]],
) -> None:
    exact, searched = [], []
    for number, (writes, invoked, length, value) in enumerate(drawn):
        kind, what = ("write", number) if writes else ("read", value if value < 10 else None)
        exact.append(RegisterOperation("c", kind, what, invoked, invoked + length))
        searched.append(
            ModelOperation("c", kind, (what,) if writes else (), what, invoked, invoked + length)
        )
    assert (check_register(exact) == []) == (
        check_model(searched, initial=None, model=register) == []
    )


def test_a_long_history_takes_no_long_search() -> None:
    history = [
        operation
        for t in range(0, 3000, 3)
        for operation in (take(True, t, t + 1), take(False, t + 0.5, t + 1.5), give(t + 2, t + 2.5))
    ]
    assert check(*history) == []


def test_a_search_that_leads_nowhere_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "STEPS_MOST", 100)
    tangle = [take(None, 0) for _ in range(30)]
    with pytest.raises(SearchExhausted):
        check(*tangle, give(0, 1), take(True, 2, 3), take(True, 4, 5), take(True, 6, 7))
