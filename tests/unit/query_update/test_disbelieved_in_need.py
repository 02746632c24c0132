"""A server that a client disbelieves is needed again, because another one has fallen silent.

The silent one is one of the t faults; then the other cannot be another one, if t = b = 1: its clock
was wrong for a while, and is not any more.
"""

from __future__ import annotations

import errno

import pytest

from bftfs.asking.peers import DIVERGENCES
from bftfs.asking.quorum import Nodes
from bftfs.errors import FileSystemError
from bftfs.identifiers import NodeId
from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.counter import Count, Fetch, Increment
from tests.builders import USER
from tests.unit.query_update.harness import Client, Cluster, counter_id

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
