"""Candidates and timestamps: layout, order, identity, and what is no encoding of one."""

from __future__ import annotations

import pytest

from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId
from bftfs.query_update.history import (
    INITIAL,
    TIMESTAMP_BYTES,
    ZERO,
    Candidate,
    client_of,
    is_barrier,
    logical_timestamp,
    parse_candidates,
    time_of,
)
from tests.unit.query_update.building import A, B, C, at, barrier, copy, method


def test_a_timestamp_has_its_fields() -> None:
    timestamp = logical_timestamp(
        time_us=7, barrier=True, client=ClientId(b"x" * 16), digest=b"d" * 32
    )
    assert len(timestamp) == TIMESTAMP_BYTES
    assert time_of(timestamp) == 7
    assert is_barrier(timestamp)
    assert client_of(timestamp) == b"x" * 16
    assert timestamp[-32:] == b"d" * 32


def test_timestamps_order_by_their_fields() -> None:
    def make(time: int, barred: bool, client: bytes, digest: bytes) -> bytes:
        return logical_timestamp(
            time_us=time, barrier=barred, client=ClientId(client * 16), digest=digest * 32
        )

    ascending = [
        make(1, True, b"z", b"z"),
        make(2, False, b"z", b"z"),
        make(2, True, b"a", b"z"),
        make(2, True, b"b", b"a"),
        make(2, True, b"b", b"b"),
        make(256, False, b"a", b"a"),
    ]
    assert ascending == sorted(ascending)
    assert min(ascending) > ZERO


@pytest.mark.parametrize(
    "candidates",
    [
        [method(1)],
        [method(1), method(2, 1)],
        [method(1, 0, A, B), barrier(2, 1), copy(3, 1, A, B)],
        [barrier(1), copy(2)],
        [method(1, 0, A, B, C)],
    ],
)
def test_candidates_survive_encoding(candidates: list[Candidate]) -> None:
    encoded = b"".join(candidate.encoded for candidate in candidates)
    parsed = parse_candidates(encoded, limit=10)
    assert list(parsed) == candidates
    assert [(each.objects, each.copy, each.barrier) for each in parsed] == [
        (each.objects, each.copy, each.barrier) for each in candidates
    ]


def test_all_of_a_candidate_is_its_identity() -> None:
    same = [method(2, 1, A, B), method(2, 1, A, B)]
    others = [method(2, 1), copy(2, 1, A, B), method(2, 0, A, B), method(2, 1, A, C)]
    assert len({*same}) == 1
    assert len({*same, *others}) == 5
    assert Candidate(ZERO, ZERO) == INITIAL
    assert INITIAL != 0


def bad() -> list[bytes]:
    two = method(1, 0, A, B).encoded
    return [
        method(1).encoded[:-1],
        method(1).encoded + b"x",
        method(2).encoded + method(1).encoded,
        method(1).encoded + method(1).encoded,
        Candidate(at(1), at(1)).encoded,
        Candidate(at(1), at(2)).encoded,
        INITIAL.encoded,
        Candidate(at(1), ZERO, (A,)).encoded,
        Candidate(at(1), ZERO, (B, A)).encoded,
        Candidate(at(1), ZERO, (A, A)).encoded,
        Candidate(at(2), at(1, barrier=True)).encoded,
        Candidate(at(1, barrier=True), ZERO, (A, B)).encoded,
        Candidate(at(1, barrier=True), ZERO, (), True).encoded,
        two[:-16],
        two[:114] + b"\x7f" + two[115:],
    ]


@pytest.mark.parametrize("encoded", bad())
def test_what_is_no_history_is_malformed(encoded: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_candidates(encoded, limit=10)


def test_a_history_beyond_the_limit_is_malformed() -> None:
    encoded = b"".join(method(time).encoded for time in range(1, 4))
    assert len(parse_candidates(encoded, limit=3)) == 3
    with pytest.raises(MalformedMessage):
        parse_candidates(encoded, limit=2)
