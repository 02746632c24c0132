"""Whom a client shuns: as few as explain what it heard, and never too many."""

from __future__ import annotations

from bftfs.asking.quorum import ThresholdQuorums
from bftfs.identifiers import NodeId
from bftfs.query_update.suspicion import DIVERGENCES, MEMORY_US, Suspicion
from bftfs.thresholds import QueryUpdateThresholds


def suspicion(b: int = 1) -> Suspicion:
    return Suspicion(ThresholdQuorums(QueryUpdateThresholds.smallest(t=b, b=b)))


def accuse(subject: Suspicion, accuser: int, *accused: int) -> None:
    subject.accuse(NodeId(accuser), sum(1 << node for node in accused), 0)


def test_nobody_is_shunned_without_a_reason() -> None:
    assert suspicion().shunned == 0


def test_more_than_b_accusers_convict() -> None:
    subject = suspicion()
    accuse(subject, 1, 0)
    accuse(subject, 2, 0)
    assert subject.shunned == 0b000001


def test_who_accuses_two_is_shunned_and_not_the_accused() -> None:
    subject = suspicion()
    accuse(subject, 5, 0, 1)
    assert subject.shunned == 0b100000
    assert subject.shuns(NodeId(5))
    assert not subject.shuns(NodeId(0))


def test_a_single_quarrel_shuns_the_accused() -> None:
    subject = suspicion()
    accuse(subject, 5, 0)
    assert subject.shunned == 0b000001


def test_quarrels_that_b_liars_cannot_explain_shun_nobody() -> None:
    subject = suspicion()
    accuse(subject, 0, 1)
    accuse(subject, 2, 3)
    assert subject.shunned == 0


def test_with_more_liars_more_are_shunned() -> None:
    subject = suspicion(b=2)
    accuse(subject, 0, 1, 2, 3)
    accuse(subject, 5, 6, 7)
    assert subject.shunned == 0b100001


def test_nobody_quarrels_with_itself() -> None:
    subject = suspicion()
    accuse(subject, 3, 3)
    assert subject.shunned == 0


def test_a_proven_lie_convicts_at_once() -> None:
    subject = suspicion()
    subject.convict(0b100, 0)
    assert subject.shunned == 0b100
    subject.convict(0b1000, 0)
    assert subject.shunned == 0, "two cannot both be lying if b is one"


def test_who_always_stands_apart_is_shunned_until_it_conforms_for_long() -> None:
    subject = suspicion()
    for _ in range(DIVERGENCES - 1):
        subject.diverged(0b100, 0)
    assert subject.shunned == 0
    for _ in range(10):
        subject.diverged(0b100, 0)
    assert subject.shunned == 0b100
    subject.conformed(0b111111)
    assert subject.shunned == 0b100, "one agreement may be feigned"
    for _ in range(100):
        subject.conformed(0b111111)
    assert subject.shunned == 0


def test_who_lies_every_other_time_is_shunned() -> None:
    subject = suspicion()
    for _ in range(2 * DIVERGENCES):
        subject.diverged(0b100, 0)
        subject.conformed(0b111111)
    assert subject.shunned == 0b100


def test_who_is_ahead_of_others_now_and_then_is_not_shunned() -> None:
    subject = suspicion()
    for number in range(1000):
        if number % 6 == 0:
            subject.diverged(0b100, 0)
        else:
            subject.conformed(0b111111)
        assert subject.shunned == 0


def test_a_proof_outlasts_doubts_about_suspicions() -> None:
    subject = suspicion()
    subject.convict(0b1, 0)
    subject.relent()
    assert subject.shunned == 0b1
    subject.clear()
    for _ in range(DIVERGENCES):
        subject.diverged(0b10, 0)
    assert subject.shunned == 0b10
    subject.relent()
    assert subject.shunned == 0


def test_suspicion_is_forgotten() -> None:
    subject = suspicion()
    subject.convict(0b1, 0)
    subject.forget(MEMORY_US - 1)
    assert subject.shunned == 0b1
    subject.forget(MEMORY_US)
    assert subject.shunned == 0
    subject.convict(0b10, MEMORY_US)
    subject.clear()
    assert subject.shunned == 0
