"""Lists in an object's state: their past equals a model, at the cost of what was in them then."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.query_update import replica
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, history_of
from bftfs.query_update.object_type import (
    BEYOND_SEQUENCE,
    FIRST_SERIAL,
    key_of,
    serial_at,
    serial_from,
    serial_key,
)
from bftfs.query_update.past_state import state_at
from bftfs.query_update.replica import Replica, Workspace
from bftfs.server.object_collection import ObjectWalk
from bftfs.storage import MemoryStorage, Table, Write
from bftfs.wire.codec import encode
from tests.unit.query_update.building import A, at

State = dict[int, bytes]


class CountingStorage(MemoryStorage):
    """Counts the rows that are read."""

    rows_read = 0

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for pair in super().scan(table, start, stop, reverse=reverse):
            self.rows_read += 1
            yield pair

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        for key in super().keys(table, start, stop, reverse=reverse):
            self.rows_read += 1
            yield key


def accept(
    storage: MemoryStorage,
    timestamp: LogicalTimestamp,
    on: LogicalTimestamp,
    changes: dict[int, bytes | None],
    *,
    forgotten: bool = False,
) -> None:
    """Accept a version on top of `on`, moving the head there first.

    If it is to be `forgotten`, what was before it stays in no replica history.
    """
    copy = Replica(storage, A)
    copy.move_to(on)
    for serial, value in changes.items():
        if value is None:
            copy.workspace.delete(key_of(serial))
        else:
            copy.workspace.put(key_of(serial), value)
    candidate = Candidate(timestamp, on)
    copy.append(candidate)
    before = () if forgotten else copy.history.candidates
    copy.report(
        history_of((*before, candidate), initial=not forgotten),
        b"",
        established=on if forgotten else ZERO,
    )
    storage.apply(copy.writes)


def listed(storage: MemoryStorage, version: LogicalTimestamp, stop: int, *, after: int) -> State:
    """The list at a version, from behind `after` on, in order."""
    state = state_at(Replica(storage, A), version)
    assert state is not None
    found = list(state.scan(key_of(after + 1), key_of(stop)))
    assert found == sorted(found)
    return {serial_at(key): value for key, value in found}


def test_serials_sort_as_numbers_do() -> None:
    serials = [0, 1, 127, 128, 129, 16_383, 16_384, 1 << 30, (1 << 62) + 1]
    encoded = [serial_key(serial) for serial in serials]
    assert sorted(encoded) == encoded
    assert [serial_from(each) for each in encoded] == serials
    assert not any(0 in each for each in encoded)


# Each step: how far back the head jumps, how many serials appear, which of those there go away,
# which are overwritten.
positions = st.lists(st.integers(0, 40), max_size=4)
steps = st.lists(
    st.tuples(st.sampled_from((0, 0, 0, 0, 1, 3)), st.integers(0, 3), positions, positions),
    min_size=1,
    max_size=30,
)


def run(script: list[tuple[int, int, list[int], list[int]]]) -> None:
    """Every version on the chain is read from every place in it."""
    storage = MemoryStorage()
    states: dict[LogicalTimestamp, tuple[State, int]] = {ZERO: ({}, FIRST_SERIAL)}
    parents: dict[LogicalTimestamp, LogicalTimestamp] = {}
    version = ZERO
    for time, (back, appearing, leaving, overwritten) in enumerate(script, start=1):
        on = sorted(states)[-1 - back % len(states)]
        state, following = dict(states[on][0]), states[on][1]
        changes: dict[int, bytes | None] = {}
        there = sorted(state)
        for place in overwritten:
            if there:
                changes[there[place % len(there)]] = b"again%d" % time
        for place in leaving:
            if there:
                changes[there[place % len(there)]] = None
        for serial in range(following, following + appearing):
            changes[serial] = b"new%d" % time
        version = at(time)
        accept(storage, version, on, changes)
        for serial, value in changes.items():
            if value is None:
                del state[serial]
            else:
                state[serial] = value
        states[version], parents[version] = (state, following + appearing), on
    while version != ZERO:
        state, following = states[version]
        for after in (0, *state, following):
            expected = {serial: state[serial] for serial in sorted(state) if serial > after}
            assert listed(storage, version, following, after=after) == expected
        version = parents[version]


@given(steps)
def test_the_past_of_a_list_equals_the_model(
    script: list[tuple[int, int, list[int], list[int]]],
) -> None:
    run(script)


LEFT_BEHIND = [
    (0, 4, [], []),
    (0, 0, [1], []),  # a hole…
    (0, 0, [1, 2], []),  # …that grows with a version…
    (1, 1, [], []),  # …which is taken back: what went with it is there at this one…
    (0, 0, [1, 2], []),  # …and goes later
]


def test_the_holes_of_an_abandoned_version_are_forgotten() -> None:
    run(LEFT_BEHIND)


def test_holes_that_stayed_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail: the model tells."""
    monkeypatch.setattr(replica, "holes_forgotten", lambda *_: [])
    with pytest.raises(AssertionError):
        run(LEFT_BEHIND)


