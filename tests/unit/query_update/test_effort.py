"""The table from outcomes to moves, all of it."""

from __future__ import annotations

from itertools import product

import pytest

from bftfs.query_update.effort import (
    AT_ONCE,
    GIVE_UP,
    LENIENT,
    LOOK,
    NO_FAILURE,
    PAUSE,
    PAUSE_AND_LOOK,
    WAIT_FOR_CLOCKS,
    Effort,
    Move,
    Outcome,
    Step,
    next_move,
)

REPAIR: Move = (Step.REPAIR,)
MAKE_READABLE: Move = (Step.MAKE_READABLE,)

# For each outcome: the moves of a writer after the first, second, … such outcome in a row.
WRITER: dict[Outcome, list[Move]] = {
    Outcome.PROGRESS: [AT_ONCE],
    Outcome.DISORDER: [REPAIR],
    Outcome.INTRUSIVE: [LOOK],
    Outcome.STALE: [AT_ONCE, PAUSE],
    Outcome.IN_LINE: [PAUSE],
    Outcome.OVERTAKEN: [PAUSE_AND_LOOK],
    Outcome.NO_PROGRESS: [PAUSE_AND_LOOK],
    Outcome.UNCERTAIN: [PAUSE_AND_LOOK] * 64 + [GIVE_UP],
    Outcome.UNSETTLED: [AT_ONCE],
    Outcome.PENDING: [PAUSE, (Step.REPAIR, Step.PAUSE)],
    Outcome.OVERDRAWN: [PAUSE],
    Outcome.WRONG_CLOCK: [PAUSE] * 7 + [GIVE_UP],
    Outcome.PUSHED_AHEAD: [WAIT_FOR_CLOCKS],
}
READER = WRITER | {
    Outcome.DISORDER: [
        MAKE_READABLE,
        MAKE_READABLE,
        (Step.MAKE_READABLE, Step.PAUSE),
        (Step.REPAIR, Step.PAUSE),
    ],
    Outcome.UNSETTLED: [AT_ONCE, AT_ONCE, PAUSE],
}
EFFORTS = [
    Effort(*each)
    for each in product(
        (False, True), range(LENIENT + 2), (False, True), (False, True), (0, 63), (0, 6)
    )
]


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("reads", [False, True])
def test_the_moves_are_those_of_the_table(outcome: Outcome, reads: bool) -> None:
    expected = (READER if reads else WRITER)[outcome]
    effort, moves = Effort(reads=reads), []
    for _ in expected:
        move, effort = next_move(outcome, effort)
        moves.append(move)
    assert moves == expected


@pytest.mark.parametrize("outcome", Outcome)
def test_whatever_was_tried_before(outcome: Outcome) -> None:
    """What holds of all efforts: 15 outcomes, 192 efforts each."""
    for effort in EFFORTS:
        move, after = next_move(outcome, effort)
        assert after.reads is effort.reads
        assert after.failures == effort.failures + (outcome not in NO_FAILURE)
        assert move != GIVE_UP
        if Step.LOOK in move:
            assert after.is_fresh, "after a look, what is known is fresh"
        if move and move[-1] is Step.PAUSE:
            assert not after.is_fresh, "after a pause, it is not"
        assert after.has_looked == (effort.has_looked or outcome is Outcome.INTRUSIVE)
        if Step.MAKE_READABLE in move:
            assert effort.reads
        if move == AT_ONCE and outcome not in NO_FAILURE:
            assert after != effort, "nothing is tried again without an end"


def test_a_writer_that_is_always_late_pauses_every_other_time() -> None:
    effort, moves = Effort(), []
    for _ in range(6):
        move, effort = next_move(Outcome.STALE, effort)
        moves.append(move)
    assert moves == [AT_ONCE, PAUSE] * 3


def test_what_was_seen_after_a_pause_is_no_reason_to_hurry() -> None:
    _, effort = next_move(Outcome.OVERTAKEN, Effort())
    assert next_move(Outcome.STALE, effort)[0] == PAUSE
