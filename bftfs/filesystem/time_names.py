"""Time names, as in `.history`: ISO 8601 at any precision, to and from microseconds.

`2026`, `2026-11`, `2026-11-21`, `2026-11-21T10`, `…T10:02`, `…T10:02:03`, `…T10:02:03.123456` stand
for the first instant of that year, month … microsecond. A time of day is local time, unless `Z` or
an offset such as `+01:00` follows it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ISO: Final = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d(?:[.,]\d{1,9})?)?)?"
    r"(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII,
)
_FIRST_INSTANT: Final = "0000-01-01T00:00:00"


def looks_like_a_time_name(name: bytes) -> bool:
    """True if `name` has the form of a time, a possible one or not."""
    try:
        return _ISO.fullmatch(name.decode("ascii")) is not None
    except UnicodeDecodeError:
        return False


def parse_time_name(text: str) -> int | None:
    """The time that `text` stands for, in microseconds since the epoch; None if it is none."""
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    zone = match[1] or ""
    stamp = text.removesuffix(zone).replace(",", ".")
    try:
        return microseconds(datetime.fromisoformat(stamp + _FIRST_INSTANT[len(stamp) :] + zone))
    except (ValueError, OverflowError):
        return None


def microseconds(time: datetime) -> int:
    """Microseconds since the epoch; a time without a zone is local.

    0 of all times before it, at which there was no file system: nodes are asked for no others.
    """
    if time.tzinfo is None:
        try:
            time = time.astimezone()
        except (ValueError, OverflowError):  # in the first or the last year that there is
            time = time.replace(tzinfo=UTC)
    return max(0, (time - _EPOCH) // _MICROSECOND)


def local(time_us: int) -> datetime:
    """The local time, with its offset."""
    return (_EPOCH + time_us * _MICROSECOND).astimezone()


def format_time_name(time_us: int) -> str:
    """The name of a time: local, unambiguous, to the microsecond."""
    return local(time_us).isoformat(timespec="microseconds")


def format_utc(time_us: int) -> str:
    """The second of a time, in UTC: the same on every machine."""
    return (_EPOCH + time_us * _MICROSECOND).strftime("%Y-%m-%dT%H:%M:%SZ")
