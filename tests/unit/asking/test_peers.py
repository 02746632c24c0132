"""Whom a principal asks last, and whom it disbelieves: as few as explain what it heard."""

from __future__ import annotations

from bftfs import limits
from bftfs.asking.peers import (
    DIVERGENCES,
    MEMORY_US,
    PATIENCE_US,
    SILENCE_US,
    Condition,
    Pace,
    Peers,
)
from bftfs.asking.quorum import NOBODY, Nodes, ThresholdQuorums
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

ORDER = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1)).preference(0)


def peers(b: int = 1) -> Peers:
    return Peers(ThresholdQuorums(QueryUpdateThresholds.smallest(t=b, b=b)))


def accuse(subject: Peers, accuser: int, *accused: int) -> None:
    subject.accuse(NodeId(accuser), Nodes.of(accused), 0)


def dispute(subject: Peers, accuser: int, *accused: int) -> None:
    subject.accuse(NodeId(accuser), NOBODY, 0, insane=Nodes.of(accused))


def test_nobody_is_disbelieved_without_a_reason() -> None:
    assert peers().disbelieved == NOBODY


def test_more_than_b_accusers_convict() -> None:
    subject = peers()
    accuse(subject, 1, 0)
    accuse(subject, 2, 0)
    assert subject.disbelieved == Nodes(0b000001)


def test_who_accuses_two_is_disbelieved_and_not_the_accused() -> None:
    subject = peers()
    accuse(subject, 5, 0, 1)
    assert subject.disbelieved == Nodes(0b100000)
    assert NodeId(5) in subject.disbelieved
    assert NodeId(0) not in subject.disbelieved


def test_a_single_quarrel_disbelieves_the_accused() -> None:
    subject = peers()
    accuse(subject, 5, 0)
    assert subject.disbelieved == Nodes(0b000001)


def test_quarrels_that_b_liars_cannot_explain_shun_nobody() -> None:
    subject = peers()
    accuse(subject, 0, 1)
    accuse(subject, 2, 3)
    assert subject.disbelieved == NOBODY


def test_what_is_proven_outlasts_a_slow_clocks_accusations() -> None:
    subject = peers()
    for accuser in (0, 1, 2, 5):
        accuse(subject, accuser, 3)  # they find its histories forged
    dispute(subject, 4, 0, 1, 2, 3, 5)  # its clock is slow: it finds all others insane
    assert subject.disbelieved == Nodes.of([3])


def test_what_b_plus_1_find_insane_convicts_nobody() -> None:
    """All of them may be correct: the time lies between their clocks and two others'."""
    subject = peers()
    for slow in (1, 3, 4):
        dispute(subject, slow, 0, 5)
    assert subject.disbelieved == NOBODY
    for accuser in (0, 1):
        accuse(subject, accuser, 2)
    assert subject.disbelieved == Nodes.of([2])
    assert subject.convicted == Nodes.of([2])


def test_disputes_that_liars_cannot_explain_hide_no_quarrel() -> None:
    subject = peers()
    for slow in (1, 3, 4):
        dispute(subject, slow, 0, 5)
    accuse(subject, 3, 2)
    assert subject.disbelieved == Nodes.of([2])


def test_a_time_that_all_others_find_insane_is_a_reason() -> None:
    subject = peers()
    for slow in (0, 1, 3, 4, 5):
        dispute(subject, slow, 2)
    assert subject.disbelieved == Nodes.of([2])
    assert subject.convicted == NOBODY


def test_many_disputes_are_not_weighed_for_long() -> None:
    """Of 26 servers each disputes the times of all whose clocks are ahead of its own."""
    subject = peers(b=5)
    for slow in range(subject.quorums.n):
        dispute(subject, slow, *range(slow))
    assert subject.disbelieved == NOBODY


def test_with_more_liars_more_are_disbelieved() -> None:
    subject = peers(b=2)
    accuse(subject, 0, 1, 2, 3)
    accuse(subject, 5, 6, 7)
    assert subject.disbelieved == Nodes(0b100001)


def test_nobody_quarrels_with_itself() -> None:
    subject = peers()
    accuse(subject, 3, 3)
    assert subject.disbelieved == NOBODY


def test_a_proven_lie_convicts_at_once() -> None:
    subject = peers()
    subject.convict(Nodes(0b100), 0)
    assert subject.disbelieved == Nodes(0b100)
    subject.convict(Nodes(0b1000), 0)
    assert subject.disbelieved == NOBODY, "two cannot both be lying if b is one"


