"""What a client remembers of histories, and what a query may rest on."""

from __future__ import annotations

from bftfs.asking.peers import MEMORY_US, Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.crypto.digest import LIFE_BYTES, authenticator_bytes
from bftfs.identifiers import NodeId
from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.history import Known
from bftfs.query_update.messages import QueryReply, Verdict
from bftfs.query_update.observation import Observations
from bftfs.query_update.rounds import Plan, Rounds
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import A, at, barrier, history, method

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))  # n=6, q=5, r=3
MACS = bytes(authenticator_bytes(6))


def test_a_query_rests_on_its_own_replies() -> None:
    """A server whose history is missing would count for ⟨0, 0⟩, and a client read the past."""
    quorums = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=0))  # n=4, q=3, r=2
    observations = Observations(Peers(quorums))
    first, second = method(1), method(2, 1)
    reported = {
        NodeId(1): Known(history(first, second), bytes(authenticator_bytes(4))),
        NodeId(2): Known(history(first, initial=True), bytes(authenticator_bytes(4))),
        NodeId(3): Known(history(), bytes(authenticator_bytes(4))),
    }
    for node, known in reported.items():
        assert observations.learn(A, node, known.history, known.authenticator, 0)
    before = observations.survey(A, reported)
    assert before.object_candidate == first  # it may be established: it has to be repaired
    seen = {node: known for node, known in reported.items() if node != 1}
    observations.keep(A, seen)  # another query repairs what it has seen
    assert observations.survey(A, reported) == before


def observing(now_us: int, *histories: bytes, peers: Peers | None = None) -> Observations:
    observations = Observations(peers or Peers(QUORUMS))
    for node, each in enumerate(histories):
        assert observations.learn(A, NodeId(node), each, MACS, now_us)
    return observations


def test_what_only_liars_may_have_is_left_out_if_it_is_far_ahead() -> None:
    """A correct client carries no time to some servers that others cannot bear. [design §4]"""
    honest, far_us = history(method(5)), 5 + CLOCK_SKEW_US - SECOND_US
    forged = history(method(5), barrier(far_us, 5))
    observations = observing(5, forged, honest, honest, honest, honest, honest)
    observed = observations.observe(A)
    assert observed.classification.latest == method(5).timestamp
    assert observed.ahead_of_clock == observations.ahead_of_clock([A]) == Nodes(0b000001)
    assert observed.is_pushed_ahead(5), "it may yet be what one waits for"
    # A query rests on the others if they are a quorum, and else on all that it has.
    reported = dict(enumerate(Known(each, MACS) for each in [forged] + [honest] * 5))
    assert observations.survey(A, reported).latest == method(5).timestamp  # type: ignore[arg-type]
    del reported[5]
    assert observations.survey(A, reported).latest != method(5).timestamp  # type: ignore[arg-type]


def test_candidates_of_benign_servers_are_never_ignored() -> None:
    honest, far_us = history(method(5)), 5 + CLOCK_SKEW_US // 2
    pushed = history(method(5), barrier(far_us, 5))
    further = history(method(5), barrier(far_us + SECOND_US, 5))
    observed = observing(5, further, pushed, honest, honest, honest, honest).observe(A)
    assert observed.classification.latest == barrier(far_us, 5).timestamp
    assert observed.ahead_of_clock == Nodes(0b000001)


def test_what_is_left_out_counts_once_it_is_no_longer_far_ahead() -> None:
    honest, far_us = history(method(5)), 5 + CLOCK_SKEW_US // 2
    pushed = history(method(5), barrier(far_us, 5))
    observations = observing(5, pushed, honest, honest, honest, honest, honest)
    assert observations.observe(A).ahead_of_clock
    observations.learn(A, NodeId(1), honest, MACS, far_us)
    observed = observations.observe(A)
    assert observed.classification.latest == barrier(far_us, 5).timestamp
    assert not observations.ahead_of_clock([A])


def test_nobody_is_ahead_of_a_clock_found_wrong() -> None:
    """Its owner is told; until then, what one correct server alone has may be needed."""
    honest, far_us = history(method(5)), 5 + 12 * CLOCK_SKEW_US
    pushed = history(method(5), barrier(far_us, 5))
    peers = Peers(QUORUMS)
    observations = observing(5, pushed, honest, honest, honest, honest, honest, peers=peers)
    assert observations.observe(A).ahead_of_clock == Nodes(0b000001)
    peers.doubt_clock(6 + MEMORY_US)
    observations.learn(A, NodeId(0), pushed, MACS, 6)
    assert observations.observe(A).classification.latest == barrier(far_us, 5).timestamp
    observations.learn(A, NodeId(0), pushed, MACS, 6 + MEMORY_US)  # it may have been set right
    assert observations.observe(A).ahead_of_clock == Nodes(0b000001)


