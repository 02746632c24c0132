"""A server that moves over many versions in one step: what it costs, and what it leaves behind."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.query_update import replica
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, history_of
from bftfs.query_update.holes import Holes
from bftfs.query_update.object_type import FIRST_SERIAL, key_of
from bftfs.query_update.replica import KeyChange, Link, Replica
from bftfs.storage import MemoryStorage
from tests.unit.query_update.building import A, at
from tests.unit.query_update.test_sequence import CountingStorage, State, listed

Script = list[tuple[int, int, list[int], list[int]]]

ORDERS: dict[str, Callable[[list[int]], None]] = {
    "ascending": lambda _: None,
    "descending": lambda serials: serials.reverse(),
    "scattered": lambda serials: random.Random(1).shuffle(serials),
}


def stands_at(copy: Replica, version: LogicalTimestamp) -> None:
    """The head has moved there."""
    candidate = Candidate(version, ZERO)
    copy.report(history_of((candidate,), initial=False), b"", established=ZERO)


def filled(count: int) -> CountingStorage:
    """A list of so many entries, at the version of time 1."""
    storage = CountingStorage()
    copy = Replica(storage, A)
    state = ((key_of(serial), b"v") for serial in range(FIRST_SERIAL, FIRST_SERIAL + count))
    copy.install(at(1), state)
    stands_at(copy, at(1))
    storage.apply(copy.writes)
    return storage


def chain(changes: list[tuple[KeyChange, ...]]) -> tuple[tuple[Link, ...], LogicalTimestamp]:
    """Versions from time 2 on, one for each of `changes`, and the last of them."""
    links, before = [], at(1)
    for time, delta in enumerate(changes, 2):
        links.append(Link(at(time), before, (A,), False, delta, None, b""))
        before = at(time)
    return tuple(links), before


def cost(storage: CountingStorage, changes: list[tuple[KeyChange, ...]]) -> tuple[int, int, int]:
    """Rows read, functions called and rows written, to move over these in one step."""
    links, head = chain(changes)
    copy = Replica(storage, A)
    copy.learn(links)
    storage.rows_read = calls = 0
    written = len(copy.writes)

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        copy.move_to(head)
    finally:
        sys.setprofile(before)
    return storage.rows_read, calls, len(copy.writes) - written


@pytest.mark.parametrize("order", ORDERS)
def test_removals_in_one_step_cost_what_they_are(order: str) -> None:
    """Each costs the same, however many there are: rows read, calls, and rows written."""
    each = []
    for count in (250, 2_000):
        serials = list(range(FIRST_SERIAL + 1, FIRST_SERIAL + 1 + count))
        ORDERS[order](serials)
        removals: list[tuple[KeyChange, ...]] = [((key_of(serial), None),) for serial in serials]
        rows, calls, written = cost(filled(count + 2), removals)
        assert rows <= 3 * count
        assert written == 4 * count
        each.append(calls / count)
    assert each[1] < 1.2 * each[0] < 200


def test_what_comes_and_goes_in_one_step_costs_what_it_is() -> None:
    """No row in the store shows any of it; and the last version removes all that is left."""
    each = []
    for count in (125, 1_000):
        first = FIRST_SERIAL + 1
        changes: list[tuple[KeyChange, ...]] = [
            ((key_of(first + each), b"v"),) for each in range(count)
        ]
        changes += [((key_of(first + each), None),) for each in range(0, count, 2)]
        changes.append(tuple((key_of(first + each), None) for each in range(1, count, 2)))
        rows, calls, _ = cost(filled(1), changes)
        assert rows <= 6 * count
        each.append(calls / count)
    assert each[1] < 1.2 * each[0] < 500


class Forgetful(Holes):
    """Does not know what it has found before."""

    def left_by(self, changes: Any) -> dict[int, int]:
        self._ends.clear()
        self._starts.clear()
        return super().left_by(changes)


def test_without_what_was_found_before_it_costs_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail, or the bounds above would say nothing."""
    monkeypatch.setattr(replica, "Holes", Forgetful)
    removals: list[tuple[KeyChange, ...]] = [
        ((key_of(serial), None),) for serial in range(FIRST_SERIAL + 1, FIRST_SERIAL + 251)
    ]
    rows, _, _ = cost(filled(252), removals)
    assert rows > 100 * 250