def test_a_contrary_server_is_disbelieved_for_long() -> None:
    subject = peers()
    for _ in range(DIVERGENCES - 1):
        subject.diverged(Nodes(0b100), 0)
    assert subject.disbelieved == NOBODY
    for _ in range(10):
        subject.diverged(Nodes(0b100), 0)
    assert subject.disbelieved == Nodes(0b100)
    subject.conformed(Nodes(0b111111))
    assert subject.disbelieved == Nodes(0b100), "one agreement may be feigned"
    for _ in range(100):
        subject.conformed(Nodes(0b111111))
    assert subject.disbelieved == NOBODY


def test_who_lies_every_other_time_is_disbelieved() -> None:
    subject = peers()
    for _ in range(2 * DIVERGENCES):
        subject.diverged(Nodes(0b100), 0)
        subject.conformed(Nodes(0b111111))
    assert subject.disbelieved == Nodes(0b100)


def test_who_is_ahead_of_others_now_and_then_is_not_disbelieved() -> None:
    subject = peers()
    for number in range(1000):
        if number % 6 == 0:
            subject.diverged(Nodes(0b100), 0)
        else:
            subject.conformed(Nodes(0b111111))
        assert subject.disbelieved == NOBODY


def test_a_proof_outlasts_doubts_about_suspicions() -> None:
    subject = peers()
    subject.convict(Nodes(0b1), 0)
    subject.relent()
    assert subject.disbelieved == Nodes(0b1)
    subject.forget()
    for _ in range(DIVERGENCES):
        subject.diverged(Nodes(0b10), 0)
    assert subject.disbelieved == Nodes(0b10)
    subject.relent()
    assert subject.disbelieved == NOBODY


def test_suspicion_is_forgotten() -> None:
    subject = peers()
    subject.convict(Nodes(0b1), 0)
    subject.order(ORDER, MEMORY_US - 1)
    assert subject.disbelieved == Nodes(0b1)
    subject.order(ORDER, MEMORY_US)
    assert subject.disbelieved == NOBODY
    subject.convict(Nodes(0b10), MEMORY_US)
    subject.forget()
    assert subject.disbelieved == NOBODY


# --- asked last -----------------------------------------------------------------------------


def test_the_silent_are_asked_last_and_along_when_it_is_time() -> None:
    subject = peers()
    assert subject.order(ORDER, 0) == (ORDER, ())
    subject.silent(NodeId(1), 0)
    assert not subject.willing(NodeId(1))
    assert subject.order(ORDER, 1) == ((0, 2, 3, 4, 5, 1), ())
    assert subject.order(ORDER, SILENCE_US) == ((0, 2, 3, 4, 5, 1), (1,))
    assert subject.order(ORDER, SILENCE_US) == ((0, 2, 3, 4, 5, 1), ()), "once per interval"
    subject.answered(NodeId(1))
    assert subject.order(ORDER, SILENCE_US) == (ORDER, ())


