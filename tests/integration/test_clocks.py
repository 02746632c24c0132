"""Node processes, of which one has a wrong clock, and one lies about its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bftfs.cli.status import node_states
from bftfs.identifiers import NodeId
from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    assemble,
    history_of,
    logical_timestamp,
)
from bftfs.query_update.messages import Status, Update
from bftfs.runtime import clock
from bftfs.wire.codec import encode
from tests.integration.deployment import Deployment, await_that
from tests.integration.process_hand import ProcessHand, admit
from tests.integration.test_node import metric
from tests.integration.test_protocols import Client, counter
from tests.seams.world import READERS_GRANT

WRONG, LIAR = 0, 1
YEAR_S = 365 * 24 * 3_600
READER = "reader"


class Clocks:
    """Six nodes, whose clocks can be set."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.deployment = Deployment(path / "cluster", module="nodes")
        admit(self.deployment, READER, READERS_GRANT)
        for node in self.deployment.nodes:
            self.put(node, 0)
        self.deployment.start(program=("tests.integration.skewed_node", str(path)))
        self.client = Client(self.deployment)

    def put(self, node: int, wrong_s: int, *, told_s: int = 0) -> None:
        """Set a node's clock, and by how much it lies to others about it."""
        (self._path / "new").write_text(f"{wrong_s} {told_s}")
        (self._path / "new").rename(self._path / str(node))

    def have_heard(self, liar: int) -> Counter[int]:
        """How often other nodes have heard something false."""
        file = self._path / f"{liar}.told"
        return Counter(map(int, file.read_text().split())) if file.exists() else Counter()

    def distrusting(self) -> list[int]:
        """The nodes that take no new versions because of their clocks."""
        self.client.increment_all(list(range(6)))
        nodes = self.deployment.nodes
        return [
            node for node in nodes if metric(self.deployment, "bftfs_clock_distrusted", node) == 1
        ]

    def are_confirmed(self) -> bool:
        nodes = self.deployment.nodes
        return all(metric(self.deployment, "bftfs_clock_confirmed", node) == 1 for node in nodes)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clocks]:
    clocks = Clocks(tmp_path_factory.mktemp("clocks"))
    await_that(clocks.are_confirmed)
    yield clocks
    clocks.deployment.close()


def test_a_node_whose_clock_is_set_wrong_says_so_until_it_is_right(clocks: Clocks) -> None:
    """Its peers and the clients go on."""
    deployment = clocks.deployment

    def reasons() -> str:
        states = node_states(deployment.directory, deployment.description, client=READER)
        assert [state["node"] for state in states if not state["healthy"]] in ([WRONG], [])
        return " ".join(states[WRONG]["reasons"])

    assert clocks.distrusting() == []
    for wrong_s in (1_000, -1_000_000):
        clocks.put(WRONG, wrong_s)
        await_that(lambda: clocks.distrusting() == [WRONG])
        await_that(lambda: "its clock differs from other nodes', node 1's by" in reasons())
        clocks.put(WRONG, 0)
        await_that(lambda: clocks.distrusting() == [])
        assert "clock" not in reasons()
    assert len(set(clocks.client.increment_all(list(range(6))))) == 1
    assert "clock distrusted" in deployment.node(WRONG).log.read_text()


def test_what_a_wrong_clock_has_borne_is_of_no_use_to_a_node_that_lies(clocks: Clocks) -> None:
    """One clock is a year ahead, and right again; for an hour its node tells what it has borne.
    Then another node tells the same of its own, and that it is that time now. The others go on, and
    take no barrier of that time from a client that works with the liar."""
    clocks.put(WRONG, YEAR_S)
    await_that(lambda: clocks.distrusting() == [WRONG])
    clocks.put(WRONG, 0)
    await_that(lambda: clocks.distrusting() == [])
    clocks.put(LIAR, 0, told_s=YEAR_S)
    others = [node for node in clocks.deployment.nodes if node != LIAR]
    await_that(lambda: all(clocks.have_heard(LIAR)[node] >= 2 for node in others))
    assert clocks.distrusting() == []
    with ProcessHand(clocks.deployment, READER, (LIAR,)) as hand:
        replies = {ahead_us: pushed(hand, ahead_us) for ahead_us in (0, YEAR_S // 2 * SECOND_US)}
    assert replies[0] == {Status.SUCCESS}, "it would take nothing at all"
    assert replies[YEAR_S // 2 * SECOND_US] == {Status.CULLED}
    clocks.put(LIAR, 0)
    assert len(set(clocks.client.increment_all(list(range(6))))) == 1


def pushed(hand: ProcessHand, ahead_us: int) -> set[Status]:
    """What correct nodes say to a barrier on what the liar forges, which is so far ahead."""
    name = counter(7)
    time_us = clock.now_us() + ahead_us
    assert not ahead_us or ahead_us > CLOCK_SKEW_US
    told = logical_timestamp(time_us=time_us, barrier=True, client=hand.client, digest=bytes(32))
    known = hand.forged(LIAR, name, history_of([Candidate(told, ZERO)], initial=True))
    history_set, authenticators, _ = assemble(name, {NodeId(LIAR): known})
    conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (history_set,))
    request = Update(encode(conditioned), (authenticators,), (), NodeId(0))
    nodes = [node for node in range(hand.sizes.n) if node != LIAR]
    replies = hand.ask(dict.fromkeys(nodes, (request, b"")))
    return {reply.status for reply in replies.values()}
