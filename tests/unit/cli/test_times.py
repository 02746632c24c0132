"""bftfs.cli.times"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bftfs.cli.times import AmbiguousTime, parse_time, past_time, says_time
from bftfs.errors import UsageError

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
        ("5m", NOW_US - 300 * SECOND_US),
        ("5 min", NOW_US - 300 * SECOND_US),
        ("1w", NOW_US - 7 * DAY_US),
        ("last week", NOW_US - 7 * DAY_US),
        ("this morning", MIDNIGHT_US + 9 * 3600 * SECOND_US),
        ("yesterday noon", MIDNIGHT_US - DAY_US + 12 * 3600 * SECOND_US),
        ("8:53am", MIDNIGHT_US + (8 * 3600 + 53 * 60) * SECOND_US),
        ("Nov 21 08:53", MIDNIGHT_US + (8 * 3600 + 53 * 60) * SECOND_US),
        ("Nov 22 08:53", MIDNIGHT_US - 364 * DAY_US + (8 * 3600 + 53 * 60) * SECOND_US),
        ("2 years ago", NOW_US - 730 * DAY_US),
        ("13/11/2026", MIDNIGHT_US - 8 * DAY_US),
        ("Sat Nov 21 09:02:03 2026", NOW_US - 3600 * SECOND_US),
    ],
)
def test_times_as_people_write_them(text: str, expected_us: int) -> None:
    assert parse_time(text, now_us=NOW_US) == expected_us


@pytest.mark.parametrize(
    "text",
    ["", "ago", "5 ago", "10 parsecs ago", "25:00", "@x", "soon", "host.txt", "v2.1", "before",
     "monday-backup", "release-2026", "2026-11-20-before"],
)  # fmt: skip
def test_what_says_no_time(text: str) -> None:
    assert parse_time(text, now_us=NOW_US) is None
    assert not says_time(text, now_us=NOW_US)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("2/3", r"2/3: is that 2026-02-03 or 2026-03-02\? Write it so"),
        ("02/03/2026", "is that 2026-02-03 or 2026-03-02"),
        ("march", r"march: which day of it\? Write 2026-03-01, for example"),
        ("5", "5: of what"),
    ],
)
def test_what_may_be_several_times_is_asked_back(text: str, question: str) -> None:
    with pytest.raises(AmbiguousTime, match=question):
        parse_time(text, now_us=NOW_US)
    assert not says_time(text, now_us=NOW_US)


@pytest.mark.parametrize("text", ["14:00", "noon", "tomorrow", "in 5 minutes", "Nov 21 10:03"])
def test_times_to_come_are_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match=f"{text}: that time, 2026-11-2.*, is yet to come"):
        past_time(text, now_us=NOW_US)
    assert says_time(text, now_us=NOW_US)


@pytest.mark.parametrize("text", ["1969-12-31", "0001-01-01", "60 years ago", "3000 weeks"])
def test_before_the_epoch_there_was_nothing(text: str) -> None:
    """Nodes take a negative time for the message of a broken program, and hang up."""
    assert past_time(text, now_us=NOW_US) == 0


@pytest.mark.parametrize("text", ["@253402300800", "@99999999999999999", f"@{'9' * 40}"])
def test_what_no_calendar_has_is_no_time(text: str) -> None:
    assert past_time(text, now_us=NOW_US) is None


def test_the_library_is_imported_only_when_it_is_needed() -> None:
    """Importing it takes as long as the rest of most commands."""
    words = ("5m", "2026-11-21T10:02", "10 minutes ago", "@5", "now")
    program = (
        "import sys; from bftfs.cli.times import parse_time\n"
        f"for words in {words}: assert parse_time(words, now_us={NOW_US}) is not None\n"
        "sys.exit('dateparser' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_name_that_is_no_time_is_none_at_once() -> None:
    """What stands behind an `@` may be part of a name that somebody else has chosen."""
    for text in ("@" + "9" * 400, "9" * 400 + " hours ago", "a" * 90 + "!", "1a " * 30 + "!"):
        assert parse_time(text, now_us=NOW_US) is None
