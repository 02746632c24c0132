"""What a client remembers of histories, and what a query may rest on."""

from __future__ import annotations

from bftfs.asking.peers import MEMORY_US, Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.crypto.digest import authenticator_bytes
from bftfs.identifiers import NodeId
from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.history import Known
from bftfs.query_update.observation import Observations
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import A, barrier, history, method

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
