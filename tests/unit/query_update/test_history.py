"""Histories and history sets: parsing, assembling, canonical form, culling."""

from __future__ import annotations

import pytest

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes, ThresholdQuorums
from bftfs.crypto.digest import LIFE_BYTES, MAC_BYTES, entries_of
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId
from bftfs.query_update.history import (
    INITIAL,
    ZERO,
    HistoryGroup,
    Known,
    ObjectHistorySet,
    assemble,
    built_on,
    cull,
    parse_history,
    parse_set,
)
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import (
    A,
    B,
    at,
    barrier,
    copy,
    history,
    keys,
    known,
    method,
    seen,
)

LONG_AGO = 10**15
QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))


def test_the_initial_history_is_nothing() -> None:
    parsed = parse_history(b"")
    assert (parsed.initial, parsed.candidates, parsed.latest) == (True, (), ZERO)
    assert parsed.latest_object is INITIAL


def test_a_history_knows_its_latest_object_below_barriers() -> None:
    parsed = parse_history(history(method(1), copy(3, 1), barrier(4, 3), initial=True))
    assert parsed.initial
    assert parsed.latest == at(4, barrier=True)
    assert parsed.latest_object == copy(3, 1)
    assert parsed.find(at(1)) == method(1)
    assert parsed.find(at(2)) is None
    assert parse_history(history(barrier(1), initial=True)).latest_object is INITIAL


@pytest.mark.parametrize("encoded", [b"\0", b"\1", b"\2" + method(1).encoded, method(1).encoded])
def test_bytes_that_are_no_history(encoded: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_history(encoded)


def test_a_history_built_on_the_initial_version_still_has_it() -> None:
    assert parse_history(built_on(INITIAL, method(1))).initial
    later = parse_history(built_on(method(1), method(2, 1)))
    assert (later.initial, later.candidates) == (False, (method(1), method(2, 1)))


def test_servers_that_report_the_same_share_a_group() -> None:
    one, other = history(method(1)), history(method(2))
    entries = {
        NodeId(5): Known(one, b"5"),
        NodeId(0): Known(other, b"0"),
        NodeId(2): Known(one, b"2"),
        NodeId(3): Known(b"", b""),
    }
    history_set, authenticators, culled = assemble(A, entries)
    assert history_set.groups == (HistoryGroup(other, b"\0"), HistoryGroup(one, b"\2\5"))
    assert authenticators == b"025"
    assert culled.nodes == Nodes(0b100101)
    assert culled.latest == at(2)
    assert parse_set(history_set, n=6) == culled


@pytest.mark.parametrize(
    "groups",
    [
        [(method(1), b"\1\0")],
        [(method(1), b"\1\1")],
        [(method(1), b"\6")],
        [(method(1), b"\1"), (method(2), b"\1")],
        [(method(1), b"\1"), (method(2), b"\0")],
        [(method(1), b"\0"), (method(1), b"\1")],
    ],
)
def test_a_set_that_is_not_canonical_is_malformed(groups: list) -> None:
    history_set = ObjectHistorySet(
        A, tuple(HistoryGroup(history(candidate), nodes) for candidate, nodes in groups)
    )
    with pytest.raises(MalformedMessage):
        parse_set(history_set, n=6)


def test_a_set_must_not_list_initial_histories() -> None:
    with pytest.raises(MalformedMessage):
        parse_set(ObjectHistorySet(A, (HistoryGroup(b"", b"\0"),)), n=6)


def test_nothing_is_culled_from_what_is_authentic() -> None:
    entries = {NodeId(i): known(A, i, history(method(1))) for i in range(5)}
    history_set, authenticators, culled = assemble(A, entries)
    for node in range(6):
        assert cull(
            history_set,
            entries_of(authenticators, 6)[node],
            keys(node),
            quorums=QUORUMS,
            latest_sane_us=LONG_AGO,
        ) == (
            culled,
            NOBODY,
            NOBODY,
            NOBODY,
        )


def test_a_history_is_authentic_for_its_object_and_server_only() -> None:
    entries = {
        NodeId(0): known(A, 0, history(method(1))),
        NodeId(1): known(B, 1, history(method(1))),
        NodeId(2): known(A, 3, history(method(1))),
        NodeId(4): Known(history(method(2)), known(A, 4, history(method(1))).authenticator),
    }
    history_set, authenticators, _ = assemble(A, entries)
    culled, forged, insane, _ = cull(
        history_set,
        entries_of(authenticators, 6)[5],
        keys(5),
        quorums=QUORUMS,
        latest_sane_us=LONG_AGO,
    )
    assert (forged, insane) == (Nodes(0b010110), NOBODY)
    assert culled == seen(A, history(method(1)))


def test_a_corrupt_entry_is_seen_by_its_server_only() -> None:
    honest = known(A, 0, history(method(1)))
    spoilt = bytearray(honest.authenticator)
    spoilt[LIFE_BYTES + 3 * MAC_BYTES] ^= 1
    history_set, authenticators, _ = assemble(A, {NodeId(0): Known(honest.history, bytes(spoilt))})
    found = [
        cull(history_set, entries, keys(node), quorums=QUORUMS, latest_sane_us=LONG_AGO)[1]
        for node, entries in enumerate(entries_of(authenticators, 6))
    ]
    assert found == [NOBODY, NOBODY, NOBODY, Nodes(1), NOBODY, NOBODY]


def test_insane_times_are_culled_and_reported_apart() -> None:
    entries = {
        NodeId(0): known(A, 0, history(method(100))),
        NodeId(1): known(A, 1, history(method(100 + limits.STEPS_AHEAD_US + 1))),
    }
    history_set, authenticators, _ = assemble(A, entries)
    culled, forged, insane, _ = cull(
        history_set, entries_of(authenticators, 6)[2], keys(2), quorums=QUORUMS, latest_sane_us=100
    )
    assert (forged, insane) == (NOBODY, Nodes(0b10))
    assert culled.nodes == Nodes(0b01)


@pytest.mark.parametrize(
    ("times", "insane"),
    [
        ([900, 900, 1], 0),  # b + 1 servers have accepted it: one of them is benign
        ([900, 901, 1], 0),
        ([900, 900 + limits.STEPS_AHEAD_US, 1], 0),  # what a client has left at one of them
        ([900, 901 + limits.STEPS_AHEAD_US, 1], 0b10),
        ([1, 900, 1], 0b10),
        ([100, 100, 101], 0),
    ],
)
def test_no_time_is_insane_that_servers_share_which_cannot_all_lie(
    times: list[int], insane: int
) -> None:
    entries = {NodeId(i): known(A, i, history(method(time))) for i, time in enumerate(times)}
    history_set, authenticators, _ = assemble(A, entries)
    found = cull(
        history_set, entries_of(authenticators, 6)[4], keys(4), quorums=QUORUMS, latest_sane_us=100
    )
    assert found[2] == Nodes(insane)


@pytest.mark.parametrize("length", [0, 23, 25, 48, 71, 104])
def test_missing_or_whole_authenticators_are_malformed(length: int) -> None:
    history_set, _, _ = assemble(A, {NodeId(0): known(A, 0, history(method(1)))})
    with pytest.raises(MalformedMessage):
        cull(history_set, bytes(length), keys(1), quorums=QUORUMS, latest_sane_us=LONG_AGO)
