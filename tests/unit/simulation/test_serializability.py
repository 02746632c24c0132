"""The checker of strict serializability accepts what is serial and finds what is not."""

from __future__ import annotations

from math import inf
from typing import Any

from bftfs.simulation.checkers.serializability import ObjectEntry, check_operations


def update(
    version: Any, invoked: float, responded: float = inf, *, answer: Any = None, by: int = 1
) -> ObjectEntry:
    versions = version if isinstance(version, dict) else {"x": version}
    return ObjectEntry(
        "c", "increment", (), by, True, invoked, responded, answer, versions=versions
    )


def query(version: Any, invoked: float, responded: float, *, answer: Any = None) -> ObjectEntry:
    versions = version if isinstance(version, dict) else {"x": version}
    return ObjectEntry("c", "fetch", (), None, False, invoked, responded, answer, versions=versions)


class Counter:
    """The reference model of one counter."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, operation: ObjectEntry) -> int:
        if operation.update:
            self.value += operation.arguments
        return self.value


def test_a_serial_history_with_the_right_answers_passes() -> None:
    history = [
        update(1, 0, 1, answer=1),
        query(1, 2, 3, answer=1),
        update(2, 2.5, 4, answer=2),
        query(1, 2.6, 3.5, answer=1),
        query(2, 5, 6, answer=2),
    ]
    assert check_operations(history, model=Counter()) == []


def test_unlinked_objects_may_order_versions_against_time() -> None:
    history = [update({"x": 1000}, 0, 1), update({"y": 500}, 2, 3)]
    assert check_operations(history) == []


def test_a_stale_query_is_found() -> None:
    assert check_operations([update(1, 0, 1), update(2, 2, 3), query(1, 4, 5)])


def test_a_query_from_the_future_is_found() -> None:
    assert check_operations([query(1, 0, 1), update(1, 2, 3)])


def test_an_update_that_went_back_in_time_is_found() -> None:
    assert check_operations([update(2, 0, 1), update(1, 2, 3)])


def test_two_updates_of_one_version_are_found() -> None:
    assert check_operations([update(1, 0, 3), update(1, 1, 2)])


def test_half_of_a_multi_object_update_is_found() -> None:
    both = update({"x": 1, "y": 1}, 0, 1)
    assert check_operations([both, query({"x": 1, "y": 0}, 0.5, 2)])
    assert check_operations([both, query({"x": 0, "y": 0}, 0.5, 2)]) == []


def test_a_write_skew_through_two_objects_is_found() -> None:
    history = [
        query({"x": 0}, 0, 1),
        update({"y": 1}, 2, 3),
        query({"y": 0}, 4, 5),
    ]
    assert check_operations(history)


def test_a_wrong_answer_is_found_by_the_model() -> None:
    history = [update(1, 0, 1, answer=1), update(2, 2, 3, answer=1)]
    assert check_operations(history) == []
    assert check_operations(history, model=Counter())


def test_a_version_whose_maker_never_ended_orders_its_readers() -> None:
    assert check_operations([query(5, 0, 1), query(0, 2, 3)])
    assert check_operations([query(0, 0, 1), query(5, 2, 3)]) == []
