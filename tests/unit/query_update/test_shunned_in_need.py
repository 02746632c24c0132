"""A server that a client shuns is needed again, because another one has fallen silent.

The silent one is one of the t faults; then the other cannot be another one, if t = b = 1: its clock
was wrong for a while, and is not any more.
"""

from __future__ import annotations

import pytest

from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.counter import Count, Fetch, Increment
from tests.unit.query_update.harness import USER, Client, Cluster, counter_id

COUNTERS = [counter_id(number, placement=number) for number in range(6)]
ENOUGH_US = 3 * SECOND_US
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
def test_a_shunned_server_is_heard_when_a_silent_one_is_missing(seed: int) -> None:
    cluster = Cluster(seed=seed)
    client, other = cluster.client("client"), cluster.client("other")
    cluster.nodes[5].skew_us = -2 * CLOCK_SKEW_US
    for number in range(6):
        increment(client, number)
        increment(other, number)
    assert client.qu.suspicion.shuns(cluster.nodes[5].number)
    cluster.nodes[5].skew_us = 0
    cluster.mute(4)
    for number in range(6):
        before = len(cluster.sent)
        assert fetch(client, number) == Count(2)
        assert increment(client, number) == Count(3)
        assert increment(other, number) == Count(4)
        assert len(cluster.sent) - before < 3 * MESSAGES_ENOUGH
