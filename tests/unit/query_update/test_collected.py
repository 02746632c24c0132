"""What was collected everywhere stops nobody who goes on from there."""

from __future__ import annotations

import msgspec
import pytest

from bftfs.query_update.collection import ObjectWalk, establish
from bftfs.query_update.counter import Count, Increment
from bftfs.query_update.timestamp import time_of
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode
from tests.unit.query_update.harness import USER, Client, Cluster, Node, counter_id

NAME = counter_id(0)


def collect(node: Node) -> None:
    """Let go of all that the head has superseded, as if that were long ago."""
    storage = node.storage
    head = node.replica(NAME).head
    storage.apply(establish(storage, NAME, head))
    horizon_us = time_of(head) + 1
    row = msgspec.structs.replace(node.replica(NAME).row, collected_us=horizon_us)
    storage.apply([Write(Table.OBJECT, NAME, encode(row))])
    walk = ObjectWalk(NAME, lambda _since, until_us: until_us is None, horizon_us=horizon_us)
    while not walk.done:
        storage.apply(walk.step(storage))
    assert len(list(storage.keys(Table.VERSION, NAME, NAME + b"\xff" * 99))) == 1


@pytest.mark.parametrize("missed", [1, 4])
def test_an_update_is_finished_where_what_it_was_made_on_is_missing(missed: int) -> None:
    """One server has missed it; of the quorum that has it, another is down now."""
    cluster = Cluster()
    before, after = cluster.client("X"), cluster.client("Y")

    def increment(client: Client) -> Count:
        update = client.qu.update((NAME,), "counter.increment", Increment(1), USER)
        count: Count = client.run(update).answer
        return count

    increment(before)
    cluster.mute(3)
    for _ in range(missed):
        increment(before)
    cluster.settle()
    for node in cluster.nodes:
        if node.number != 3:
            collect(node)
    cluster.heal()
    cluster.mute(0)
    assert increment(after) == Count(missed + 2)
    assert cluster.nodes[3].replica(NAME).head == cluster.nodes[1].replica(NAME).head
