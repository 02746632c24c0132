"""What was collected everywhere stops nobody who goes on from there."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.identifiers import NodeId, ObjectId
from bftfs.limits import SECOND_US
from bftfs.query_update import between_nodes
from bftfs.query_update.between_nodes import PageAsking
from bftfs.query_update.counter import Count, Increment
from bftfs.query_update.history import ZERO, LogicalTimestamp, time_of
from bftfs.server.object_collection import ObjectWalk, establish
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode
from tests.builders import USER
from tests.unit.query_update.harness import Client, Cluster, Node, counter_id
from tests.unit.query_update.ledger import Transfer, ledger_types

NAME = counter_id(0)


def collect(node: Node, name: ObjectId = NAME) -> None:
    """Let go of all that the head has superseded, as if that were long ago."""
    storage = node.storage
    head = node.replica(name).head
    storage.apply(establish(name, head, storage, 0))
    horizon_us = time_of(head) + 1
    row = msgspec.structs.replace(node.replica(name).row, collected_us=horizon_us)
    storage.apply([Write(Table.OBJECT, name, encode(row))])
    walk = ObjectWalk(name, lambda _since, until_us: until_us is None, horizon_us=horizon_us)
    while not walk.done:
        storage.apply(walk.step(storage))
    assert len(list(storage.keys(Table.VERSION, name, name + b"\xff" * 99))) == 1


def collect_but_at(cluster: Cluster, behind: int, name: ObjectId = NAME) -> None:
    """All servers but one collect it."""
    cluster.settle()
    for node in cluster.nodes:
        if node.number != behind:
            collect(node, name)


def increment(client: Client) -> Count:
    update = client.qu.update((NAME,), "counter.increment", Increment(1), USER)
    count: Count = client.run(update).answer
    return count


@pytest.mark.parametrize("missed", [1, 4])
def test_an_update_is_finished_without_its_base(missed: int) -> None:
    """One server has missed it; of the quorum that has it, another is down now."""
    cluster = Cluster()
    before, after = cluster.client("X"), cluster.client("Y")
    increment(before)
    cluster.mute(3)
    for _ in range(missed):
        increment(before)
    collect_but_at(cluster, 3)
    cluster.heal()
    cluster.mute(0)
    assert increment(after) == Count(missed + 2)
    assert cluster.nodes[3].replica(NAME).head == cluster.nodes[1].replica(NAME).head


@pytest.mark.parametrize("collected", [0, 1])
def test_establishment_is_known_after_one_object_forgot_it(
    collected: int,
) -> None:
    """It is deduced for the other one [Q/U §4.3.7], which fewer than a quorum still have it of."""
    cluster = Cluster(types=ledger_types())
    names = (counter_id(0), counter_id(1))
    before, after = cluster.client("X"), cluster.client("Y")
    cluster.mute(3)
    before.run(before.qu.update(names, "transfer.2", Transfer("both"), USER))
    alone = (names[collected],)
    for number in range(3):
        before.run(before.qu.update(alone, "transfer.1", Transfer(f"alone {number}"), USER))
    collect_but_at(cluster, 3, names[collected])
    cluster.heal()
    cluster.mute(0)
    other = (names[1 - collected],)
    accounts = after.run(after.qu.update(other, "transfer.1", Transfer("later"), USER)).answer
    assert accounts.entries == (("bothx1", "laterx1"),)


def _goes_on_from_what_was_collected() -> Count:
    """One server has missed it and cannot get it; the others have gone on; one of these is down."""
    cluster = Cluster()
    old, new = cluster.client("X"), cluster.client("Y")
    increment(old)
    cluster.mute(3)
    increment(old)  # it knows this one, and none of those after it
    increment(new)
    collect_but_at(cluster, 3)
    cluster.heal()
    cluster.mute(0)
    return increment(old)


def test_a_server_that_is_behind_does_not_wait_for_what_its_host_has_collected() -> None:
    assert _goes_on_from_what_was_collected() == Count(4)


def test_must_fail_a_server_that_waits_for_what_its_host_has_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It asks its client to come again for ever, which nobody else answers instead."""
    monkeypatch.setattr(between_nodes, "fetch_to_build_on", between_nodes.fetch_version)
    with pytest.raises(AssertionError):
        _goes_on_from_what_was_collected()


@pytest.mark.parametrize(("hosts", "is_gone"), [((), False), ((1,), False), ((1, 2), True)])
def test_b_hosts_make_no_server_fail_what_it_cannot_get(
    hosts: tuple[int, ...], is_gone: bool
) -> None:
    """All say that they do not have it; but b of those that have reported it may lie."""
    cluster = Cluster()
    client = cluster.client("X")
    increment(client)
    cluster.settle()
    version = cluster.nodes[0].replica(NAME).head[:-1] + b"?"
    fetched: list[Any] = []
    cluster.nodes[0].engine.start(
        between_nodes.fetch_to_build_on(
            NAME,
            LogicalTimestamp(version),
            known=(ZERO,),
            hosts=Nodes.of(map(NodeId, hosts)),
            me=NodeId(0),
            peers=Peers(client.qu.quorums),
        ),
        lambda result, _error: fetched.append(result),
    )
    cluster.nodes[0].arm()
    cluster.settle()
    (writes,) = fetched
    assert (writes is not None and between_nodes.say_gone(writes)) == is_gone
    assert writes is None or is_gone


def slowest_update(seed: int) -> int:
    """How long the slowest update of three clients takes, in virtual microseconds.

    One server at a time is silent, another one each time. Nearly all that have the latest version
    collect what lies below it; so clients build on what is gone, several at once.
    """
    draw = random.Random(seed)
    cluster = Cluster(seed=seed)
    open_to_all = cluster.route
    clients = [cluster.client(name) for name in "XYZ"]
    slowest = 0
    for count in range(1, 15):
        cluster.route = open_to_all
        if draw.random() < 0.6:
            cluster.mute(draw.randrange(len(cluster.nodes)))
        began_us = cluster.now_us
        assert increment(draw.choice(clients)) == Count(count)
        slowest = max(slowest, cluster.now_us - began_us)
        if draw.random() < 0.5:
            cluster.settle()
            latest = max(node.replica(NAME).head for node in cluster.nodes)
            for node in cluster.nodes:
                if node.replica(NAME).head == latest and draw.random() < 0.8:
                    collect(node)
    return slowest


SEEDS = range(40)


def test_nobody_waits_for_a_silent_server_to_say_what_hosts_have_collected() -> None:
    assert max(map(slowest_update, SEEDS)) < SECOND_US


def test_must_fail_servers_that_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    begin: Callable[..., None] = PageAsking.__init__

    def patient(asking: Any, order: Any, peers: Peers, _hosts: Nodes = NOBODY) -> None:
        begin(asking, order, peers)

    monkeypatch.setattr(PageAsking, "__init__", patient)
    assert max(map(slowest_update, SEEDS)) > 15 * SECOND_US
