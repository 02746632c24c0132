"""The checker of close-to-open agrees with its definition, and finds what is wrong."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.simulation.checkers.registers import RegisterOperation, check_register, check_regular


def write(value: int, invoked: float, responded: float = inf) -> RegisterOperation:
    return RegisterOperation("w", "write", value, invoked, responded)


def read(value: int | None, invoked: float, responded: float) -> RegisterOperation:
    return RegisterOperation("r", "read", value, invoked, responded)


def by_definition(operations: list[RegisterOperation]) -> bool:
    """Every read gives a value that nothing had overwritten for certain when it began."""
    writes = {o.value: o for o in operations if o.kind == "write"}
    writes[None] = RegisterOperation("", "write", None, -inf, -inf)
    return all(
        read.value in writes
        and writes[read.value].invoked <= read.responded
        and not any(
            writes[read.value].responded < other.invoked and other.responded < read.invoked
            for other in writes.values()
        )
        for read in operations
        if read.kind == "read" and read.responded < inf
    )


def test_a_read_during_a_write_may_give_either_value() -> None:
    history = [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)]
    assert check_regular(history) == []
    assert check_register(history)


def test_a_read_of_an_overwritten_value_is_found() -> None:
    assert check_regular([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)])


def test_the_initial_value_after_a_write_is_found() -> None:
    assert check_regular([write(1, 0, 1), read(None, 2, 3)])


def test_a_value_that_nobody_wrote_is_found() -> None:
    assert check_regular([read(7, 0, 1)])


def test_a_value_from_the_future_is_found() -> None:
    assert check_regular([read(1, 0, 1), write(1, 2, 3)])


def test_a_write_that_never_ended_overwrites_nothing_for_certain() -> None:
    assert check_regular([write(1, 0, 1), write(2, 2), read(2, 3, 4), read(1, 5, 6)]) == []


@st.composite
def histories(draw: st.DrawFn) -> list[RegisterOperation]:
    history = []
    for value in range(1, draw(st.integers(1, 4)) + 1):
        invoked = draw(st.integers(0, 12))
        length = draw(st.integers(1, 6))
        ends = draw(st.booleans())
        history.append(write(value, invoked, invoked + length if ends else inf))
    for _ in range(draw(st.integers(0, 3))):
        invoked = draw(st.integers(0, 12))
        value = draw(st.one_of(st.none(), st.integers(1, 4)))
        history.append(read(value, invoked, invoked + draw(st.integers(1, 6))))
    return history


@settings(max_examples=400, deadline=None)
@given(histories())
def test_the_checker_agrees_with_the_definition(history: list[RegisterOperation]) -> None:
    assert (check_regular(history) == []) == by_definition(history)


@settings(max_examples=200, deadline=None)
@given(histories())
def test_whatever_is_linearizable_is_regular(history: list[RegisterOperation]) -> None:
    if not check_register(history):
        assert check_regular(history) == []
