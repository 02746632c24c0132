"""Times as people write them, in microseconds since the epoch.

ISO 8601 as in `.history`; `now`; `@1700000000` counts seconds; `5m`, `2h ago`, `1 hour 30 min` are
amounts of time before now. All others are read by the library dateparser: `last week`, `this
morning`, `noon`, `8:53am`, `Nov 22 08:53`, `2 years ago`, `yesterday 14:00`. [decisions/0019]
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from bftfs.errors import UsageError
from bftfs.filesystem.time_names import format_time_name, local, microseconds, parse_time_name

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
# In one way only: a name such as `a@aaa…` is tried as well, and may not take for ever.
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?|an?\b) ?([a-z]+)", re.ASCII)
_AMOUNTS: Final = re.compile(rf"(?:{_AMOUNT.pattern}(?:,| and)? ?)+", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,8}", re.ASCII)
_LONGEST: Final = 48  # characters, of which no number is too large to be computed with
_LAST_S: Final = 253_402_214_400  # the beginning of the last day that can be written
_ORDERS: Final = ("DMY", "MDY")  # in which people write the day and the month
_BEGINNINGS: Final = ("today", "yesterday")  # alone they mean the beginning of that day


class AmbiguousTime(UsageError):
    """Words that may stand for several times."""


def parse_time(text: str, *, now_us: int) -> int | None:
    """The time that `text` says, which may be yet to come; None if it says none."""
    if len(text) > _LONGEST:
        return None
    words = " ".join(text.strip().lower().split())
    iso = parse_time_name(text.strip())
    if iso is not None:
        return iso
    if words == "now":
        return now_us
    if words.startswith("@") and words[1:].replace(".", "", 1).isdecimal():
        seconds = float(words[1:])
        return round(seconds * 1e6) if seconds < _LAST_S else None
    if _AMOUNTS.fullmatch(amounts := words.removesuffix("ago").rstrip()):
        past_us = _amount(amounts)
        if past_us is not None:
            return max(0, now_us - past_us)
    if _NUMBER.fullmatch(words):
        raise AmbiguousTime(f"{text}: of what? Write 8:00, 5m, 2026-11-21, or @ and the seconds")
    return _read(f"{words} 00:00" if words in _BEGINNINGS else words, now_us)


def _amount(words: str) -> int | None:
    """The amount of time in `words`; None if one of their units has no fixed length, or is none."""
    amount_us = 0.0
    for amount, unit in _AMOUNT.findall(words.replace(" and ", " ")):
        unit_us = _UNITS_US.get(unit) or _UNITS_US.get(unit.removesuffix("s"))
        if unit_us is None:
            return None
        amount_us += (1 if amount in ("a", "an") else float(amount)) * unit_us
    return round(amount_us)


def _read(words: str, now_us: int) -> int | None:
    """The time that the library reads in `words`."""
    from dateparser.date import DateDataParser  # slow to import, and seldom needed

    now = local(now_us).replace(tzinfo=None)

    def read(order: str, prefer: str) -> tuple[datetime | None, str]:
        settings = {
            "RELATIVE_BASE": now,
            "PREFER_DATES_FROM": prefer,
            "DATE_ORDER": order,
            "PARSERS": ["relative-time", "absolute-time"],
        }
        try:
            found = DateDataParser(languages=["en"], settings=settings).get_date_data(words)
        except (ValueError, OverflowError):
            return None, ""
        return found.date_obj, found.period

    times = {read(order, "past")[0] for order in _ORDERS}
    found, period = read(_ORDERS[0], "past")
    if found is None or None in times:
        return None
    if len(times) > 1:
        candidates = " or ".join(sorted(f"{time:%Y-%m-%d}" for time in times if time))
        raise AmbiguousTime(f"{words}: is that {candidates}? Write it so")
    if period in ("month", "year") and not {"ago", "last"} & set(words.split()):
        raise AmbiguousTime(f"{words}: which day of it? Write {found:%Y-%m}-01, for example")
    # A time of day alone is today's; an earlier day has to be named.
    today = read(_ORDERS[0], "current_period")[0]
    if today is not None and today.tzinfo is None and today > now and today.date() == now.date():
        found = today
    return microseconds(found)


def past_time(text: str, *, now_us: int) -> int | None:
    """The time that `text` says; None if it says none. A `UsageError` if it is yet to come."""
    time_us = parse_time(text, now_us=now_us)
    if time_us is not None and time_us > now_us:
        raise UsageError(
            f"{text}: that time, {format_time_name(time_us)[:19]}, is yet to come; of an earlier "
            "day, say the day as well (yesterday 14:00)"
        )
    return time_us


def says_time(text: str, *, now_us: int) -> bool:
    """True if `text` says one time, whenever that is."""
    try:
        return parse_time(text, now_us=now_us) is not None
    except AmbiguousTime:
        return False
