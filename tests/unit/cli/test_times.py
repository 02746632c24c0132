"""bftfs.cli.times"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bftfs.cli.times import parse_time

NOW_US = 1_795_255_323_000_000  # Saturday, 2026-11-21T10:02:03Z
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
MIDNIGHT_US = NOW_US - (10 * 3600 + 2 * 60 + 3) * SECOND_US


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("now", NOW_US),
        ("10 minutes ago", NOW_US - 600 * SECOND_US),
        ("1 hour 30 min ago", NOW_US - 5400 * SECOND_US),
        ("1 hour and 30 minutes ago", NOW_US - 5400 * SECOND_US),
        ("2h ago", NOW_US - 7200 * SECOND_US),
        ("an hour ago", NOW_US - 3600 * SECOND_US),
        ("1.5 seconds ago", NOW_US - 1_500_000),
        ("3 Days  ago", NOW_US - 3 * DAY_US),
        ("today", MIDNIGHT_US),
        ("yesterday", MIDNIGHT_US - DAY_US),
        ("yesterday 14:00", MIDNIGHT_US - DAY_US + 14 * 3600 * SECOND_US),
        ("Yesterday at 14:00:01.5", MIDNIGHT_US - DAY_US + (14 * 3600 + 1) * SECOND_US + 500_000),
        ("9:30", MIDNIGHT_US + (9 * 3600 + 1800) * SECOND_US),
        ("friday", MIDNIGHT_US - DAY_US),
        ("last friday 8:00", MIDNIGHT_US - DAY_US + 8 * 3600 * SECOND_US),
        ("saturday", MIDNIGHT_US - 7 * DAY_US),
        ("sunday", MIDNIGHT_US - 6 * DAY_US),
        ("2026-11-21T10:02:03", NOW_US),
        ("2026-11-21 10:02", NOW_US - 3 * SECOND_US),
        ("@1795255323", NOW_US),
    ],
)
def test_times_as_people_write_them(text: str, expected_us: int) -> None:
    assert parse_time(text, now_us=NOW_US) == expected_us


@pytest.mark.parametrize(
    "text", ["", "ago", "5 ago", "10 parsecs ago", "yesterday noon", "25:00", "@x", "soon", "10:5"]
)
def test_what_says_no_time(text: str) -> None:
    assert parse_time(text, now_us=NOW_US) is None


def test_a_name_that_is_no_time_is_none_at_once() -> None:
    """What stands behind an `@` may be part of a name that somebody else has chosen."""
    for text in ("@" + "9" * 400, "9" * 400 + " hours ago", "a" * 90 + "!", "1a " * 30 + "!"):
        assert parse_time(text, now_us=NOW_US) is None
