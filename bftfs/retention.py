"""What of the past has to stay: one rule, for objects and for blocks. [design §8]

A version is what readers see from its own time until the time of the version that superseded it.
So it is not a version's age that counts, but how long ago it was superseded: what was overwritten a
minute ago has been the truth until a minute ago, however old it is.

In this order:

1. **Window.** What was the truth at any moment younger than the detection window W stays, whatever
   any client does. W is the administrator's, in the signed cluster description.
2. **Snapshots.** What was the truth at a snapshot's time stays.
3. **Policy.** Behind the window, what the policy shows stays: everything, or one state per hour,
   day, week. Its moments are the same for all objects, so that what stays is one tree.
4. **Pressure.** A node whose history pool is full forgets what no moment from `pressure_us` on
   shows; that moment never lies within the window.

A version that is not known to be established (Q/U) or verified (PASIS) supersedes nothing: it may
have to give way to the one before it.

**Invariant.** No function here reads a clock: the time is given.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from bftfs import limits
from bftfs.errors import UsageError

_SECOND: Final = limits.SECOND_US
_UNITS: Final = {
    "s": _SECOND,
    "min": 60 * _SECOND,
    "h": 3600 * _SECOND,
    "d": 86_400 * _SECOND,
    "w": 7 * 86_400 * _SECOND,
    "y": 365 * 86_400 * _SECOND,
}
_NAMED: Final = {
    "all": 0,
    "hourly": _UNITS["h"],
    "daily": _UNITS["d"],
    "weekly": _UNITS["w"],
}
_NOTHING: Final = "none"
_DURATION: Final = re.compile(r"([0-9]{1,10}) ?(s|min|h|d|w|y)")
TIERS: Final = 8  # of one policy
POLICY_BYTES: Final = 128  # written out

Keeps = Callable[[int, int | None], bool]  # whether what was seen from one time to another stays


class Tier(NamedTuple):
    """One state in each `every_us` (0: all of them), up to an age (None: whatever their age)."""

    every_us: int
    age_us: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """What stays of the past behind the detection window."""

    tiers: tuple[Tier, ...]

    def shows(self, since_us: int, until_us: int, *, now_us: int, from_us: int = 0) -> bool:
        """Whether one of its moments lies in [since_us, until_us), none earlier than `from_us`."""
        for every_us, age_us in self.tiers:
            first_us = max(since_us, from_us, 0 if age_us is None else now_us - age_us)
            if every_us:
                first_us = -(-first_us // every_us) * every_us
            if first_us < until_us:
                return True
        return False

    @property
    def is_keep_all(self) -> bool:
        """Whether it lets nothing go."""
        return (0, None) in self.tiers

    @property
    def longest_us(self) -> int | None:
        """The age up to which it keeps anything; None: it has no end."""
        ages = [age_us for _, age_us in self.tiers]
        return None if None in ages else max((age or 0 for age in ages), default=0)

    def __str__(self) -> str:
        if not self.tiers:
            return _NOTHING
        names = {every_us: name for name, every_us in _NAMED.items()}
        return ", ".join(
            names[every_us] + ("" if age_us is None else f" {format_duration(age_us)}")
            for every_us, age_us in self.tiers
        )


KEEP_ALL: Final = Policy((Tier(0, None),))


def parse_duration(text: str) -> int:
    """Microseconds in `30d`, `12h`, `90min`, `45s`, `2w`, `1y`; or `0`."""
    if text.strip() == "0":
        return 0
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no length of time; write for example 30d, 12h or 90min")
    return int(found[1]) * _UNITS[found[2]]


def format_duration(duration_us: int) -> str:
    """As `parse_duration` reads it, in the largest unit that divides it."""
    for name in ("y", "w", "d", "h", "min"):
        if duration_us and duration_us % _UNITS[name] == 0:
            return f"{duration_us // _UNITS[name]}{name}"
    return f"{duration_us // _SECOND}s"


def parse_policy(text: str) -> Policy:
    """The policy in words such as `all 30d, hourly 60d, daily 1y, weekly`, or `none`."""
    tiers = []
    if text.strip() in (_NOTHING, "0"):
        return Policy(())
    for part in text.split(","):
        name, _, age = part.strip().partition(" ")
        if name not in _NAMED:
            raise UsageError(
                f"{part.strip()!r}: a policy is made of all, hourly, daily and weekly, each with "
                "an age up to which it holds, or none: `all 30d, daily 1y, weekly`"
            )
        tiers.append(Tier(_NAMED[name], parse_duration(age) if age.strip() else None))
    policy = Policy(tuple(tiers))
    if len(tiers) > TIERS or len(str(policy)) > POLICY_BYTES:
        raise UsageError(f"a policy has at most {TIERS} parts")
    return policy


@dataclass(frozen=True, slots=True)
class Retention:
    """What has to stay of one object at one moment.

    Requires: `snapshots_us` ascend.
    """

    now_us: int
    window_us: int
    policies: tuple[Policy, ...] = (KEEP_ALL,)  # what any of them keeps stays
    snapshots_us: tuple[int, ...] = ()
    pressure_us: int = 0  # policies count from this moment on

    @property
    def horizon_us(self) -> int:
        """The first moment of the window."""
        return self.now_us - self.window_us

    @property
    def lets_go(self) -> bool:
        """Whether anything at all may go."""
        return self.pressure_us > 0 or not any(policy.is_keep_all for policy in self.policies)

    def keeps(self, since_us: int, until_us: int | None) -> bool:
        """Whether what was the truth from `since_us` until `until_us` has to stay.

        None: nothing supersedes it for certain.
        """
        if until_us is None or until_us > self.horizon_us:
            return True
        position = bisect_left(self.snapshots_us, since_us)
        if position < len(self.snapshots_us) and self.snapshots_us[position] < until_us:
            return True
        return any(
            policy.shows(since_us, until_us, now_us=self.now_us, from_us=self.pressure_us)
            for policy in self.policies
        )