def test_who_stays_silent_is_tried_less_and_less() -> None:
    subject = peers()
    now, intervals = 0, []
    for _ in range(8):
        subject.silent(NodeId(0), now)
        later = now
        while not subject.order(ORDER, later)[1]:
            later += SILENCE_US
        intervals.append((later - now) // SILENCE_US)
        now = later + 100 * SILENCE_US
    assert intervals[:4] == [1, 2, 4, 8]
    assert intervals[-1] == 30


def test_an_outage_is_no_round() -> None:
    """Or who was cut off for an hour would back off for as long from whoever is at work."""
    subject = Pace(hedge_us=1, patience_us=PATIENCE_US)
    subject.took(3_600 * limits.SECOND_US)
    assert subject.mean_us <= limits.SECOND_US


def test_patience_adapts_within_bounds() -> None:
    subject = Pace(hedge_us=1, patience_us=PATIENCE_US)
    assert subject.patience_us == PATIENCE_US
    for _ in range(100):
        subject.took(100_000)
    assert 700_000 < subject.patience_us <= 800_000
    for _ in range(100):
        subject.took(10_000_000)
    assert subject.patience_us == 2_000_000
    for _ in range(200):
        subject.took(10)
    assert subject.patience_us == PATIENCE_US


def test_who_answers_now_and_then_is_noticed_ever_more_rarely() -> None:
    subject, now, waits = peers(), 0, []
    for _ in range(7):
        subject.silent(NodeId(0), now)
        began = now
        while not subject.order(ORDER, now)[1]:
            now += SILENCE_US // 10
        subject.answered(NodeId(0))  # …to what it was asked along
        waits.append((now - began) // SILENCE_US)
        now += 1
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    now += 10 * 30 * SILENCE_US
    subject.silent(NodeId(0), now)
    assert not subject.order(ORDER, now + SILENCE_US - 1)[1]
    assert subject.order(ORDER, now + SILENCE_US)[1], "it was well for a long time"


def test_a_first_silence_is_forgiven_at_the_next_answer() -> None:
    subject = peers()
    subject.silent(NodeId(1), 0)
    assert subject.condition(NodeId(1)) is Condition.SILENT
    subject.answered(NodeId(1))
    assert subject.condition(NodeId(1)) is Condition.WELL
    subject.silent(NodeId(1), 1)
    subject.answered(NodeId(1))
    assert not subject.willing(NodeId(1)), "soon after, only a probe shows that it is well"
    assert subject.order(ORDER, 2 * SILENCE_US + 1)[1] == (1,)
    subject.answered(NodeId(1))
    assert subject.willing(NodeId(1))


def test_the_silent_are_asked_after_those_that_answer() -> None:
    subject = peers()
    subject.silent(NodeId(0), 0)
    for now_us in (0, 1):
        subject.silent(NodeId(1), now_us)
        subject.answered(NodeId(1))
    assert subject.order(ORDER, 2) == ((2, 3, 4, 5, 1, 0), ())


def test_a_damaged_fragment_is_not_forgiven_at_the_next_answer() -> None:
    subject = peers()
    subject.damaged(NodeId(1), 0)
    subject.answered(NodeId(1))
    assert subject.condition(NodeId(1)) is Condition.DAMAGED
    assert not subject.order(ORDER, limits.AVOID_FAULTY_US - 1)[1]
    assert subject.order(ORDER, limits.AVOID_FAULTY_US)[1] == (1,)
    subject.answered(NodeId(1))
    assert subject.willing(NodeId(1))
    assert subject.faults == [0, 1, 0, 0, 0, 0]
    assert not subject.disbelieved, "its word still counts"


def test_the_disbelieved_come_after_the_silent() -> None:
    subject = peers()
    subject.silent(NodeId(0), 0)
    subject.convict(Nodes(0b100), 0)
    assert subject.condition(NodeId(2)) is Condition.LYING
    assert subject.order(ORDER, 1) == ((1, 3, 4, 5, 0, 2), ())


# --- Rule 2 ---------------------------------------------------------------------------------


def test_nobody_who_is_needed_is_disbelieved_for_divergences() -> None:
    subject = peers()
    subject.silent(NodeId(0), 0)
    for _ in range(10 * DIVERGENCES):
        subject.diverged(Nodes(0b100), 0)
    assert not subject.disbelieved


def fail(subject: Peers, failures: int, disbelieved: int, ahead: int = 0) -> None:
    subject.failed(failures, disbelieved=disbelieved, ahead_of_clock=ahead, now_us=0)


def test_after_failures_what_is_not_proven_is_forgotten() -> None:
    """Sooner if those that are believed are no quorum; but each suspicion is given its chance."""
    subject = peers()
    for _ in range(DIVERGENCES):
        subject.diverged(Nodes(0b100), 0)
    for failures in range(1, 8):
        fail(subject, failures, Nodes(0b100))
    assert subject.disbelieved
    fail(subject, 8, 0)
    assert subject.disbelieved, "the attempt has only just raised it"
    subject.silent(NodeId(0), 0)
    fail(subject, 2, Nodes(0b100))
    assert subject.disbelieved
    fail(subject, 3, Nodes(0b100))
    assert not subject.disbelieved


def test_after_failures_disputes_of_the_past_are_forgotten() -> None:
    subject = peers()
    for slow in (1, 3, 4):
        dispute(subject, slow, 0, 5)
    fail(subject, 7, NOBODY)
    dispute(subject, 1, 2)
    assert not subject.disbelieved
    fail(subject, 8, NOBODY)
    dispute(subject, 1, 2)
    assert subject.disbelieved == Nodes.of([2])


def test_who_needs_those_that_are_ahead_doubts_its_clock() -> None:
    subject, far_us = peers(), limits.CLOCK_SKEW_US
    fail(subject, 3, NOBODY, ahead=Nodes(0b100))
    assert subject.is_ahead(far_us, 0), "a quorum is left without it"
    subject.silent(NodeId(0), 0)
    fail(subject, 2, NOBODY, ahead=Nodes(0b100))
    assert subject.is_ahead(far_us, 0)
    fail(subject, 3, NOBODY, ahead=Nodes(0b100))
    assert not subject.is_ahead(far_us, 0)
    paused_us = limits.CLOCKS_PATIENCE_MOST_US
    assert not subject.is_ahead(far_us + paused_us, paused_us), "after the next pause"
    assert subject.is_ahead(far_us + 2 * paused_us, 2 * paused_us), "and no longer"
