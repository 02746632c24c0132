"""What may go of the past, against a reader of every moment that has to stay readable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.errors import UsageError
from bftfs.retention import (
    KEEP_ALL,
    Policy,
    Retention,
    Tier,
    format_duration,
    parse_duration,
    parse_policy,
)

Times = st.integers(min_value=0, max_value=60)
Versions = st.lists(st.tuples(Times, st.booleans()), unique_by=lambda each: each[0], max_size=12)
Policies = st.builds(
    Policy,
    st.lists(
        st.builds(Tier, st.sampled_from((0, 3, 7, 20)), st.one_of(st.none(), st.integers(0, 60))),
        max_size=3,
    ).map(tuple),
)
Retentions = st.builds(
    Retention,
    now_us=st.integers(0, 80),
    window_us=st.integers(0, 30),
    policies=st.lists(Policies, max_size=2).map(tuple),
    snapshots_us=st.lists(Times, max_size=3).map(lambda times: tuple(sorted(times))),
    pressure_us=st.integers(0, 80),
)


class Standing(NamedTuple):
    """One version: its time, and whether it is established, or complete and verified."""

    time_us: int
    certain: bool


Collector = Callable[[Sequence[Standing], Retention], tuple[bool, ...]]


def seen_at(versions: Sequence[Standing], at_us: int) -> set[Standing]:
    """What readers may return at `at_us`: down to the first version that is certain."""
    seen = set()
    for version in versions:
        if version.time_us <= at_us:
            seen.add(version)
            if version.certain:
                break
    return seen


def moments(retention: Retention) -> list[int]:
    """Every moment that has to stay readable, found one by one."""
    horizon_us = retention.now_us - retention.window_us
    found = list(range(max(horizon_us, 0), 100))
    found += retention.snapshots_us
    for policy in retention.policies:
        for every_us, age_us in policy.tiers:
            for moment in range(max(retention.pressure_us, 0), 100):
                aged = age_us is not None and moment < retention.now_us - age_us
                if not aged and (every_us == 0 or moment % every_us == 0):
                    found.append(moment)
    return found


def lost(versions: Sequence[Standing], retention: Retention, collector: Collector) -> bool:
    """Whether some moment that has to stay readable lacks a version that it showed."""
    may_go = collector(versions, retention)
    left = {version for version, goes in zip(versions, may_go, strict=True) if not goes}
    return any(not seen_at(versions, moment) <= left for moment in moments(retention))


def by_the_rule(versions: Sequence[Standing], retention: Retention) -> tuple[bool, ...]:
    """What goes of `versions`, which are given newest first: as collectors walk over them."""
    may_go = []
    until_us: int | None = None
    for time_us, certain in versions:
        may_go.append(not retention.keeps(time_us, until_us))
        if certain:
            until_us = time_us
    return tuple(may_go)


def standings(drawn: list[tuple[int, bool]]) -> list[Standing]:
    return [Standing(*each) for each in sorted(drawn, reverse=True)]


@given(Versions, Retentions)
def test_whatever_has_to_stay_readable_does(
    drawn: list[tuple[int, bool]], retention: Retention
) -> None:
    assert not lost(standings(drawn), retention, by_the_rule)


@given(Versions, Retentions)
def test_nothing_else_stays(drawn: list[tuple[int, bool]], retention: Retention) -> None:
    versions = standings(drawn)
    shown = set().union(*(seen_at(versions, moment) for moment in moments(retention)))
    for version, goes in zip(versions, by_the_rule(versions, retention), strict=True):
        newer = [each for each in versions if each.time_us > version.time_us and each.certain]
        if newer and not goes:
            assert version in shown


@given(Versions, Retentions)
def test_collecting_twice_takes_nothing_that_the_first_time_left(
    drawn: list[tuple[int, bool]], retention: Retention
) -> None:
    versions = standings(drawn)
    left = [
        version
        for version, goes in zip(versions, by_the_rule(versions, retention), strict=True)
        if not goes
    ]
    assert not lost(left, retention, by_the_rule)


def ignoring_the_window(versions: Sequence[Standing], retention: Retention) -> tuple[bool, ...]:
    return by_the_rule(versions, Retention(retention.now_us, 0, ()))


def by_their_own_age(versions: Sequence[Standing], retention: Retention) -> tuple[bool, ...]:
    return tuple(version.time_us < retention.horizon_us for version in versions)


def taking_the_uncertain_for_certain(
    versions: Sequence[Standing], retention: Retention
) -> tuple[bool, ...]:
    return by_the_rule([Standing(each.time_us, True) for each in versions], retention)


@pytest.mark.parametrize(
    "wrong", [ignoring_the_window, by_their_own_age, taking_the_uncertain_for_certain]
)
def test_the_check_can_fail(wrong: Collector) -> None:
    versions = [
        Standing(50, certain=True),
        Standing(12, certain=False),
        Standing(11, certain=True),
        Standing(2, certain=True),
    ]
    retention = Retention(now_us=52, window_us=30, policies=())
    assert lost(versions, retention, wrong)
    assert not lost(versions, retention, by_the_rule)


def test_pressure_takes_the_oldest_behind_the_window() -> None:
    versions = [Standing(time_us, certain=True) for time_us in (90, 70, 50, 30, 10)]
    for pressure_us, left in ((0, 5), (40, 4), (60, 3), (1 << 60, 2)):
        retention = Retention(now_us=100, window_us=20, pressure_us=pressure_us)
        assert by_the_rule(versions, retention).count(False) == left


def test_policies_are_written_as_they_are_read() -> None:
    for text in ("all", "all 30d, hourly 60d, daily 1y", "weekly", "all 90min, daily"):
        assert str(parse_policy(str(parse_policy(text)))) == str(parse_policy(text))
    assert parse_policy("all") == KEEP_ALL
    assert parse_duration("0") == 0
    assert format_duration(parse_duration("14d")) == "2w"
    for text in (
        "",
        "sometimes",
        "all forever",
        "all 5",
        "hourly 3 parsecs",
        ",".join(["all"] * 9),
    ):
        with pytest.raises(UsageError):
            parse_policy(text)
