"""What to do after a round: one table, from what has happened to the next move.

Updates, queries, repairs and reads of the past go on in the same way. A round has an outcome; the
outcome, and what has been tried so far (`Effort`), determine the next steps. `next_move` is a pure
function, and tests/unit/query_update/test_effort.py goes through all of its cases.

| outcome | what has happened | what is done |
|---|---|---|
| ESTABLISHED | a quorum accepted it, or agrees | it is done |
| REFUSED | a quorum refuses it: the method's own error | it is done |
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
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

LENIENT = 4  # failures, while others may just be at work, before a reader stops them
_BORNE_AT_ONCE = 2  # failures of a reader, before it pauses
_UNCERTAIN = 64  # how often to ask what became of an attempt that servers know nothing of
_WRONG_CLOCK = 8  # attempts whose time the servers find insane


class Outcome(Enum):
    """What has happened in a round."""

    ESTABLISHED = "established"
    REFUSED = "refused"
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


DONE = frozenset({Outcome.ESTABLISHED, Outcome.REFUSED})
NO_FAILURE = DONE | {Outcome.PROGRESS, Outcome.INTRUSIVE}

# Where neither the effort nor the operation makes a difference.
_MOVES: dict[Outcome, Move] = {
    Outcome.ESTABLISHED: AT_ONCE,
    Outcome.REFUSED: AT_ONCE,
    Outcome.PROGRESS: AT_ONCE,
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
    """The steps to take after `outcome`, and the effort up to then."""
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
