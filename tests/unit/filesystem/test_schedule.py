"""Schedules of snapshots: their rules, and the methods of the volume that follow them."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.errors import UsageError
from bftfs.filesystem import registry
from bftfs.filesystem.directory import Name
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.schedule import KEPT, Rule, is_due, kept_times, parse_rules
from bftfs.filesystem.volume import (
    SCHEDULES,
    SCHEDULES_OF_ONE,
    SNAPSHOTS_OF_ONE,
    Followed,
    Format,
    Schedule,
    ScheduleName,
    ScheduleSetting,
    Snapshot,
    SnapshotCreation,
)
from bftfs.identifiers import ObjectId
from tests.builders import InMemoryObjects
from tests.unit.filesystem.test_directory import refused
from tests.unit.filesystem.world import ALICE, BOB, ROOT, ROOT_ID, VOLUME_ID

MINUTE = 60 * 1_000_000
HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE
MIDNIGHT = 20_000 * DAY
HOURLY_AND_DAILY = parse_rules("every 1h keep 24, every 1d keep 30")


@dataclass
class Volume:
    """A volume whose clock the test sets."""

    now_us: int = MIDNIGHT
    objects: InMemoryObjects = field(init=False)

    def __post_init__(self) -> None:
        self.objects = InMemoryObjects(lambda: self.now_us)
        self.objects.perform(registry.FORMAT, (VOLUME_ID, ROOT_ID), Format(4096, 0o755), ROOT)

    def perform(self, method: str, arguments: Any, who: Any = ALICE) -> Any:
        return self.objects.perform(method, (VOLUME_ID,), arguments, who)

    def schedule(
        self,
        rules: tuple[Rule, ...] = HOURLY_AND_DAILY,
        who: Any = ALICE,
        *,
        directory: ObjectId = ROOT_ID,
        label: bytes = b"team",
    ) -> None:
        setting = ScheduleSetting(directory, label, b"/team", rules)
        self.perform(registry.SET_SCHEDULE, setting, who)

    def follow(self, who: Any = ALICE, *, of: Any = ALICE) -> Followed:
        followed: Followed = self.perform(
            registry.FOLLOW_SCHEDULE, ScheduleName(ROOT_ID, of.uid), who
        )
        return followed

    def create(self, name: bytes, who: Any = ALICE) -> None:
        self.perform(registry.CREATE_SNAPSHOT, SnapshotCreation(name), who)

    def snapshots(self) -> list[Snapshot]:
        found = self.perform(registry.LIST_SNAPSHOTS, NoArguments()).snapshots
        return sorted(found, key=lambda each: each.time_us)

    def schedules(self) -> tuple[Schedule, ...]:
        found: tuple[Schedule, ...] = self.perform(registry.LIST_SCHEDULES, NoArguments()).schedules
        return found


# --- rules ------------------------------------------------------------------------------------


def test_rules_are_read_as_they_are_shown() -> None:
    assert list(HOURLY_AND_DAILY) == [Rule(HOUR, 24), Rule(DAY, 30)]
    assert parse_rules(", ".join(map(str, HOURLY_AND_DAILY))) == HOURLY_AND_DAILY
    assert parse_rules(" every  90min  keep 2 ") == (Rule(90 * MINUTE, 2),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a rule is `every TIME keep NUMBER`"),
        ("hourly", "a rule is"),
        ("every 1h", "a rule is"),
        ("every 1h keep", "a rule is"),
        ("every 1h keep 24,", "a rule is"),
        ("every 1h keep -1", "a rule is"),
        ("every 1 fortnight keep 3", "not a length of time"),
        ("every 5s keep 3", "a period lasts from 1min"),
        ("every 99y keep 3", "a period lasts from 1min"),
        ("every 1h keep 0", "a rule keeps from 1"),
        ("every 1h keep 999999999", "a rule keeps from 1"),
        ("every 1h keep 100, every 1d keep 100", "the rules keep 200 snapshots together"),
        ("every 1h keep 3, every 60min keep 5", "the same period"),
        (", ".join(f"every {n}h keep 1" for n in range(1, 10)), "from 1 to 8 rules"),
    ],
)
def test_wrong_rules_are_explained(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_rules(text)


@given(st.lists(st.integers(0, 40 * 24), unique=True, max_size=60), st.integers(0, 40 * 24))
def test_what_is_kept_once_is_what_is_kept_again(hours: list[int], now: int) -> None:
    """To let go twice is to let go once; what is due is kept when it has been made."""
    times = [MIDNIGHT + hour * HOUR for hour in hours if hour <= now]
    kept = kept_times(HOURLY_AND_DAILY, times)
    assert kept_times(HOURLY_AND_DAILY, kept) == kept
    assert len(kept) <= 54
    now_us = MIDNIGHT + now * HOUR
    if is_due(HOURLY_AND_DAILY, times, now_us):
        assert now_us in kept_times(HOURLY_AND_DAILY, [*times, now_us])
    assert not is_due(HOURLY_AND_DAILY, [*times, now_us], now_us)


# --- schedules --------------------------------------------------------------------------------


def test_hours_and_days_are_kept_as_the_rules_say() -> None:
    volume = Volume()
    volume.schedule()
    for quarter in range(40 * 24 * 4):
        volume.now_us = MIDNIGHT + quarter * 15 * MINUTE + 5
        volume.follow()
    times = [each.time_us for each in volume.snapshots()]
    latest = MIDNIGHT + 40 * DAY - HOUR
    hours = {(latest - number * HOUR) // HOUR for number in range(24)}
    days = {latest // DAY - number for number in range(30)}
    assert {time // HOUR for time in times} == hours | {day * 24 for day in days}
    assert len(times) == 24 + 29, "this day's first one is one of the hours as well"
    assert all(
        each.time_us == each.made_us and each.uid == ALICE.uid for each in volume.snapshots()
    )


def test_following_it_again_changes_nothing() -> None:
    volume = Volume()
    volume.schedule()
    made = volume.follow().made
    assert made is not None
    assert made.name == b"team-2024-10-04T00:00:00Z"
    rows = dict(volume.objects.rows[VOLUME_ID])
    assert volume.follow() == Followed(None, ())
    assert volume.objects.rows[VOLUME_ID] == rows


def test_what_was_missed_is_made_up_for_by_one_snapshot() -> None:
    volume = Volume()
    volume.schedule()
    volume.follow()
    volume.now_us += 100 * DAY
    assert volume.follow().made is not None
    assert volume.follow().made is None
    assert len(volume.snapshots()) == 2


def test_only_what_the_schedule_has_made_is_removed() -> None:
    volume = Volume()
    volume.schedule(parse_rules("every 1h keep 1"))
    first = volume.follow().made
    assert first is not None
    volume.create(b"team-by-hand")
    volume.perform(registry.DELETE_SNAPSHOT, Name(first.name))
    volume.now_us += MINUTE
    volume.create(first.name)  # by hand, under a name that the schedule has used
    for _ in range(3):
        volume.now_us += HOUR
        volume.follow()
    names = [each.name for each in volume.snapshots()]
    assert names[:2] == [b"team-by-hand", first.name]
    assert len(names) == 3
    volume.perform(registry.DELETE_SCHEDULE, ScheduleName(ROOT_ID, ALICE.uid))
    assert [each.name for each in volume.snapshots()] == names
    refused(errno.ENOENT, volume.follow)


def test_a_name_that_is_taken_is_left_alone() -> None:
    volume = Volume()
    volume.create(b"team-2024-10-04T00:00:00Z", BOB)
    volume.schedule()
    made = volume.follow().made
    assert made is not None
    assert made.name == b"team-2024-10-04T00:00:00Z-2"


def test_other_rules_count_for_what_was_made_before() -> None:
    volume = Volume()
    volume.schedule()
    for _ in range(5):
        volume.follow()
        volume.now_us += HOUR
    volume.schedule(parse_rules("every 1d keep 2"))
    assert len(volume.follow().removed) == 4
    assert len(volume.snapshots()) == 1


def test_a_schedule_is_its_users() -> None:
    volume = Volume()
    volume.schedule()
    volume.schedule(who=BOB)
    assert {each.uid for each in volume.schedules()} == {ALICE.uid, BOB.uid}
    refused(errno.EPERM, lambda: volume.follow(BOB))
    remove = ScheduleName(ROOT_ID, ALICE.uid)
    refused(errno.EPERM, lambda: volume.perform(registry.DELETE_SCHEDULE, remove, BOB))
    followed = volume.follow(ROOT)
    assert followed.made is not None
    assert followed.made.uid == ALICE.uid, "whoever follows it"
    volume.perform(registry.DELETE_SCHEDULE, remove, ROOT)
    assert [each.uid for each in volume.schedules()] == [BOB.uid]


def directory(number: int) -> ObjectId:
    return ObjectId(ROOT_ID[:8] + number.to_bytes(8, "big"))


def test_schedules_and_their_snapshots_are_bounded() -> None:
    volume = Volume()
    for number in range(SCHEDULES_OF_ONE):
        volume.schedule(directory=directory(number))
    refused(errno.EDQUOT, lambda: volume.schedule(directory=directory(99)))
    volume.schedule(directory=directory(0), label=b"other")  # it has this one already
    for number in range(SCHEDULES_OF_ONE, SCHEDULES):
        volume.schedule(who=ROOT, directory=directory(number))
    refused(errno.EDQUOT, lambda: volume.schedule(who=ROOT, directory=directory(99)))
    other = Volume()
    other.schedule()
    for number in range(SNAPSHOTS_OF_ONE):
        other.create(b"by hand %d" % number)
    refused(errno.EDQUOT, other.follow)
    refused(errno.EDQUOT, lambda: other.follow(ROOT))


def test_what_clients_of_any_kind_may_not_ask_is_refused() -> None:
    volume = Volume()
    refused(errno.ENOENT, lambda: volume.schedule(label=b""))
    for label in (b".hidden", b"a/b", b"2026"):
        refused(errno.EINVAL, lambda label=label: volume.schedule(label=label))
    for rules in ((), (Rule(HOUR, KEPT), Rule(DAY, 1)), (Rule(HOUR, 1), Rule(HOUR, 2))):
        refused(errno.EINVAL, lambda rules=rules: volume.schedule(rules))
    assert volume.schedules() == ()


@pytest.mark.parametrize("seed", range(3))
def test_a_full_schedule_is_within_the_bounds_of_updates(seed: int) -> None:
    """`InMemoryObjects` checks the bounds of values, updates and answers."""
    draw = random.Random(seed)
    volume = Volume()
    volume.schedule((Rule(MINUTE, KEPT),), label=b"x" * 64)
    for _ in range(2 * KEPT):
        volume.now_us += MINUTE + draw.randrange(MINUTE)
        volume.follow()
    assert len(volume.snapshots()) == KEPT
    volume.schedule((Rule(DAY, 1),))
    assert len(volume.follow().removed) >= KEPT - 1
