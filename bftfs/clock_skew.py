"""Whose clock is to blame for a time that nodes refuse [design §4]; and clocks that are set back.

Nodes refuse times that are too far ahead of their clocks. A client whose own clock is wrong is told
so. But another client may have used a time so far ahead that only the fastest correct nodes take
it. The next version needs a later time, and the slower nodes refuse that until their clocks catch
up. This is not the next client's fault, so it waits and tries again.
"""

from __future__ import annotations

from bftfs.limits import CLOCK_SKEW_US, CLOCKS_AGREE_US

# Nodes refuse times CLOCK_SKEW_US ahead of their clocks, which may differ from the client's.
NEAR_US = CLOCK_SKEW_US // 4


def is_due(due_us: int, now_us: int, most_us: int) -> bool:
    """True if it is time for what was put off by at most `most_us`, until `due_us`.

    What is further away was put off before the clock was set back.
    """
    return not 0 < due_us - now_us <= most_us


def is_ahead(time_us: int, clock_us: int) -> bool:
    """True if `time_us` is so far ahead of a client's clock that correct nodes may refuse it.

    Otherwise all correct nodes take it whose clocks are at most the remaining three quarters of
    CLOCK_SKEW_US behind the client's.
    """
    return time_us - clock_us > NEAR_US


def is_pushed_ahead(time_us: int, clock_us: int) -> bool:
    """True if `time_us` is refused because others took a time ahead, not because of the clock."""
    return is_ahead(time_us, clock_us) and time_us - clock_us <= CLOCKS_AGREE_US
