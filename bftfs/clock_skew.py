"""Whose clock is to blame for a time that nodes refuse [design §4]; and clocks that are set back.

A client whose own clock is wrong is told so. But somebody may have taken a time as far ahead as the
fastest of the correct nodes bear; the others then refuse what comes after it until they have caught
up, and that is no fault of the client that comes next: it waits.
"""

from __future__ import annotations

from bftfs.limits import CLOCK_SKEW_US, CLOCKS_AGREE_US

# Nodes refuse what is CLOCK_SKEW_US ahead of them; they may be ahead of the client by a part of it.
_AHEAD_US = CLOCK_SKEW_US // 4


def is_due(due_us: int, now_us: int, most_us: int) -> bool:
    """True if it is time for what was put off by at most `most_us`, until `due_us`.

    What is further away was put off before the clock was set back.
    """
    return not 0 < due_us - now_us <= most_us


def is_ahead(time_us: int, clock_us: int) -> bool:
    """True if some correct node may refuse `time_us`, as far as a client with this clock can tell.

    A time that is not ahead is taken by every correct node whose clock is not too far behind the
    client's: by the rest of CLOCK_SKEW_US.
    """
    return time_us - clock_us > _AHEAD_US


def is_pushed_ahead(time_us: int, clock_us: int) -> bool:
    """Whether others have brought it about that `time_us` is refused, for a client's clock."""
    return is_ahead(time_us, clock_us) and time_us - clock_us <= CLOCKS_AGREE_US
