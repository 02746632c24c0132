"""An update of two objects was left incomplete, and nodes have collected what would tell its fate.

At the first object it is at r servers of the preferred quorum; the second one has gone on without
it, and no server has a chain any more that reaches so far. (They were switched off in that moment,
for longer than the window.) Now all are up, and nobody lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from bftfs.errors import ContentionExhausted
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import Conditioned, ConditionedKind, Known, assemble, time_of
from bftfs.query_update.messages import Query, Status, Update
from bftfs.query_update.repair import Repair
from bftfs.query_update.replica import Replica
from bftfs.simulation.network import Kind
from bftfs.simulation.workloads.ledger import Transfer
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode
from tests.seams.test_lost_disks import ONE, OTHER, REPAIRS, balances, deposit
from tests.seams.world import Hand, World

SIZES = [(1, 0), (1, 1), (2, 1)]


def send(
    hand: Hand, kind: ConditionedKind, account: ObjectId, of: Collection[int], to: Collection[int]
) -> None:
    """A barrier or copy, on the histories `of` some servers, `to` some."""
    replies = hand.ask_all(Query((account,), "", b"", 0, 0, (), NodeId(0)))
    shown = {
        NodeId(node): Known(replies[node].histories[0], replies[node].authenticators[0])
        for node in of
    }
    history_set, authenticators, _ = assemble(account, shown)
    conditioned = encode(Conditioned(kind, None, 0, (history_set,)))
    request = Update(conditioned, (authenticators,), (), NodeId(0))
    answers = hand.ask(dict.fromkeys(to, (request, b"")))
    assert {answer.status for answer in answers.values()} == {Status.SUCCESS}


def left_open(t: int, b: int) -> World:
    """All of it has happened, and now all messages arrive at once."""
    world = World(t, b)
    n, q, r = world.sizes.n, world.sizes.query_update.q, world.sizes.query_update.r
    first, partial, hand = world.user("first"), world.user("partial"), world.hand("hand")
    for account in (ONE, OTHER):
        first.run(deposit(first, account, 100))
    world.run_for(605 * SECOND_US)

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if kind is Kind.REPLY:
            return False
        if source == partial.host.endpoint:
            return target[1] >= r and not isinstance(message, Query)
        return source[0] == target[0] == "node" and isinstance(message, REPAIRS)

    world.ways.hold(late)
    balances(partial, ONE, OTHER)
    transfer = Transfer(b"move", 60)
    world.start(
        partial.host,
        partial.objects.update((ONE, OTHER), "ledger.transfer2", transfer, partial.who),
    )
    world.run_for(SECOND_US)
    partial.host.crash()
    last = range(n - q, n)
    send(hand, ConditionedKind.BARRIER, OTHER, last, last)
    send(hand, ConditionedKind.COPY, OTHER, last, last)
    for _ in range(3):
        first.run(deposit(first, OTHER, 1))
    for node in world.nodes:
        row = Replica(node.disk, OTHER).row
        collected = {"floor": row.established, "collected_us": time_of(row.established)}
        row = msgspec.structs.replace(row, **collected)
        node.disk.apply([Write(Table.OBJECT, OTHER, encode(row))])
        node.disk.commit()
    world.ways.flow()
    return world


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_a_client_finds_out_that_it_is_at_no_quorum(t: int, b: int) -> None:
    user = left_open(t, b).user("user")
    assert balances(user, ONE) == (100,)
    user.run(deposit(user, ONE, 5))
    assert balances(user, ONE, OTHER) == (105, 103)


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_servers_find_out_unasked(t: int, b: int) -> None:
    world = left_open(t, b)
    world.run_for(60 * SECOND_US)
    latest = [Replica(node.disk, ONE).history.latest_object for node in world.nodes]
    assert len([each for each in latest if each.copy]) >= world.sizes.query_update.q
    assert balances(world.user("user"), ONE, OTHER) == (100, 103)


def test_must_fail_where_a_quorum_has_the_barrier_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nowhere(*_: Any) -> bool:
        return False

    monkeypatch.setattr(Repair, "_spread", nowhere)
    with pytest.raises(ContentionExhausted):
        test_a_client_finds_out_that_it_is_at_no_quorum(1, 1)
    with pytest.raises(AssertionError):
        test_servers_find_out_unasked(1, 1)
