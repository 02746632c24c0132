"""bftfs.filesystem.time_names"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.filesystem.time_names import format_time_name, looks_like_a_time_name, parse_time_name

HOUR_US = 3_600_000_000
MORNING_US = 1_795_255_323_000_000  # 2026-11-21T10:02:03Z


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "later_us"),
    [
        ("2026-11-21T10:02:03Z", 0),
        ("2026-11-21 10:02:03Z", 0),
        ("2026-11-21T10:02:03.5Z", 500_000),
        ("2026-11-21T10:02:03.123456789Z", 123_456),
        ("2026-11-21T11:02:03+01:00", 0),
        ("2026-11-21T11:02:03+01", 0),
        ("2026-11-21T06:32:03-0330", 0),
        ("2026-11-21T10:02Z", -3_000_000),
    ],
)
def test_a_time_with_its_offset(zone: str, text: str, later_us: int) -> None:
    assert parse_time_name(text) == MORNING_US + later_us


def test_without_an_offset_it_is_local_time(
    zone: str,
) -> None:
    offset_us = {"UTC": 0, "Europe/Berlin": HOUR_US, "America/St_Johns": -7 * HOUR_US // 2}[zone]
    assert parse_time_name("2026-11-21T10:02:03") == MORNING_US - offset_us
    midnight = MORNING_US - 10 * HOUR_US - 123_000_000 - offset_us
    assert parse_time_name("2026-11-21") == midnight
    for short, full in (("2026", "2026-01-01T00"), ("2026-12", "2026-12-01T00:00")):
        assert parse_time_name(short) is not None
        assert parse_time_name(short) == parse_time_name(full)


@given(st.integers(0, 4_000_000_000_000_000))
def test_what_is_written_is_read_back(time_us: int) -> None:
    assert parse_time_name(format_time_name(time_us)) == time_us


@pytest.mark.parametrize(
    "text",
    ["", "now", "26", "2026-13", "2026-02-30", "2026-11-21T25", "2026-11-21T10:02:03+99:99",
     "2026-11-21Z", "2026-11-21T", "0000", "२०२६", "2026-11-21T10:02:03 ", "before"],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    assert parse_time_name(text) is None


def test_names_that_look_like_times_are_recognized() -> None:
    assert looks_like_a_time_name(b"2026-13")
    assert not looks_like_a_time_name(b"before-2026")
    assert not looks_like_a_time_name(b"\xff")
