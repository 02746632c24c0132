"""One server's copy of an object: versions as deltas, moving the head, reading the past."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs import limits
from bftfs.errors import DamagedRow
from bftfs.query_update.between_nodes import StatePage, take_staged
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, Operation, history_of
from bftfs.query_update.messages import Verdict
from bftfs.query_update.past_state import state_at
from bftfs.query_update.replica import Link, Reach, Replica, Version, Workspace
from bftfs.server.scrubbing import attested
from bftfs.storage import MemoryStorage, Table, Write
from bftfs.wire.codec import encode
from tests.unit.query_update.building import A, B, at

KEYS = [b"a", b"a\0", b"a\0\xff", b"ab", b"b" * 9, b"c"]
END = b"\xff" * 301
State = dict[bytes, bytes]


def accept(
    storage: MemoryStorage,
    timestamp: LogicalTimestamp,
    on: LogicalTimestamp,
    changes: dict[bytes, bytes | None],
    *,
    established: LogicalTimestamp = ZERO,
) -> None:
    """Accept a version on top of `on`, moving the head there first."""
    replica = Replica(storage, A)
    replica.move_to(on)
    for key, value in changes.items():
        if value is None:
            replica.workspace.delete(key)
        else:
            replica.workspace.put(key, value)
    candidate = Candidate(timestamp, on)
    replica.append(candidate)
    kept = [old for old in replica.history.candidates if old.timestamp >= established]
    replica.report(
        history_of((*kept, candidate), initial=established == ZERO), b"", established=established
    )
    storage.apply(replica.writes)


def head_state(storage: MemoryStorage) -> State:
    return dict(Replica(storage, A).workspace.scan(b"", END))


def test_a_new_object_is_empty() -> None:
    replica = Replica(MemoryStorage(), A)
    assert replica.head == ZERO
    assert replica.workspace.get(b"a") is None
    assert list(replica.workspace.scan(b"", END)) == []
    assert replica.reach(ZERO) is Reach.HERE
    assert replica.reach(at(1)) is Reach.MISSING


def test_the_workspace_shows_its_own_changes_in_order() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"b": b"1", b"d": b"1", b"f": b"1"})
    space = Replica(storage, A).workspace
    space.put(b"a", b"2")
    space.put(b"d", b"2")
    space.put(b"e", b"2")
    space.delete(b"f")
    space.delete(b"x")
    expected = [(b"a", b"2"), (b"b", b"1"), (b"d", b"2"), (b"e", b"2")]
    assert list(space.scan(b"", END)) == expected
    assert list(space.scan(b"", END, reverse=True)) == expected[::-1]
    assert list(space.scan(b"b", b"e")) == expected[1:3]
    assert [space.get(key) for key in (b"d", b"f", b"x")] == [b"2", None, None]
    assert space.take_delta() == ((b"a", b"2"), (b"d", b"2"), (b"e", b"2"), (b"f", None))


def test_what_is_left_as_it_was_is_no_change() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    space = Replica(storage, A).workspace
    space.put(b"a", b"1")
    space.delete(b"b")
    assert space.take_delta() == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b""),
        (b"k" * (limits.STATE_KEY_BYTES + 1), b""),
        (b"\0" * 151, b""),
        (b"k", bytes(limits.STATE_VALUE_BYTES + 1)),
    ],
)
def test_what_a_state_cannot_hold_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        Workspace(MemoryStorage(), A).put(key, value)


def test_an_update_changes_a_bounded_part_of_an_object() -> None:
    space = Workspace(MemoryStorage(), A)
    for number in range(limits.DELTA_ENTRIES):
        space.put(b"%d" % number, b"")
    with pytest.raises(ValueError, match="too much"):
        space.delete(b"one more")


def test_objects_do_not_see_each_other() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    assert list(Replica(storage, B).workspace.scan(b"", END)) == []


def test_the_past_is_read_only() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    past = state_at(Replica(storage, A), ZERO)
    assert past is not None
    with pytest.raises(ValueError, match="read-only"):
        past.put(b"a", b"2")
    with pytest.raises(ValueError, match="read-only"):
        past.delete(b"a")


def test_the_chain_never_moves_behind_the_established() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    accept(storage, at(2), at(1), {b"a": b"2"}, established=at(1))
    replica = Replica(storage, A)
    replica.learn((Link(at(3), ZERO, (), False, (), None, b""),))
    assert replica.reach(at(3)) is Reach.BLOCKED
    assert replica.reach(ZERO) is Reach.BLOCKED
    assert replica.reach(at(1)) is Reach.KNOWN


def test_verdicts_come_from_the_chain_of_the_established_version() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    accept(storage, at(2), at(1), {b"a": b"2"})
    accept(storage, at(4), at(1), {b"a": b"4"})  # 2 is left behind
    accept(storage, at(6), at(4), {b"a": b"6"}, established=at(4))
    replica = Replica(storage, A)
    verdicts = [replica.verdict(at(time)) for time in (1, 2, 3, 4, 5, 6)]
    known, dead, unknown = Verdict.ESTABLISHED, Verdict.DEAD, Verdict.UNKNOWN
    assert verdicts == [known, dead, dead, known, unknown, unknown]
    assert [replica.verdict_at(at(time), at(6)) for time in (2, 4, 5, 6, 7)] == [
        dead,
        known,
        dead,
        known,
        dead,
    ]
    assert replica.verdict_at(at(1), at(2)) is unknown  # 2 is not on the chain
    assert replica.verdict_at(at(1), ZERO) is dead


def stage(storage: MemoryStorage, timestamp: LogicalTimestamp, state: State) -> None:
    """What object sync stages when it brings a whole state, a pair per page."""
    key = b"sync" + A + timestamp
    pairs = sorted(state.items())
    pages = [
        StatePage((pair,), position + 1 < len(pairs)) for position, pair in enumerate(pairs)
    ] or [StatePage((), False)]
    storage.apply(
        [
            Write(Table.REQUEST, key + number.to_bytes(4, "big"), encode(page))
            for number, page in enumerate(pages)
        ]
        + [Write(Table.REQUEST, key, b"s" + len(pages).to_bytes(4, "big"))]
    )


def test_a_whole_state_leaves_a_gap() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1", b"b": b"1"})
    accept(storage, at(2), at(1), {b"a": b"2"}, established=at(1))
    stage(storage, at(9), {b"b": b"1", b"c": b"9"})
    stage(storage, at(8), {b"x": b"8"})  # was never used
    replica = Replica(storage, A)
    assert take_staged(replica, at(9))
    candidate = Candidate(at(10), at(9))
    replica.append(candidate)
    replica.report(history_of((candidate,), initial=False), b"", established=at(9))
    storage.apply(replica.writes)
    assert head_state(storage) == {b"b": b"1", b"c": b"9"}
    after = Replica(storage, A)
    past = state_at(after, at(1))
    assert past is not None
    assert dict(past.scan(b"", END)) == {b"a": b"1", b"b": b"1"}
    assert after.verdict(at(1)) is Verdict.ESTABLISHED
    assert after.verdict(at(2)) is Verdict.UNKNOWN  # it may lie in the gap
    assert after.verdict(at(5)) is Verdict.UNKNOWN
    assert state_at(after, at(2)) is None
    assert not list(storage.keys(Table.REQUEST, b"", b"\xff"))


def test_a_version_that_the_disk_has_lost_is_damage_and_no_crash() -> None:
    storage = MemoryStorage()
    accept(storage, at(1), ZERO, {b"a": b"1"})
    accept(storage, at(2), at(1), {b"a": b"2"}, established=at(1))
    stage(storage, at(9), {b"b": b"1"})
    storage.apply([Write(Table.VERSION, A + at(2), None)])
    with pytest.raises(DamagedRow) as damage:
        take_staged(Replica(storage, A), at(9))
    assert damage.value.object == A


# --- against a model ------------------------------------------------------------------------

changes = st.dictionaries(
    st.sampled_from(KEYS), st.one_of(st.none(), st.sampled_from([b"", b"v", b"w"])), max_size=4
)
steps = st.lists(st.tuples(st.integers(0, 6), changes), min_size=1, max_size=10)


def applied(state: State, delta: dict[bytes, bytes | None]) -> State:
    result = dict(state)
    for key, value in delta.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


@given(steps)
def test_every_version_of_the_chain_can_be_read(
    script: list[tuple[int, dict[bytes, bytes | None]]],
) -> None:
    """Versions branch off anywhere; the head jumps between branches by undo and redo."""
    storage = MemoryStorage()
    states: dict[LogicalTimestamp, State] = {ZERO: {}}
    parents: dict[LogicalTimestamp, LogicalTimestamp] = {}
    for time, (back, delta) in enumerate(script, start=1):
        on = sorted(states)[-1 - back % len(states)]
        accept(storage, at(time), on, delta)
        states[at(time)] = applied(states[on], delta)
        parents[at(time)] = on
        assert head_state(storage) == states[at(time)]

        def chain(version: LogicalTimestamp) -> Iterator[LogicalTimestamp]:
            while version != ZERO:
                yield version
                version = parents[version]
            yield ZERO

        on_chain = set(chain(at(time)))
        replica = Replica(storage, A)
        for version, expected in states.items():
            past = state_at(replica, version)
            if version not in on_chain:
                assert past is None
                continue
            assert past is not None
            assert list(past.scan(b"", END)) == sorted(expected.items())
            assert list(past.scan(b"", END, reverse=True)) == sorted(expected.items())[::-1]
            assert list(past.scan(b"a\0", b"b" * 9)) == [
                pair for pair in sorted(expected.items()) if b"a\0" <= pair[0] < b"b" * 9
            ]
            assert [past.get(key) for key in KEYS] == [expected.get(key) for key in KEYS]
    rows = [key for table in (Table.STATE, Table.PAST) for key in storage.keys(table, b"", END)]
    assert len(rows) <= sum(1 + len(delta) for _, delta in script) * 2


@pytest.mark.parametrize("reverse", [False, True])
def test_every_past_of_keys_that_are_overwritten_often(reverse: bool) -> None:
    """Rows of one key that are passed over by seeking: before, at and after the version."""
    storage = MemoryStorage()
    states: list[State] = [{}]
    before = ZERO
    for number in range(1, 41):
        changes: dict[bytes, bytes | None] = {KEYS[0]: b"%d" % number}
        if number % 3 == 0:
            changes[KEYS[1]] = None if number % 2 else b"x%d" % number
        changes[KEYS[2] if number < 20 else KEYS[5]] = b"y%d" % number
        accept(storage, at(number), before, changes)
        before = at(number)
        state = {**states[-1]}
        for key, value in changes.items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        states.append(state)
    replica = Replica(storage, A)
    for number, state in enumerate(states):
        past = state_at(replica, at(number) if number else ZERO)
        assert past is not None
        expected = sorted(state.items(), reverse=reverse)
        assert list(past.scan(b"", END, reverse=reverse)) == expected
        assert {key: past.get(key) for key in state} == state


def test_a_version_that_is_no_text_or_has_no_number_is_damage() -> None:
    """[design §9] Damage as any other, to who reads it and to scrubbing, and no fault of both."""
    key = A + at(1)
    sound = Version(1, ZERO, (A,), False, (), Operation("method", (A,), b"", 0, 0, (), 1))
    no_text = encode(sound).replace(b"method", b"m\xffthod")
    no_number = encode(msgspec.structs.replace(sound, number=-1))
    for row, is_sound in ((encode(sound), True), (no_text, False), (no_number, False)):
        storage = MemoryStorage()
        storage.apply([Write(Table.VERSION, key, row)])
        assert bool(attested(storage, key)) == is_sound
        if is_sound:
            assert Replica(storage, A).version(at(1)) == sound
        else:
            with pytest.raises(DamagedRow):
                Replica(storage, A).version(at(1))
