"""Contention: how clients that change the same objects make room for each other.

[Q/U §4.3.5, Retry and backoff policies] relies on random exponential back-off. That is enough for
some client to make progress, and not for each: who has just succeeded knows the latest version
before anybody else does, and goes on succeeding while the others back off. So servers let those
that were too late stand in a line, and tell each how many are ahead of it: it tries again when it
may be its turn (`admission.Lines`). And who succeeds while others stand in the line steps back
after a while.

All of this is a courtesy: nothing but speed and fairness depends on it. Who lies about the line,
or stands in it for ever, costs the others a pause of a few rounds.
"""

from __future__ import annotations

from collections import OrderedDict

from bftfs import limits
from bftfs.asking.peers import Pace
from bftfs.conversation import Draw, Now, Pause
from bftfs.identifiers import ObjectId

BACK_OFF_US = 1_000  # bound of the first random back-off, or a round if that takes longer
BACK_OFF_MOST_US = 256_000  # it doubles up to this, or so many rounds if rounds take long
_BACK_OFF_ROUNDS = 16
_PLACE_ROUNDS = 6  # for which one waits for each that is ahead in the line…
_HEAD_ROUNDS = 4  # …and between tries when it may be one's turn
_BELIEVED = 64  # pauses in which the line is believed: it may be of those that never succeed
_STREAK_ROUNDS = 12  # after which one steps back, if others stand in the line…
_ASIDE_ROUNDS = 6  # …for this to twice as many rounds
_STREAK_DOUBLINGS = 2  # of the streak, at most, while nobody takes the turn that is left to him


class BackOff:
    """The random exponential back-off of one operation. [Q/U §4.3.5, Retry and backoff policies]

    Whoever else is at work must be able to finish in the pause: it grows beyond what rounds take,
    unless servers say how many are ahead.
    """

    __slots__ = ("_clocks_us", "_pace", "ahead", "failures")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.failures = 0
        self.ahead: int | None = None  # in the line, if that is known
        self._clocks_us = limits.CLOCKS_PATIENCE_US

    async def pause(self) -> None:
        """Let others go on."""
        round_us = max(BACK_OFF_US, self._pace.mean_us)
        most_us = max(BACK_OFF_MOST_US, _BACK_OFF_ROUNDS * round_us)
        bound_us = min(round_us << min(self.failures, 32), most_us)
        least_us = 0
        if self.ahead is not None and self.failures < _BELIEVED:
            turn_us = min(_PLACE_ROUNDS * self.ahead * round_us, limits.CONTENDED_US // 4)
            bound_us = min(bound_us, turn_us + _HEAD_ROUNDS * round_us)
            least_us = min(turn_us, bound_us) // 2
        self.failures += 1
        await Pause(1 + least_us + await Draw(bound_us - least_us))

    async def pause_for_clocks(self) -> None:
        """Let servers' clocks come to where a time is no longer too far ahead."""
        pause_us = self._clocks_us
        self._clocks_us = min(2 * pause_us, limits.CLOCKS_PATIENCE_MOST_US)
        await Pause(pause_us)


class _Streak:
    """Successes in a row at an object for which others stand in line."""

    __slots__ = ("doublings", "known_us", "since_us")

    def __init__(self, now_us: int) -> None:
        self.since_us = now_us
        self.known_us = now_us  # when servers last said that others stand in line
        self.doublings = 0


class Streaks:
    """One client's successes where others wait: it steps back when it has had its share."""

    __slots__ = ("_pace", "_streaks")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._streaks: OrderedDict[ObjectId, _Streak] = OrderedDict()

    def __bool__(self) -> bool:
        """True if others stand in line for some object."""
        return bool(self._streaks)

    async def step_back(self, names: tuple[ObjectId, ...]) -> None:
        """Leave the turn to others, if it is time."""
        if not self._streaks:
            return
        now_us = await Now()
        round_us = max(BACK_OFF_US, self._pace.mean_us)
        due = []
        for name in names:
            streak = self._streaks.get(name)
            if streak is None:
                continue
            if now_us - streak.known_us > limits.CONTENDED_US:
                del self._streaks[name]
            elif now_us - streak.since_us >= _STREAK_ROUNDS * round_us << streak.doublings:
                due.append(streak)
        if due:
            aside_us = min(_ASIDE_ROUNDS * round_us, limits.CONTENDED_US // 8)
            await Pause(aside_us + await Draw(aside_us))
            now_us = await Now()
            for streak in due:
                streak.since_us = now_us
                streak.doublings = min(streak.doublings + 1, _STREAK_DOUBLINGS)

    async def succeeded(self, names: tuple[ObjectId, ...], others: int) -> None:
        """An update took effect; so many others stand in the line."""
        if not others:
            for name in names if self._streaks else ():
                self._streaks.pop(name, None)
            return
        now_us = await Now()
        for name in names:
            streak = self._streaks.get(name)
            if streak is None:
                streak = self._streaks[name] = _Streak(now_us)
                if len(self._streaks) > limits.CONTENDED_OBJECTS:
                    self._streaks.popitem(last=False)
            streak.known_us = now_us

    def interrupted(self, names: tuple[ObjectId, ...]) -> None:
        """Somebody else had the turn."""
        for name in names if self._streaks else ():
            self._streaks.pop(name, None)
