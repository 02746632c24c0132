"""A server that a client disbelieves is needed again, because another one has fallen silent.

The silent one is one of the t faults; then the other cannot be another one, if t = b = 1: its clock
was wrong for a while, and is not any more.

Nor do clocks that differ within bounds make correct servers liars, or hide one.
"""

from __future__ import annotations

import errno
from functools import partial

import pytest

from bftfs.asking.peers import DIVERGENCES, Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.errors import FileSystemError
from bftfs.identifiers import NodeId, ObjectId
from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.counter import Count, Fetch, Increment
from bftfs.query_update.history import ZERO
from tests.builders import USER
from tests.unit.query_update.adversaries import selective
from tests.unit.query_update.harness import Client, Cluster, Node, Stuck, counter_id

COUNTERS = [counter_id(number, placement=number) for number in range(6)]
ENOUGH_US = 3 * SECOND_US
TOO_MUCH = (1 << 63) - 1
MESSAGES_ENOUGH = 400  # of one operation; without progress there are thousands


def increment(client: Client, number: int) -> Count:
    query = client.qu.update((COUNTERS[number],), "counter.increment", Increment(1), USER)
    answer: Count = client.run(query, within_us=ENOUGH_US).answer
    return answer


def fetch(client: Client, number: int) -> Count:
    query = client.qu.query((COUNTERS[number],), "counter.fetch", Fetch(), USER)
    answer: Count = client.run(query, within_us=ENOUGH_US).answer
    return answer


@pytest.mark.parametrize("seed", range(5))
def test_a_disbelieved_server_is_heard_when_a_silent_one_is_missing(seed: int) -> None:
    cluster = Cluster(seed=seed)
    client, other = cluster.client("client"), cluster.client("other")
    cluster.nodes[5].skew_us = -2 * CLOCK_SKEW_US
    for number in range(6):
        increment(client, number)
        increment(other, number)
    assert cluster.nodes[5].number in client.qu.peers.disbelieved
    cluster.nodes[5].skew_us = 0
    cluster.mute(4)
    for number in range(6):
        before = len(cluster.sent)
        assert fetch(client, number) == Count(2)
        assert increment(client, number) == Count(3)
        assert increment(other, number) == Count(4)
        assert len(cluster.sent) - before < 3 * MESSAGES_ENOUGH


def test_a_candidate_of_disbelieved_servers_is_repaired_when_needed() -> None:
    """An update is late at it, and nothing that the client counts shows why.

    (Where the others accept, it finds out when it looks for what has become of the update.)
    """
    cluster = Cluster()
    client, other = cluster.client("client"), cluster.client("other")
    increment(other, 0)
    client.qu.peers.silent(NodeId(1), client.now_us())
    increment(client, 0)  # what it has seen at server 4 it remembers
    cluster.settle()
    fetch(other, 0)
    cluster.block(client="other", nodes=(0, 2, 3, 4, 5))
    before = cluster.nodes[1].replica(COUNTERS[0]).history.latest
    other.start(other.qu.update((COUNTERS[0],), "counter.increment", Increment(1), USER))
    cluster.run(lambda: cluster.nodes[1].replica(COUNTERS[0]).history.latest > before)
    cluster.running[-1].cancel()
    cluster.heal()
    cluster.mute(4)
    for _ in range(DIVERGENCES):
        client.qu.peers.diverged(Nodes.of([1]), client.now_us())
    assert NodeId(1) in client.qu.peers.disbelieved
    sent = len(cluster.sent)
    update = client.qu.update((COUNTERS[0],), "counter.increment", Increment(TOO_MUCH), USER)
    with pytest.raises(FileSystemError) as refused:
        client.run(update, within_us=4 * ENOUGH_US)
    assert refused.value.code == errno.EOVERFLOW
    assert len(cluster.sent) - sent < MESSAGES_ENOUGH


# --- beside clocks that differ --------------------------------------------------------------------

FAST = (0, 2)
LIAR = 5


def has_accepted(node: Node, name: ObjectId) -> bool:
    return node.replica(name).history.latest > ZERO


def after_disputes() -> tuple[Cluster, Client]:
    """Most servers have found insane what one server reported, and later what another one did.

    All are correct: their clocks differ, and somebody's times lay between them. The client's clock
    is as fast as those of the two.
    """
    cluster = Cluster()
    client, racer = cluster.client("client"), cluster.client("racer")
    for node in cluster.nodes:
        if node.number not in FAST:
            node.skew_us = -SECOND_US
    for number, fast in enumerate(FAST):
        cluster.block(client="racer", nodes=tuple(set(range(6)) - {fast}))
        racer.clock_us = client.now_us() + CLOCK_SKEW_US - SECOND_US // 2
        racer.start(racer.qu.update((COUNTERS[number],), "counter.increment", Increment(1), USER))
        cluster.run(partial(has_accepted, cluster.nodes[fast], COUNTERS[number]))
        cluster.running[-1].cancel()
        cluster.heal()
        cluster.mute(4)
        increment(client, number)
        cluster.heal()
    return cluster, client


def test_disputes_among_correct_servers_hide_no_liar() -> None:
    cluster, client = after_disputes()
    assert not client.qu.peers.convicted
    cluster.nodes[LIAR].behaviour = selective((0, 1, 3))
    for number in 2 * (2, 3, 4, 5):
        sent = len(cluster.sent)
        increment(client, number)
        assert len(cluster.sent) - sent < MESSAGES_ENOUGH
    assert client.qu.peers.disbelieved == Nodes.of([LIAR])


def test_nor_if_no_suspicion_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peers, "relent", lambda _: None)
    test_disputes_among_correct_servers_hide_no_liar()


def test_must_fail_clients_that_convict_for_insane_times(monkeypatch: pytest.MonkeyPatch) -> None:
    accuse = Peers.accuse

    def convicts(
        self: Peers, accuser: NodeId, forged: Nodes, now_us: int, *, insane: Nodes = NOBODY
    ) -> None:
        accuse(self, accuser, forged | insane, now_us)

    monkeypatch.setattr(Peers, "accuse", convicts)
    monkeypatch.setattr(Peers, "relent", lambda _: None)
    with pytest.raises(Stuck):
        test_disputes_among_correct_servers_hide_no_liar()
