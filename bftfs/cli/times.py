"""Times as people write them, in microseconds since the epoch.

ISO 8601 as in `.history`; `now`; `10 minutes ago`, `1 hour 30 min ago`, `2h ago`; `today`,
`yesterday` and days of the week (the last one before today), alone or with a time of day:
`yesterday 14:00`, `monday at 9:30`; a time of day alone is today's; `@1700000000` counts seconds.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from bftfs.filesystem.time_names import local, microseconds, parse_time_name

_UNITS_US: Final = {
    name: unit_us
    for unit_us, names in (
        (1, "us microsecond"),
        (1_000, "ms millisecond"),
        (1_000_000, "s sec second"),
        (60_000_000, "m min minute"),
        (3_600_000_000, "h hour"),
        (86_400_000_000, "d day"),
        (604_800_000_000, "w week"),
    )
    for name in names.split()
}
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# In one way only: a name such as `a@aaa…` is tried as well, and may not take for ever.
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?|an?\b) ?([a-z]+)", re.ASCII)
_AGO: Final = re.compile(rf"(?:{_AMOUNT.pattern}(?:,| and)? ?)+ago", re.ASCII)
_LONGEST: Final = 100  # characters, of which no number is too large to be computed with
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII)


def parse_time(text: str, *, now_us: int) -> int | None:
    """The time that `text` says; None if it says none."""
    if len(text) > _LONGEST:
        return None
    words = " ".join(text.strip().lower().split())
    iso = parse_time_name(text.strip())
    if iso is not None:
        return iso
    if words == "now":
        return now_us
    if words.startswith("@") and words[1:].replace(".", "", 1).isdecimal():
        return round(float(words[1:]) * 1e6)
    if _AGO.fullmatch(words):
        return _ago(words, now_us)
    return _day(words, now_us)


def _ago(words: str, now_us: int) -> int | None:
    past_us = 0.0
    for amount, unit in _AMOUNT.findall(words.removesuffix("ago").replace(" and ", " ")):
        unit_us = _UNITS_US.get(unit) or _UNITS_US.get(unit.removesuffix("s"))
        if unit_us is None:
            return None
        past_us += (1 if amount in ("a", "an") else float(amount)) * unit_us
    return max(0, now_us - round(past_us))


def _day(words: str, now_us: int) -> int | None:
    """A day of the last week, with or without a time of day."""
    today = local(now_us).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    name, _, rest = words.removeprefix("last ").partition(" ")
    rest = rest.removeprefix("at ")
    if name == "today":
        day = today
    elif name == "yesterday":
        day = today - timedelta(days=1)
    elif name in _DAYS:
        day = today - timedelta(days=(today.weekday() - _DAYS.index(name) - 1) % 7 + 1)
    elif _CLOCK.fullmatch(words):
        day, rest = today, words
    else:
        return None
    return _at_clock(day, rest)


def _at_clock(day: datetime, clock: str) -> int | None:
    if not clock:
        return microseconds(day)
    match = _CLOCK.fullmatch(clock)
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    try:
        moment = day.replace(
            hour=int(hour),
            minute=int(minute),
            second=int(second or 0),
            microsecond=int((fraction or "0").ljust(6, "0")),
        )
    except ValueError:
        return None
    return microseconds(moment)
