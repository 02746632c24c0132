"""Retention: which versions are kept. One rule for objects and for blocks. [design §8]

Readers see a version from its own time until the time of the version that superseded it. So a
version's age does not count, only how long ago it was superseded: a version that was overwritten a
minute ago was current until a minute ago, however old it is.

A version is kept if one of these keeps it:

1. **Window.** It was current at some time within the detection window W. No client can change
   that: W is the administrator's, in the signed cluster description.
2. **Snapshots.** It was current at the time of a snapshot.
3. **Policy.** It was current at a time that the object's policy chooses: any time, or one per hour,
   day or week. These times are the same for all objects, so that the kept versions form one tree.
4. **Pressure.** A node whose history pool is nearly full lets policies count only from
   `pressure_us` on, which never lies within the window.

The administrator may let history go before its time (`LetGo`): then neither the window nor a policy
keeps what was superseded before a certain moment. Snapshots still do, and so does the present.

A version that is not known to be established (Q/U) or verified (PASIS) supersedes nothing: the one
before it may turn out to be the current one.

**Invariant.** No function here reads a clock: the time is given.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from bftfs import limits
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId

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

Keeps = Callable[[int, int | None], bool]  # True if a version, current between two times, stays


class Tier(NamedTuple):
    """One state in each `every_us` (0: all of them), up to an age (None: whatever their age)."""

    every_us: int
    age_us: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """The choice of versions that are kept once they are older than the detection window."""

    tiers: tuple[Tier, ...]

    def shows(self, since_us: int, until_us: int, *, now_us: int, from_us: int = 0) -> bool:
        """True if the policy chooses a time in [since_us, until_us) from `from_us` on."""
        for every_us, age_us in self.tiers:
            first_us = max(since_us, from_us, 0 if age_us is None else now_us - age_us)
            if every_us:
                first_us = -(-first_us // every_us) * every_us
            if first_us < until_us:
                return True
        return False

    @property
    def is_keep_all(self) -> bool:
        """True if it keeps every version."""
        return (0, None) in self.tiers

    @property
    def longest_us(self) -> int | None:
        """The age up to which it keeps any version; None: without end."""
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
        raise UsageError(f"{text!r} is not a length of time; write for example 30d, 12h or 90min")
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
class LetGo:
    """The administrator's decision to let history go, in the signed description of the cluster.

    Its moment is absolute: a node that hears of it late, or again, lets the same go. Unless it is
    about one client, it lies before the signature by `limits.LET_GO_AFTER_US`: no client can date a
    change so far back, and so nothing is taken that was the truth when it was signed.
    """

    before_s: int  # what was superseded before that; in seconds since the epoch
    signed_s: int
    number: int  # of the first description that has it
    client: ClientId | None = None  # None: versions of any client
    since_s: int = 0  # of a client: only what it has written from then on

    def covers(self, other: LetGo) -> bool:
        """True if all that `other` lets go goes by this one, too."""
        is_wider = self.client is None or (
            self.client == other.client and self.since_s <= other.since_s
        )
        return is_wider and self.before_s >= other.before_s

    def concerns(self, client: ClientId, time_us: int) -> bool:
        """True if it is about versions of that client, and of that time."""
        return self.client is None or (
            self.client == client and time_us >= self.since_s * limits.SECOND_US
        )


def widest(decisions: Iterable[LetGo]) -> tuple[LetGo, ...]:
    """Those decisions that no later one covers."""
    found: list[LetGo] = []
    for each in decisions:
        found = [other for other in found if not each.covers(other)]
        if not any(other.covers(each) for other in found):
            found.append(each)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Retention:
    """The versions of one object that are kept at a time. Requires: `snapshots_us` ascend."""

    now_us: int
    window_us: int
    policies: tuple[Policy, ...] = (KEEP_ALL,)  # a version is kept if any of them keeps it
    snapshots_us: tuple[int, ...] = ()
    pressure_us: int = 0  # policies count from this time on

    @property
    def horizon_us(self) -> int:
        """The beginning of the window."""
        return self.now_us - self.window_us

    def keeps(self, since_us: int, until_us: int | None) -> bool:
        """True if a version that was current from `since_us` until `until_us` is kept.

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
