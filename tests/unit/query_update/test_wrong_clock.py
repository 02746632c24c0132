"""A client whose clock is an hour behind needs what one correct server alone has."""

from __future__ import annotations

from bftfs.limits import CLOCK_SKEW_US, SECOND_US
from bftfs.query_update.counter import Count, Fetch, Increment
from tests.builders import USER
from tests.unit.query_update.harness import Client, Cluster, counter_id

COUNTER = counter_id(0, placement=0)
ENOUGH_US = 30 * SECOND_US


def increment(client: Client) -> Count:
    update = client.qu.update((COUNTER,), "counter.increment", Increment(1), USER)
    answer: Count = client.run(update, within_us=ENOUGH_US).answer
    return answer


def late_client(cluster: Cluster) -> tuple[Client, Client]:
    """One whose clock is an hour behind, and one whose update only one server has accepted.

    Another server is silent.
    """
    late, other = cluster.client("late"), cluster.client("other")
    late.skew_us = -12 * CLOCK_SKEW_US
    cluster.block(client="other", nodes=(0, 2, 3, 4, 5))
    other.start(other.qu.update((COUNTER,), "counter.increment", Increment(1), USER))
    before = cluster.nodes[1].replica(COUNTER).history.latest
    cluster.run(lambda: cluster.nodes[1].replica(COUNTER).history.latest > before)
    cluster.running[-1].cancel()
    cluster.heal()
    cluster.mute(4)
    return late, other


def fetch(client: Client) -> Count:
    query = client.qu.query((COUNTER,), "counter.fetch", Fetch(), USER)
    answer: Count = client.run(query, within_us=ENOUGH_US).answer
    return answer


def test_what_is_ahead_of_a_wrong_clock_alone_is_repaired() -> None:
    """An update that has reached one server is of a right time, and stands in the way there."""
    late, other = late_client(Cluster())
    answer = increment(late)  # at a time later than that of the repaired one, which is a right one
    assert fetch(late) == answer
    assert increment(other).value == answer.value + 1


def test_who_only_reads_is_not_told_that_the_clock_is_wrong() -> None:
    """But finds that there is no quorum without the server that is ahead of it."""
    late, other = late_client(Cluster())
    answer = fetch(late)
    assert increment(other).value == answer.value + 1