# --- deductions ----------------------------------------------------------------------------------


def voucher(life: int) -> bytes:
    return life.to_bytes(LIFE_BYTES, "big") + MACS[LIFE_BYTES:]


def stating(peers: Peers, *nodes: int) -> Observations:
    observations = Observations(peers)
    for node in nodes:
        observations.deductions.state(at(1), NodeId(node), Verdict.DEAD, voucher(0))
    return observations


def test_what_disbelieved_servers_state_is_no_fact() -> None:
    """Servers may find their vouchers invalid: a request that rests on them would fail for ever."""
    peers = Peers(QUORUMS)
    observations = stating(peers, 0, 1)
    assert observations.facts == {at(1): False}
    epoch = observations.deductions.epoch
    peers.convict(Nodes.of([1]), 0)
    assert observations.facts == {}
    assert observations.deductions.epoch > epoch
    observations.deductions.state(at(1), NodeId(1), Verdict.DEAD, voucher(0))
    assert observations.facts == {}
    observations.deductions.state(at(1), NodeId(2), Verdict.DEAD, voucher(0))
    assert observations.facts == {at(1): False}
    (vouchers,) = observations.deductions.relevant([(A, method(1))])[1]
    assert [each.node for each in vouchers] == [0, 2]


def test_what_was_stated_in_an_earlier_life_is_no_fact() -> None:
    observations = stating(Peers(QUORUMS), 0, 1)
    deductions = observations.deductions
    observations.believe((0, 2, 0, 0, 0, 0))
    assert deductions.facts == {}
    deductions.state(at(1), NodeId(1), Verdict.DEAD, voucher(1))
    assert deductions.facts == {}
    deductions.state(at(1), NodeId(1), Verdict.DEAD, voucher(2))
    assert deductions.facts == {at(1): False}


def test_what_liars_say_of_others_lives_does_not_silence_these() -> None:
    """A claim costs what was stated before; when it is refuted, its victim is heard again."""
    peers = Peers(QUORUMS)
    rounds = Rounds(peers, stating(peers, 0, 1), patience_total_us=None)
    deductions = rounds.observations.deductions
    everybody, liar = (0,) * 6, (9, 9, 0, 0, 0, 0)
    for expected in ({}, {at(1): False}):
        plan = Plan((A,), (), (), 1, rounds.lives.begin(), {})
        for node in (0, 1, 5):
            lives = liar if node == 5 else everybody
            reply = QueryReply(
                (b"",), (b"",), lives, answered=False, error=0, answer=b"", whole=True
            )
            assert rounds.learn(plan, NodeId(node), reply) is not None
        rounds.is_outdated(plan)
        for node in (0, 1):
            deductions.state(at(1), NodeId(node), Verdict.DEAD, voucher(0))
        assert deductions.facts == expected


def test_more_than_enough_servers_state_a_fact() -> None:
    observations = stating(Peers(QUORUMS), 0, 1, 2)
    observations.believe((0, 1, 0, 0, 0, 0))
    assert observations.facts == {at(1): False}


# --- lives ---------------------------------------------------------------------------------------


def test_what_is_of_an_earlier_life_is_not_remembered() -> None:
    observations = Observations(Peers(QUORUMS))
    early, late = history(method(1)), history(method(1), method(2, on=1))
    observations.learn(A, NodeId(0), late, voucher(0), 5)
    observations.believe((1, 0, 0, 0, 0, 0))
    assert observations.volume == 0
    assert observations.learn(A, NodeId(0), late, voucher(0), 5) == Known(late, voucher(0))
    assert observations.volume == 0
    observations.learn(A, NodeId(0), early, voucher(1), 5)  # it has lost the other one
    assert observations.observe(A).culled.latest == at(1)


def test_a_server_signs_in_the_life_that_it_tells() -> None:
    peers = Peers(QUORUMS)
    rounds = Rounds(peers, Observations(peers), patience_total_us=None)
    plan = Plan((A,), (), (), 1, rounds.lives.begin(), {})
    told = (1, 0, 0, 0, 0, 0)
    for node, learned in ((0, None), (1, Known(history(method(1)), voucher(0)))):
        reply = QueryReply(
            (history(method(1)),),
            (voucher(0),),
            told,
            answered=False,
            error=0,
            answer=b"",
            whole=True,
        )
        assert (rounds.learn(plan, NodeId(node), reply) or [None])[0] == learned
    assert peers.disbelieved == Nodes.of([0])
