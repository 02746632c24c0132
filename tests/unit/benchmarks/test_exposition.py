"""What nodes were asked in a phase, from the figures that they expose."""

from pathlib import Path

import pytest

from benchmarks import exposition
from benchmarks.errors import WorkloadError
from benchmarks.exposition import TrafficWatch
from benchmarks.measurement import Measure
from benchmarks.session import Place, Session
from bftfs.data_directory import NodeDirectory

QUERY = 'bftfs_requests_total{message="Query"}'
UPDATE = 'bftfs_requests_total{message="Update"}'
RECEIVED = "bftfs_received_bytes_total"
SENT = "bftfs_sent_bytes_total"

Pages = dict[str, list[dict[str, float]]]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    """What each node tells, by its directory's name, one time after the other; none: nothing."""
    told: Pages = {}

    def figures(node: NodeDirectory) -> dict[str, float]:
        if not told[node.path.name]:
            raise WorkloadError("it does not answer")
        return told[node.path.name].pop(0)

    monkeypatch.setattr(exposition, "figures", figures)
    return told


def node(name: str) -> NodeDirectory:
    return NodeDirectory(Path(name))


def test_all_labels_and_nodes_are_added_up_for_each_unit(pages: Pages) -> None:
    pages["0"] = [
        {QUERY: 5, UPDATE: 1, RECEIVED: 1000, SENT: 50, "bftfs_faults_total": 7},
        {QUERY: 9, UPDATE: 3, RECEIVED: 1400, SENT: 90, "bftfs_faults_total": 9},
    ]
    pages["1"] = [{RECEIVED: 0, SENT: 0}, {QUERY: 2, RECEIVED: 100, SENT: 20}]
    watch = TrafficWatch([node("0"), node("1")])
    assert watch.finish(4) == {"requests": 2, "bytes_to_nodes": 125, "bytes_from_nodes": 15}


@pytest.mark.parametrize("after", [[], [{QUERY: 1, RECEIVED: 10, SENT: 10}]])
def test_a_node_that_ended_or_began_anew_does_not_count(
    pages: Pages, after: list[dict[str, float]]
) -> None:
    pages["0"] = [{QUERY: 5, RECEIVED: 1000, SENT: 50}, *after]
    watch = TrafficWatch([node("0")])
    assert watch.finish(1) == {"requests": 0, "bytes_to_nodes": 0, "bytes_from_nodes": 0}


def test_a_phase_records_it(pages: Pages) -> None:
    pages["0"] = [{QUERY: 5, RECEIVED: 0, SENT: 0}, {QUERY: 15, RECEIVED: 70, SENT: 30}]
    session = Session(nodes=[node("0")])
    with session.phase(Place("mount", 0), "stat", Measure.OPERATIONS_PER_SECOND, amount=10):
        pass
    [sample] = session.samples
    assert sample.details == {"requests": 1, "bytes_to_nodes": 7, "bytes_from_nodes": 3}
