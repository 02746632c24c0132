"""The register checker agrees with brute force, and finds what is wrong."""

from __future__ import annotations

from itertools import permutations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.simulation.checkers.registers import RegisterOperation, check_register


def write(value: int, invoked: float, responded: float = inf) -> RegisterOperation:
    return RegisterOperation("w", "write", value, invoked, responded)


def read(value: int | None, invoked: float, responded: float) -> RegisterOperation:
    return RegisterOperation("r", "read", value, invoked, responded)


def brute_force(operations: list[RegisterOperation]) -> bool:
    """Whether some order of the operations, respecting real time, is a register's."""
    must = [operation for operation in operations if operation.responded < inf]
    optional = [o for o in operations if o.responded == inf and o.kind == "write"]
    for mask in range(1 << len(optional)):
        chosen = must + [o for bit, o in enumerate(optional) if mask >> bit & 1]
        for order in permutations(chosen):
            if any(
                later.responded < earlier.invoked
                for position, earlier in enumerate(order)
                for later in order[position + 1 :]
            ):
                continue
            value = None
            for operation in order:
                if operation.kind == "write":
                    value = operation.value
                elif operation.value != value:
                    break
            else:
                return True
    return False


def test_a_sequential_history_is_linearizable() -> None:
    assert check_register([read(None, 0, 1), write(1, 2, 3), read(1, 4, 5)]) == []


def test_a_stale_read_is_found() -> None:
    assert check_register([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)])


def test_a_new_value_then_the_old_one_is_found() -> None:
    assert check_register([write(1, 0, 1), write(2, 2, inf), read(2, 3, 4), read(1, 5, 6)])


def test_a_value_that_nobody_wrote_is_found() -> None:
    assert check_register([read(7, 0, 1)])


def test_a_read_from_the_future_is_found() -> None:
    assert check_register([read(1, 0, 1), write(1, 2, 3)])


def test_a_write_that_never_ended_may_or_may_not_be_seen() -> None:
    assert check_register([write(1, 0), read(None, 1, 2), read(1, 3, 4)]) == []
    assert check_register([write(1, 0), read(None, 1, 2)]) == []


@st.composite
def histories(draw: st.DrawFn) -> list[RegisterOperation]:
    count = draw(st.integers(1, 5))
    times = draw(st.permutations(range(2 * count)))
    operations = []
    written = 0
    for position in range(count):
        invoked, responded = sorted(times[2 * position : 2 * position + 2])
        if draw(st.booleans()):
            written += 1
            end = inf if draw(st.integers(0, 3)) == 0 else responded
            operations.append(write(written, invoked, end))
        else:
            operations.append(read(draw(st.sampled_from([None, 1, 2, 3])), invoked, responded))
    return operations


@settings(max_examples=400, deadline=None)
@given(histories())
def test_the_checker_agrees_with_brute_force(history: list[RegisterOperation]) -> None:
    assert (check_register(history) == []) == brute_force(history)
