"""What a client remembers of histories, and what a query may rest on."""

from __future__ import annotations

from bftfs.identifiers import NodeId
from bftfs.query_update.history import Known
from bftfs.query_update.observation import Observations
from bftfs.query_update.suspicion import Suspicion
from bftfs.quorum import ThresholdQuorums
from bftfs.thresholds import QueryUpdateThresholds
from tests.unit.query_update.building import A, history, method


def test_a_query_rests_on_its_own_replies_whatever_another_conversation_forgets() -> None:
    """A server whose history is missing would count for ⟨0, 0⟩, and a client read the past."""
    quorums = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=0))  # n=4, q=3, r=2
    observations = Observations(quorums, Suspicion(quorums))
    first, second = method(1), method(2, 1)
    reported = {
        NodeId(1): Known(history(first, second), bytes(16 * 4)),
        NodeId(2): Known(history(first, initial=True), bytes(16 * 4)),
        NodeId(3): Known(history(), bytes(16 * 4)),
    }
    for node, known in reported.items():
        assert observations.learn(A, node, known.history, known.authenticator)
    before = observations.survey(A, reported)
    assert before.object_candidate == first  # it may be established: it has to be repaired
    seen = {node: known for node, known in reported.items() if node != 1}
    observations.keep(A, seen)  # another query repairs what it has seen
    assert observations.survey(A, reported) == before