# --- what is left behind --------------------------------------------------------------------------

positions = st.lists(st.integers(0, 40), max_size=4)
steps = st.lists(
    st.tuples(st.sampled_from((0, 0, 0, 0, 1, 3)), st.integers(0, 3), positions, positions),
    min_size=1,
    max_size=30,
)


def tree(
    script: Script,
) -> tuple[tuple[Link, ...], dict[LogicalTimestamp, tuple[State, int, LogicalTimestamp]]]:
    """Versions that build on each other, and the list at each: its state, its next serial and the
    version before. Steps as in `test_sequence`."""
    states: dict[LogicalTimestamp, tuple[State, int, LogicalTimestamp]]
    states = {ZERO: ({}, FIRST_SERIAL, ZERO)}
    links = []
    for time, (back, appearing, leaving, overwritten) in enumerate(script, 1):
        on = sorted(states)[-1 - back % len(states)]
        state, following, _ = states[on]
        there = sorted(state)
        changes: dict[int, bytes | None] = {}
        if there:
            changes |= {there[place % len(there)]: b"again%d" % time for place in overwritten}
            changes |= {there[place % len(there)]: None for place in leaving}
        changes |= dict.fromkeys(range(following, following + appearing), b"new%d" % time)
        after = {
            serial: value for serial, value in {**state, **changes}.items() if value is not None
        }
        delta = tuple((key_of(serial), value) for serial, value in sorted(changes.items()))
        states[at(time)] = (after, following + appearing, on)
        links.append(Link(at(time), on, (A,), False, delta, None, b""))
    return tuple(links), states


def move(script: Script, stops: list[int]) -> None:
    """A server learns of all versions, and moves from one to the other, in a step each."""
    links, states = tree(script)
    storage = MemoryStorage()
    version = ZERO
    for stop in (*stops, -1):
        copy = Replica(storage, A)
        copy.learn(links)
        version = links[stop % len(links)].timestamp
        copy.move_to(version)
        stands_at(copy, version)
        storage.apply(copy.writes)
    while version != ZERO:
        state, following, before = states[version]
        for after in (0, *state, following):
            expected = {serial: state[serial] for serial in sorted(state) if serial > after}
            assert listed(storage, version, following, after=after) == expected
        version = before


@given(steps, st.lists(st.integers(0, 29), max_size=3))
def test_the_past_is_the_same_as_of_one_who_was_there(script: Script, stops: list[int]) -> None:
    move(script, stops)


# The first version has three entries. The others, without it, have one, none, two, and other ones.
TAKEN_BACK = [(0, 3, [], []), (1, 1, [], []), (0, 0, [0], []), (0, 2, [], []), (0, 0, [], [0, 1])]


def take_back() -> State:
    """Move over them with the first one in the store. What the fourth is said to have then."""
    storage = MemoryStorage()
    links, _ = tree(TAKEN_BACK)
    for version in (links[0].timestamp, links[-1].timestamp):
        copy = Replica(storage, A)
        copy.learn(links)
        copy.move_to(version)
        stands_at(copy, version)
        storage.apply(copy.writes)
    return listed(storage, at(4), 9, after=0)


def test_what_was_taken_back_may_come_again() -> None:
    assert take_back() == {4: b"new4", 5: b"new4"}


def test_what_was_taken_back_has_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail: who takes it for gone passes over it when it has come again."""

    class Certain(Holes):
        def __init__(self, *given: Any, moved: Any, rewound: bool) -> None:
            assert rewound
            super().__init__(*given, moved=moved, rewound=False)

    monkeypatch.setattr(replica, "Holes", Certain)
    assert take_back() == {}
