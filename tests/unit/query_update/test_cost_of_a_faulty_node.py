"""What one faulty node costs a client: rounds, messages and virtual time, not only correctness.

The adversaries are those of the simulator, each as the node that every preferred quorum but one
begins with or includes. A message takes 50 to 500 µs; a fault-free operation takes one round.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from bftfs.asking.peers import HEDGE_US, PATIENCE_US
from bftfs.asking.quorum import Nodes
from bftfs.identifiers import NodeId
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.messages import Query, Request
from bftfs.server.step import Ready, Sender, Server
from bftfs.simulation.byzantine.positions import NodePosition
from bftfs.simulation.byzantine.registry import NODES
from bftfs.simulation.deployment import Sizes
from bftfs.thresholds import ReadWriteThresholds
from bftfs.wire.codec import Message
from tests.builders import USER
from tests.unit.query_update.harness import SMALLEST, Client, Cluster, Endpoint, counter_id

LIAR = 0
LATE = 3
ROUND_US = 1_000
OBJECTS = 12
OPERATIONS = 120
SIZES = Sizes(SMALLEST, ReadWriteThresholds(N=6, t=1, b=1, QC=4, m=3))
# Block nodes are honest about objects.
ADVERSARIES = [name for name in NODES if not NODES[name].__module__.endswith("block_nodes")]


class _Honest:
    """The honest server of a node of the harness."""

    def __init__(self, node: Any) -> None:
        self._step = node.server.step

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        return self._step(view, sender, message, body, now_us)


def corrupt(cluster: Cluster, name: str, seed: int, **intensity: float) -> None:
    """Let an adversary of the simulator take over the node."""
    node = cluster.nodes[LIAR]
    servers: Mapping[type, Server] = dict.fromkeys(Request.__args__, _Honest(node))
    position = NodePosition(NodeId(LIAR), servers, node.keys, SIZES, Random(seed))
    adversary = NODES[name](position)
    for attribute, value in intensity.items():
        setattr(adversary, attribute, value)

    def behave(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready = adversary.step(view, sender, message, b"", now_us)
        if not isinstance(ready.reply, Message):
            ready.reply = None  # what does not decode is dropped at the door
        return ready

    node.behaviour = behave


class Run:
    """Operations of one client, one after the other, on counters of all placements."""

    def __init__(self, cluster: Cluster, client: Client, seed: int) -> None:
        self.cluster = cluster
        self._client = client
        self._random = Random(seed)
        self.took_us: list[int] = []

    def operate(self, operations: int, *, updates: float) -> None:
        for _ in range(operations):
            number = self._random.randrange(OBJECTS)
            name = counter_id(number, placement=number)
            began = self.cluster.now_us
            if self._random.random() < updates:
                conversation = self._client.qu.update(
                    (name,), "counter.increment", Increment(), USER
                )
            else:
                conversation = self._client.qu.query((name,), "counter.fetch", Fetch(), USER)
            self._client.run(conversation)
            self.took_us.append(self.cluster.now_us - began)

    @property
    def mean_us(self) -> float:
        return sum(self.took_us) / len(self.took_us)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_faulty_node_costs_no_round_per_operation(name: str, seed: int) -> None:
    cluster = Cluster(seed=seed)
    corrupt(cluster, name, seed)
    run = Run(cluster, cluster.client("X"), seed)
    run.operate(OPERATIONS, updates=0.5)
    assert max(run.took_us) < PATIENCE_US, "silence was waited out where others could be asked"
    assert run.mean_us < 2.5 * ROUND_US
    run.took_us.clear()
    before = len(cluster.sent)
    run.operate(OPERATIONS, updates=0.5)
    assert run.mean_us < 1.5 * ROUND_US, "it is no longer waited for"
    sent = [message for source, _, message in cluster.sent[before:] if source[0] == "client"]
    assert len(sent) < 6 * OPERATIONS


@pytest.mark.parametrize("forges", [0.5, 1.0])
def test_who_only_reads_soon_asks_a_forger_last(forges: float) -> None:
    cluster = Cluster(seed=1)
    cluster.mute(LIAR)  # so that everybody else has the latest versions
    Run(cluster, cluster.client("X"), 1).operate(50, updates=1)
    cluster.heal()
    corrupt(cluster, "history-forger", 1, _chance=forges)
    reader = cluster.client("Y")
    Run(cluster, reader, 2).operate(60, updates=0)
    assert NodeId(LIAR) in reader.qu.peers.disbelieved
    before = len(cluster.sent)
    Run(cluster, reader, 3).operate(100, updates=0)
    sent = [message for source, _, message in cluster.sent[before:] if source[0] == "client"]
    assert len(sent) == 5 * 100, "one round each, to a quorum without it"


def test_a_wrong_answer_on_the_same_version_convicts() -> None:
    cluster = Cluster(seed=1)
    Run(cluster, cluster.client("X"), 1).operate(50, updates=1)
    corrupt(cluster, "wrong-answers", 1, _chance=1.0)
    reader = cluster.client("Y")
    Run(cluster, reader, 2).operate(10, updates=0)
    assert reader.qu.peers.disbelieved == Nodes.of([LIAR])


@pytest.mark.parametrize("seed", range(2))
def test_readers_wait_for_a_late_node_and_repair_nothing(seed: int) -> None:
    """With one liar and one node that is late, four servers agree: too few for a quorum.

    Nothing is wrong with the objects then, and nothing must be done to them: repair could not
    succeed either, gave every liar another chance, and made the nodes later still.
    """
    cluster = Cluster(seed=seed)
    cluster.mute(LIAR)  # so that everybody else has the latest versions
    Run(cluster, cluster.client("X"), seed).operate(50, updates=1)
    cluster.heal()
    corrupt(cluster, "history-forger", seed, _chance=1.0)
    reader = cluster.client("Y")
    Run(cluster, reader, seed).operate(60, updates=0)
    soon = cluster.route

    def route(source: Endpoint, target: Endpoint, message: Any) -> int | None:
        delay = soon(source, target, message)
        if source == ("node", LATE) and delay is not None and cluster.random.random() < 0.5:
            delay += PATIENCE_US + 50_000
        return delay

    cluster.route = route
    before = len(cluster.sent)
    run = Run(cluster, reader, seed)
    run.operate(100, updates=0)
    sent = [message for source, _, message in cluster.sent[before:] if source[0] == "client"]
    assert {type(message) for message in sent} == {Query}
    assert reader.qu.peers.disbelieved == Nodes.of([LIAR])
    assert max(run.took_us) < 2 * PATIENCE_US


def test_a_silent_node_costs_a_hedge_now_and_then() -> None:
    cluster = Cluster(seed=1)
    corrupt(cluster, "mute", 1, _chance=0.3)
    run = Run(cluster, cluster.client("X"), 1)
    run.operate(1_000, updates=0.3)
    waits = [took for took in run.took_us if took >= HEDGE_US]
    assert len(waits) < 1_000 // 50, "it was trusted again too soon"
    assert max(waits) < 2 * HEDGE_US
