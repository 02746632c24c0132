"""Q/U values: replica histories, object history sets, and what is concluded from them."""

from __future__ import annotations

from collections.abc import Iterable

from bftfs.asking.quorum import ThresholdQuorums
from bftfs.crypto.digest import AuthenticatorKeys, entries_of, replica_history_digest
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.classification import Evidence, Undecided, classify
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    HistoryGroup,
    LogicalTimestamp,
    ObjectHistorySet,
    cull,
    history_of,
    logical_timestamp,
    parse_history,
    parse_set,
)
from bftfs.thresholds import QueryUpdateThresholds
from tests.fuzz.choices import Choices
from tests.fuzz.target import KIB, MIB, Target

_QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))
_OBJECTS = tuple(
    object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes([number]) * 14)
    for number in range(1, 5)
)
_NOW_US = 1_700_000_000_000_000


def _keys(node: int) -> AuthenticatorKeys:
    return AuthenticatorKeys(
        NodeId(node),
        tuple(bytes([min(node, other), max(node, other)]) * 16 for other in range(_QUORUMS.n)),
    )


_KEYS = tuple(_keys(node) for node in range(_QUORUMS.n))


def histories(data: bytes) -> None:
    """A replica history is refused, or has one encoding, ascends, and finds what it holds."""
    history = parse_history(data)
    if history.candidates:
        assert history_of(history.candidates, initial=history.initial) == data
    times = [candidate.timestamp for candidate in history.candidates]
    assert times == sorted(set(times))
    assert all(history.find(time) is not None for time in times[:4])
    assert history.latest == (times[-1] if times else ZERO)
    assert not history.latest_object.barrier


def _history_seeds() -> Iterable[bytes]:
    yield b""
    yield _history(Choices(bytes([3, 1, 0, 0, 2, 1, 1, 0, 1, 2, 3, 4, 5] * 4)))
    yield _history(Choices(bytes([1, 1, 3, 0, 2, 7, 3, 200, 1, 2, 3, 4, 5] * 4)))


def _timestamp(choices: Choices, *, barrier: bool) -> LogicalTimestamp:
    kind = choices.number(8)
    time_us = _NOW_US + choices.number(4)
    if kind == 7:
        time_us = choices.pick(((1 << 64) - 1, (1 << 63), _NOW_US + 10**10, 0))
    return logical_timestamp(
        time_us=time_us,
        barrier=barrier,
        client=bytes([choices.number(2)]) * 16,  # type: ignore[arg-type]
        digest=bytes([choices.number(3)]) * 32,
    )


def _history(choices: Choices) -> bytes:
    """The encoding of a well-formed history, or nearly."""
    candidates: dict[LogicalTimestamp, Candidate] = {}
    for _ in range(choices.number(6)):
        barrier = choices.flag(3)
        timestamp = _timestamp(choices, barrier=barrier)
        older = [known for known in candidates if known < timestamp and not known[8]]
        conditioned_on = choices.pick([ZERO, *older])
        objects = () if barrier or choices.flag() else _OBJECTS[: 2 + choices.number(3)]
        copy = not barrier and choices.flag(4)
        candidates[timestamp] = Candidate(timestamp, conditioned_on, objects, copy)
    if not candidates:
        return b""
    ascending = [candidates[timestamp] for timestamp in sorted(candidates)]
    return history_of(ascending, initial=choices.flag())


def _set(choices: Choices, identifier: ObjectId, judge: int) -> tuple[ObjectHistorySet, bytes]:
    """A history set of few different histories, and a server's entries, most of them valid."""
    histories = [_history(choices) for _ in range(1 + choices.number(3))]
    by_history: dict[bytes, list[int]] = {}
    for node in range(_QUORUMS.n):
        history = choices.pick(histories)
        if history:
            by_history.setdefault(history, []).append(node)
    groups = [HistoryGroup(history, bytes(nodes)) for history, nodes in by_history.items()]
    if groups and choices.flag(6):
        at = choices.number(len(groups))
        nodes = choices.octets(1 + choices.number(3))
        groups[at] = HistoryGroup(groups[at].history, nodes)
    if groups and choices.flag(6):
        groups.append(choices.pick(groups))
    authenticators = []
    for group in groups:
        digest = replica_history_digest(object=identifier, encoded=group.history)
        for node in group.nodes:
            authenticator = _KEYS[node % _QUORUMS.n].make(digest)
            authenticators.append(bytes(96) if choices.flag(8) else authenticator)
    joined = b"".join(authenticators)
    try:
        entries = entries_of(joined, _QUORUMS.n)[judge]
    except ValueError:  # as a forger has made them
        entries = joined
    return ObjectHistorySet(identifier, tuple(groups)), entries[: -1 if choices.flag(16) else None]


def history_sets(data: bytes) -> None:
    """Any history sets are refused, or culled, classified, and settled by deduction."""
    choices = Choices(data)
    count = 1 + choices.number(3)
    sets = []
    for identifier in _OBJECTS[:count]:
        judge = choices.number(_QUORUMS.n)
        history_set, entries = _set(choices, identifier, judge)
        parse_set(history_set, n=_QUORUMS.n)
        culled, forged, insane, outlived = cull(
            history_set,
            entries,
            _KEYS[judge],
            quorums=_QUORUMS,
            latest_sane_us=_NOW_US + 10**9,
        )
        assert not culled.nodes & (forged | insane | outlived)
        found = classify(culled, _QUORUMS)
        if found.complete:
            assert _QUORUMS.is_quorum(found.nodes)
        sets.append(culled)
    split = choices.number(len(sets) + 1)
    barred = {each.object: each for each in sets[:split]}
    others = {each.object: each for each in sets[split:]}
    facts = {_timestamp(choices, barrier=False): choices.flag() for _ in range(choices.number(3))}
    settled = Evidence(barred, others, _QUORUMS, facts).settle()
    assert isinstance(settled, Undecided) or set(settled) == set(barred)


def _set_seeds() -> Iterable[bytes]:
    for number in range(6):
        yield bytes((7 * at * at + number * at + number) % 251 for at in range(160))


TARGETS = (
    Target(
        "histories",
        histories,
        (MalformedMessage,),
        seeds=_history_seeds,
        work_per_byte=4,
        most_bytes=16 * KIB,
    ),
    Target(
        "history-sets",
        history_sets,
        (MalformedMessage,),
        seeds=_set_seeds,
        work=60_000,
        memory_bytes=4 * MIB,
        most_bytes=512,
    ),
)
