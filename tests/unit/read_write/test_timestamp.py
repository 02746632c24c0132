from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bftfs.read_write.timestamp import (
    ZERO,
    BlockTimestamp,
    beginning_of,
    encoded,
    successor_of,
    time_of,
    timestamp_of,
    version_key,
)
from tests.unit.read_write.harness import BLOCK

timestamps = st.builds(
    BlockTimestamp,
    st.integers(0, 2**63 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)


@given(timestamps, timestamps)
def test_order_is_time_then_client_then_verifier(
    one: BlockTimestamp, other: BlockTimestamp
) -> None:
    fields = [(t.time, t.client, t.verifier) for t in (one, other)]
    assert (one < other) == (fields[0] < fields[1])
    assert (encoded(one) < encoded(other)) == (one < other)


@given(timestamps, timestamps)
def test_newer_versions_have_smaller_keys(one: BlockTimestamp, other: BlockTimestamp) -> None:
    assert (version_key(BLOCK, one) < version_key(BLOCK, other)) == (one > other)


@given(timestamps)
def test_a_key_gives_its_timestamp_back(timestamp: BlockTimestamp) -> None:
    key = version_key(BLOCK, timestamp)
    assert key.startswith(BLOCK)
    assert timestamp_of(key) == timestamp
    assert time_of(key) == timestamp.time


@given(timestamps, timestamps)
def test_nothing_lies_between_a_timestamp_and_its_successor(
    timestamp: BlockTimestamp, other: BlockTimestamp
) -> None:
    successor = successor_of(timestamp)
    assert timestamp < successor
    assert (other < successor) == (other <= timestamp)


def test_the_successor_carries_into_client_and_time() -> None:
    last = BlockTimestamp(7, b"\xff" * 16, b"\xff" * 32)
    assert successor_of(last) == BlockTimestamp(8, bytes(16), bytes(32)) == beginning_of(8)


def test_zero_is_below_everything() -> None:
    assert beginning_of(0) == ZERO < BlockTimestamp(0, bytes(16), bytes(31) + b"\x01")
