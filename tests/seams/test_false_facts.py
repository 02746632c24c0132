"""Servers say of candidates that they are dead. What they say of other objects decides nothing.

A client with a key for reading asks all servers about an update's timestamp and an object that the
update did not touch, and that has moved on since. They find nothing of it there.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from bftfs.identifiers import NodeId, ObjectId, object_id
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.history import (
    Conditioned,
    ConditionedKind,
    Fact,
    Known,
    LogicalTimestamp,
    assemble,
    parse_history,
)
from bftfs.query_update.messages import DeduceReply, DeduceRequest, Query, Status, Update, Verdict
from bftfs.simulation.workloads.ledger import ACCOUNT, Transfer
from bftfs.simulation.world import SECOND_US
from bftfs.wire.codec import Voucher, encode
from tests.seams.test_lost_disks import ONE, OTHER, balances, deposit
from tests.seams.world import READERS_GRANT, World

ELSEWHERE = object_id(ACCOUNT, placement=0, unique=b"3" * 14)
SIZES = [(1, 0), (1, 1), (2, 1)]
BARRIER, COPY = ConditionedKind.BARRIER, ConditionedKind.COPY


class Attack:
    """What a client with a key for reading does to the latest update of the first account."""

    def __init__(self, t: int, b: int) -> None:
        self.world = world = World(t, b)
        self.n, self.q = world.sizes.n, world.sizes.query_update.q
        self.first, self.user = world.user("first"), world.user("user")
        self.hand = world.hand("reader", grant=READERS_GRANT)
        for account in (ONE, OTHER, ELSEWHERE):
            self.first.run(deposit(self.first, account, 100))
        world.run_for(605 * SECOND_US)

    def go_on_elsewhere(self) -> None:
        for _ in range(2):
            self.first.run(deposit(self.first, ELSEWHERE, 1))

    def known(self) -> dict[NodeId, Known]:
        replies = self.hand.ask_all(Query((ONE,), "", b"", 0, 0, (), NodeId(0)))
        return {
            NodeId(node): Known(reply.histories[0], reply.authenticators[0])
            for node, reply in replies.items()
        }

    def said(
        self, timestamp: LogicalTimestamp, objects: tuple[ObjectId, ...]
    ) -> tuple[Voucher, ...]:
        """What servers sign of these objects, of a candidate that is dead there."""
        replies = self.hand.ask_all(DeduceRequest(timestamp, objects))
        return tuple(
            Voucher(NodeId(node), reply.voucher)
            for node, reply in sorted(replies.items())
            if isinstance(reply, DeduceReply) and reply.verdict is Verdict.DEAD
        )

    def send(
        self,
        kind: ConditionedKind,
        of: Collection[int],
        to: Collection[int],
        facts: tuple[Fact, ...] = (),
        vouchers: tuple[Voucher, ...] = (),
    ) -> set[Status]:
        known = self.known()
        shown = {NodeId(node): known[NodeId(node)] for node in of}
        history_set, authenticators, _ = assemble(ONE, shown)
        conditioned = Conditioned(kind, None, 0, (history_set,), (), facts)
        given = (vouchers,) if facts else ()
        request = Update(encode(conditioned), (authenticators,), given, NodeId(0))
        return {each.status for each in self.hand.ask(dict.fromkeys(to, (request, b""))).values()}

    def leave_behind(self, of: tuple[ObjectId, ...]) -> set[Status]:
        """Bar the account at those that have heard of the update last; copy what was before it."""
        latest = parse_history(self.known()[NodeId(0)].history).latest
        vouchers = self.said(latest, (ELSEWHERE,))
        assert len(vouchers) >= self.q, "they say so, and it is true"
        last = range(self.n - self.q, self.n)
        assert self.send(BARRIER, range(self.q - 1), last) == {Status.SUCCESS}
        facts = (Fact(latest, of, established=False),)
        return self.send(COPY, last, range(self.n), facts, vouchers)


@pytest.mark.parametrize("named", ["its own", "the other one"])
@pytest.mark.parametrize(("t", "b"), SIZES)
def test_an_update_is_not_dead_for_what_is_said_of_another_object(
    t: int, b: int, named: str
) -> None:
    attack = Attack(t, b)
    attack.user.run(deposit(attack.user, ONE, 50))
    attack.go_on_elsewhere()
    of = ONE if named == "its own" else ELSEWHERE
    assert attack.leave_behind((of,)).isdisjoint({Status.SUCCESS})
    assert balances(attack.world.user("another"), ONE) == (150,)


@pytest.mark.parametrize("of", [(ONE, OTHER), (ONE,), (ELSEWHERE,)])
@pytest.mark.parametrize(("t", "b"), SIZES)
def test_nor_is_one_of_several_objects(t: int, b: int, of: tuple[ObjectId, ...]) -> None:
    attack = Attack(t, b)
    user, transfer = attack.user, Transfer(b"move", 60)
    user.run(user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who))
    attack.go_on_elsewhere()
    assert attack.leave_behind(of).isdisjoint({Status.SUCCESS})
    assert balances(attack.world.user("another"), ONE, OTHER) == (40, 160)


def test_must_fail_where_facts_are_of_any_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accepting, "_require_pertinent", lambda *_: None)
    with pytest.raises(AssertionError):
        test_an_update_is_not_dead_for_what_is_said_of_another_object(1, 1, "the other one")
    with pytest.raises(AssertionError):
        test_nor_is_one_of_several_objects(1, 1, (ELSEWHERE,))
