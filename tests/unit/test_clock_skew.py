"""Who is told that his clock is wrong, and who waits."""

from __future__ import annotations

import pytest

from bftfs.clock_skew import is_due, is_pushed_ahead
from bftfs.limits import CLOCK_SKEW_US, SECOND_US

HOUR_US = 3_600 * SECOND_US


@pytest.mark.parametrize(
    ("ahead_us", "waits"),
    [
        (CLOCK_SKEW_US, True),  # somebody has raced to the bound
        (CLOCK_SKEW_US + 100 * SECOND_US, True),  # at nodes that are ahead of the client
        (1, False),  # what follows the latest version: the clock is behind, if it is refused
        (0, False),  # the client's own time
        (-HOUR_US, False),
        (HOUR_US, False),  # everybody else is an hour ahead
    ],
)
def test_only_what_others_can_have_pushed_is_waited_for(ahead_us: int, *, waits: bool) -> None:
    assert is_pushed_ahead(HOUR_US + ahead_us, HOUR_US) is waits


def test_what_was_put_off_is_due_in_time_and_if_the_clock_is_set_back() -> None:
    assert [is_due(1_000, now_us, 10) for now_us in (990, 999)] == [False, False]
    assert [is_due(1_000, now_us, 10) for now_us in (1_000, 1_001, 989, 0)] == [True] * 4
