"""The next move after each round, and how long to pause: one table, and the back-off.

Updates, queries, repairs and reads of the past go on in the same way. A round that does not end
them (a quorum has accepted, refused or answered) has an outcome; that, and what has been tried so
far (`Effort`), determine the next steps. `next_move` is a pure function, and
tests/unit/query_update/test_effort.py goes through all of its cases.

| outcome | what has happened | what is done |
|---|---|---|
| PROGRESS | a step of a repair had its effect | look what is left to be repaired |
| DISORDER | an object has to be repaired first | repair it; a reader is lenient, and pauses then |
| INTRUSIVE | repair would stop others, who may only be at work | look again |
| STALE | somebody else made the next version | try again at once; after a pause, pause again |
| IN_LINE | the same, and others stand in the line | pause, as long as the line is |
| OVERTAKEN | too few accepted it: somebody else got further | pause, then look |
| NO_PROGRESS | a step of a repair changed nothing | pause, then look |
| UNCERTAIN | it is unknown what became of an attempt | pause, then look; in the end, give up |
| UNSETTLED | replies to a query agree on nothing | ask again; the third time, pause |
| PENDING | a candidate that may yet count is undecided | pause; the second time, repair it first |
| OVERDRAWN | benign servers let it wait | pause |
| WRONG_CLOCK | benign servers find this client's clock wrong | pause; in the end, give up |
| PUSHED_AHEAD | somebody has pushed an object's time far ahead | wait for the clocks, then look |

Safety does not depend on any of it: whatever is done next is conditioned on what classification
dictates. [Q/U §4.3.5, Retry and backoff policies]

**Contention.** Clients that change the same objects make room for each other.
[Q/U §4.3.5, Retry and backoff policies] relies on random exponential back-off. That is enough for
some client to make progress, but not for each: a client that has just succeeded is the first to
know the latest version, and goes on succeeding while the others back off. So servers put clients
that were too late in a line, and tell each how many are ahead of it: it tries again when it may be
its turn (`admission.Lines`). And a client that succeeds while others stand in the line steps back
after a while.

All of this is a courtesy: nothing but speed and fairness depends on it. A server that lies about
the line, or a client that stays in it for ever, costs the others a pause of a few rounds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.peers import Pace
from bftfs.clock_skew import is_due
from bftfs.conversation import Draw, Now, Pause
from bftfs.identifiers import ObjectId

LENIENT = 4  # failures, while others may just be at work, before a reader stops them
_BORNE_AT_ONCE = 2  # failures of a reader, before it pauses
_UNCERTAIN = 64  # how often to ask what became of an attempt that servers know nothing of
_WRONG_CLOCK = 8  # attempts whose time the servers find insane


class Outcome(Enum):
    """What has happened in a round."""

    PROGRESS = "progress"
    DISORDER = "disorder"
    INTRUSIVE = "intrusive"
    STALE = "stale"
    IN_LINE = "in line"
    OVERTAKEN = "overtaken"
    NO_PROGRESS = "no progress"
    UNCERTAIN = "uncertain"
    UNSETTLED = "unsettled"
    PENDING = "pending"
    OVERDRAWN = "overdrawn"
    WRONG_CLOCK = "wrong clock"
    PUSHED_AHEAD = "pushed ahead"


class Step(Enum):
    """One part of a move."""

    REPAIR = "repair"
    MAKE_READABLE = "make readable"  # repair, unless a fresh look shows a complete version
    PAUSE = "pause"
    WAIT_FOR_CLOCKS = "wait for clocks"
    LOOK = "look"  # ask a quorum for the replica histories
    GIVE_UP = "give up"


Move = tuple[Step, ...]  # in this order; then the next attempt

AT_ONCE: Move = ()
PAUSE: Move = (Step.PAUSE,)
LOOK: Move = (Step.LOOK,)
PAUSE_AND_LOOK: Move = (Step.PAUSE, Step.LOOK)
WAIT_FOR_CLOCKS: Move = (Step.WAIT_FOR_CLOCKS, Step.LOOK)
GIVE_UP: Move = (Step.GIVE_UP,)


class Effort(NamedTuple):
    """What one operation has tried so far."""

    reads: bool = False  # a reader does not stop others who may just be at work
    failures: int = 0
    is_fresh: bool = False  # what is known was heard after the last pause
    has_looked: bool = False  # before it stopped others
    uncertain: int = 0
    wrong_clock: int = 0


NO_FAILURE = frozenset({Outcome.PROGRESS, Outcome.INTRUSIVE})

# For outcomes after which the effort makes no difference; AT_ONCE after those not listed.
_MOVES: dict[Outcome, Move] = {
    Outcome.INTRUSIVE: LOOK,
    Outcome.STALE: PAUSE,
    Outcome.IN_LINE: PAUSE,
    Outcome.OVERTAKEN: PAUSE_AND_LOOK,
    Outcome.NO_PROGRESS: PAUSE_AND_LOOK,
    Outcome.UNCERTAIN: PAUSE_AND_LOOK,
    Outcome.PENDING: PAUSE,
    Outcome.OVERDRAWN: PAUSE,
    Outcome.WRONG_CLOCK: PAUSE,
    Outcome.PUSHED_AHEAD: WAIT_FOR_CLOCKS,
}


def next_move(outcome: Outcome, effort: Effort) -> tuple[Move, Effort]:
    """The steps to take after `outcome`, and the effort including it."""
    effort = effort._replace(
        failures=effort.failures + (outcome not in NO_FAILURE),
        has_looked=effort.has_looked or outcome is Outcome.INTRUSIVE,
        uncertain=effort.uncertain + (outcome is Outcome.UNCERTAIN),
        wrong_clock=effort.wrong_clock + (outcome is Outcome.WRONG_CLOCK),
    )
    if effort.uncertain > _UNCERTAIN or effort.wrong_clock == _WRONG_CLOCK:
        return GIVE_UP, effort
    if outcome is Outcome.STALE and not effort.is_fresh:
        return AT_ONCE, effort._replace(is_fresh=True)  # its replies show what is the latest
    if outcome is Outcome.DISORDER:
        lenient = effort.reads and effort.failures < LENIENT
        move: Move = (Step.MAKE_READABLE if lenient else Step.REPAIR,)
    elif outcome is Outcome.PENDING and effort.failures > 1:
        move = (Step.REPAIR, Step.PAUSE)
    else:
        move = _MOVES.get(outcome, AT_ONCE)
    tired = effort.reads and effort.failures > _BORNE_AT_ONCE
    if tired and outcome in {Outcome.DISORDER, Outcome.UNSETTLED}:
        move = (*move, Step.PAUSE)
    if Step.LOOK in move or Step.PAUSE in move:
        effort = effort._replace(is_fresh=Step.LOOK in move)
    return move, effort


# --- pauses ---------------------------------------------------------------------------------------

BACK_OFF_US = 1_000  # bound of the first random back-off, or a round if that takes longer
BACK_OFF_MOST_US = 256_000  # it doubles up to this, or so many rounds if rounds take long
_BACK_OFF_ROUNDS = 16
_PLACE_ROUNDS = 6  # how long a client waits for each client ahead of it in the line…
_HEAD_ROUNDS = 4  # …and between tries when it may be its turn
_BELIEVED = 64  # pauses for which it believes the line: perhaps none of those in it succeed
_STREAK_ROUNDS = 12  # of successes, after which it steps back if others stand in the line…
_ASIDE_ROUNDS = 6  # …for this to twice as many rounds
_STREAK_DOUBLINGS = 2  # of the streak, at most, while nobody takes the turn that is left to others


class BackOff:
    """The random exponential back-off of one operation. [Q/U §4.3.5, Retry and backoff policies]

    Others must be able to finish in the pause. So it grows beyond what rounds take, unless servers
    say how many clients are ahead.
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
        """Wait until, by the servers' clocks, a time is no longer too far ahead."""
        pause_us = self._clocks_us
        self._clocks_us = min(2 * pause_us, limits.CLOCKS_PATIENCE_MOST_US)
        await Pause(pause_us)


@dataclass(slots=True)
class _Streak:
    """Successes in a row at an object for which others stand in line."""

    since_us: int
    known_us: int = 0  # when servers last said that others stand in line
    doublings: int = 0


class Streaks:
    """One client's successes at contended objects: it steps back when it has had its share."""

    __slots__ = ("_pace", "_streaks")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._streaks: OrderedDict[ObjectId, _Streak] = OrderedDict()

    def __bool__(self) -> bool:
        """True if others stand in line for some object."""
        return bool(self._streaks)

    async def step_back(self, names: tuple[ObjectId, ...]) -> None:
        """Leave the turn to others, if it is time."""
        now_us = await Now()
        round_us = max(BACK_OFF_US, self._pace.mean_us)
        due = []
        for name in names:
            streak = self._streaks.get(name)
            if streak is None:
                continue
            if is_due(streak.known_us + limits.CONTENDED_US, now_us, limits.CONTENDED_US):
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
        """An update took effect; `others` stand in the line."""
        if not others:
            self.interrupted(names)
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
        """Somebody else had the turn, or nobody stands in line any more."""
        for name in names if self._streaks else ():
            self._streaks.pop(name, None)