def churned(versions: int, *, kept_every: int) -> tuple[CountingStorage, list[tuple[State, int]]]:
    """A list through which many have passed, and in which few have stayed."""
    storage = CountingStorage()
    states: list[tuple[State, int]] = [({}, FIRST_SERIAL)]
    for time in range(1, versions + 1):
        state, following = dict(states[-1][0]), states[-1][1]
        fleeting = [serial for serial in state if serial % kept_every]
        changes: dict[int, bytes | None]
        if time % 2 or not fleeting:
            changes, state[following] = {following: b"v"}, b"v"
            following += 1
        else:
            changes = {fleeting[0]: None}
            del state[fleeting[0]]
        accept(storage, at(time), ZERO if time == 1 else at(time - 1), changes, forgotten=True)
        states.append((state, following))
    return storage, states


@pytest.mark.parametrize("kept_every", [10_000, 16])
def test_a_list_of_the_past_costs_what_was_in_it(kept_every: int) -> None:
    storage, states = churned(600, kept_every=kept_every)
    for time in (150, 300, 450, 599, 600):
        state, following = states[time]
        storage.rows_read = 0
        assert listed(storage, at(time), following, after=0) == state
        assert storage.rows_read <= 6 * (len(state) + 2)


@pytest.mark.parametrize("kept_every", [10_000, 16])
def test_a_whole_state_of_the_past_is_read_besides_the_notes(kept_every: int) -> None:
    """As object sync does, from the first key and from a page's last one; reading ends."""
    storage, states = churned(600, kept_every=kept_every)
    for time in range(601, 700):  # keys on either side of the list, and nothing in it
        copy = Replica(storage, A)
        copy.move_to(at(time - 1))
        for key in (b"e%d" % (time - time % 2), b"x"):
            copy.workspace.put(key, b"%d" % time)
        candidate = Candidate(at(time), at(time - 1))
        copy.append(candidate)
        copy.report(history_of((candidate,), initial=False), b"", established=at(time - 1))
        storage.apply(copy.writes)
    for time in (450, 599, 600, 601, 650, 698):
        rest: dict[bytes, bytes] = {}
        for each in range(601, time + 1):
            rest |= {b"e%d" % (each - each % 2): b"%d" % each, b"x": b"%d" % each}
        state, following = states[min(time, 600)]
        expected = {key_of(serial): value for serial, value in state.items()} | rest
        past = state_at(Replica(storage, A), at(time))
        assert past is not None
        for start in (b"", b"\0", b"e", b"s", key_of(FIRST_SERIAL), key_of(following), b"t"):
            found = list(islice(past.scan(start, b"\xff" * 99), 1000))
            assert found == sorted(pair for pair in expected.items() if pair[0] >= start)
            backwards = list(islice(past.scan(start, b"\xff" * 99, reverse=True), 1000))
            assert backwards == found[::-1]


def test_without_notes_it_costs_what_has_ever_been_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail, or the bound above would say nothing."""
    monkeypatch.setattr(Workspace, "_holes", lambda *_: {})
    storage, states = churned(600, kept_every=10_000)
    state, following = states[599]
    storage.rows_read = 0
    assert listed(storage, at(599), following, after=0) == state
    assert storage.rows_read > 250


def test_what_appears_costs_no_row_more() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {3: b"v"})
    accept(storage, at(2), at(1), {4: b"v", 3: b"w"})
    past = list(storage.keys(Table.PAST, b"", b"\xff" * 99))
    assert len(past) == 1  # what was overwritten
    accept(storage, at(3), at(2), {4: None})
    assert len(list(storage.keys(Table.PAST, b"", b"\xff" * 99))) == 3  # what went, and its hole
    assert key_of(1 << 62) < BEYOND_SEQUENCE


def test_collected_versions_leave_no_notes() -> None:
    storage, states = churned(300, kept_every=16)
    kept = {200, 201, 202, 290, 299, 300}
    notes = (bytes(A) + b"\0\0", bytes(A) + b"\0\0\xff")
    before = len(list(storage.keys(Table.PAST, *notes)))
    walk = ObjectWalk(
        A,
        lambda time_us, until_us: any(time_us <= each < until_us for each in kept),
        horizon_us=290,
    )
    row = msgspec.structs.replace(Replica(storage, A).row, collected_us=290)
    storage.apply([Write(Table.OBJECT, A, encode(row))])
    while not walk.done:
        storage.apply(walk.step(storage))
    assert walk.removed > 250
    for time in sorted(kept):
        state, following = states[time]
        for after in (0, *state):
            expected = {serial: state[serial] for serial in state if serial > after}
            assert listed(storage, at(time), following, after=after) == expected
    after = len(list(storage.keys(Table.PAST, *notes)))
    rows = len(list(storage.keys(Table.PAST, b"", b"\xff" * 99))) - after
    assert before > 100
    assert after <= rows
