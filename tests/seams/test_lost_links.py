"""A server that lost its disk takes over a copy: it has what that copies, too.

An update is acknowledged; the server that loses its disk is one of its quorum. A barrier at others
and a copy of the update follow, which reach few, and the server finds the copy when it rebuilds.
Then others do not hear of most of those that have it.

Schedules in an asynchronous network, as in `test_lost_disks`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from bftfs.errors import ContentionExhausted
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import Conditioned, ConditionedKind, Known, assemble
from bftfs.query_update.messages import (
    CatalogueRequest,
    HistoryRequest,
    LatestRequest,
    Query,
    Status,
    Update,
)
from bftfs.server import object_healing
from bftfs.server.beneath import NOTHING
from bftfs.simulation.network import Kind
from bftfs.simulation.workloads.ledger import Transfer
from bftfs.simulation.world import SECOND_US
from bftfs.wire.codec import encode
from tests.seams.test_lost_disks import LOSER, ONE, OTHER, REPAIRS, adopt, balances, deposit
from tests.seams.world import Hand, World

HEALING = (HistoryRequest, CatalogueRequest, LatestRequest)


class Schedule:
    """Which messages are late, and what a client that repairs more than it need sends."""

    def __init__(self, t: int, b: int, far: Collection[int]) -> None:
        """`far` are those that the reader does not reach."""
        self.world = world = World(t, b)
        self.sizes = sizes = world.sizes.query_update
        self.user, self.partial, self.reader = map(world.user, ("user", "partial", "reader"))
        self.hand: Hand = world.hand("hand")
        first = world.user("first")
        for account in (ONE, OTHER):
            first.run(deposit(first, account, 100))
        world.run_for(605 * SECOND_US)
        self.reached: list[int] = []  # by the update that is to be incomplete
        late_for = {
            self.user.host.endpoint: range(sizes.q, sizes.n),
            self.reader.host.endpoint: far,
        }

        def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
            if kind is Kind.REPLY:
                return False
            if source == self.partial.host.endpoint:
                return target[1] not in self.reached and not isinstance(message, Query)
            if source[0] == "node" and source[1] >= sizes.q and isinstance(message, HEALING):
                return True  # those outside of the quorum are slow to hear of the update
            if source[0] == target[0] == "node":
                return isinstance(message, REPAIRS)
            return target[1] in late_for.get(source, ())

        world.ways.hold(late)

    def known(self, account: ObjectId) -> dict[NodeId, Known]:
        replies = self.hand.ask_all(Query((account,), "", b"", 0, 0, (), NodeId(0)))
        return {
            NodeId(node): Known(reply.histories[0], reply.authenticators[0])
            for node, reply in replies.items()
        }

    def send(
        self,
        kind: ConditionedKind,
        accounts: tuple[ObjectId, ...],
        of: Collection[int],
        to: Collection[int],
    ) -> None:
        """A barrier or copy, on the histories `of` some servers, `to` some."""
        sets, authenticators = [], []
        for account in accounts:
            known = self.known(account)
            shown = assemble(account, {NodeId(node): known[NodeId(node)] for node in of})
            sets.append(shown[0])
            authenticators.append(shown[1])
        request = Update(
            encode(Conditioned(kind, None, 0, tuple(sets))), tuple(authenticators), (), NodeId(0)
        )
        replies = self.hand.ask(dict.fromkeys(to, (request, b"")))
        assert {reply.status for reply in replies.values()} == {Status.SUCCESS}

    def copy(self, accounts: tuple[ObjectId, ...], to: Collection[int]) -> None:
        """Bar the accounts at a quorum without the server that will fail; copy what is there."""
        quorum = range(1, self.sizes.q + 1)
        for account in accounts:
            self.send(ConditionedKind.BARRIER, (account,), quorum[:-1], quorum)
        self.send(ConditionedKind.COPY, accounts, quorum, to)

    def lose_disk(self) -> None:
        self.world.deployment.lose_disk(NodeId(LOSER))
        recovery = self.world.deployment.recoveries[NodeId(LOSER)]
        self.world.run_until(lambda: not recovery.rebuilding, within_us=40 * SECOND_US)

    def lie(self, liars: Collection[int], accounts: tuple[ObjectId, ...]) -> None:
        """These say that they have heard of nothing, as the last server says."""
        for liar in liars:
            for account in accounts:
                adopt(self.world, NodeId(liar), NodeId(self.sizes.n - 1), account)


# t, b, those that lie in the end, and those that the reader does not reach. With (1, 1) the server
# has rebuilt its store before another one turns Byzantine.
CASES = [(2, 0, (), (2, 3)), (2, 1, (4,), (2, 3)), (1, 1, (1,), (3,))]


@pytest.mark.parametrize(("t", "b", "liars", "far"), CASES)
def test_what_a_copy_copies_is_there_with_it(
    t: int, b: int, liars: Collection[int], far: Collection[int]
) -> None:
    schedule = Schedule(t, b, far)
    schedule.user.run(deposit(schedule.user, ONE, 50))
    schedule.copy((ONE,), range(1, schedule.sizes.r + 1))
    schedule.lose_disk()
    schedule.lie(liars, (ONE,))
    assert balances(schedule.reader, ONE) == (150,)


@pytest.mark.parametrize(("t", "b", "liars", "far"), CASES)
def test_so_is_what_a_copy_of_a_copy_copies(
    t: int, b: int, liars: Collection[int], far: Collection[int]
) -> None:
    schedule = Schedule(t, b, far)
    schedule.user.run(deposit(schedule.user, ONE, 50))
    for _ in range(2):
        schedule.copy((ONE,), range(1, schedule.sizes.r + 1))
    schedule.lose_disk()
    schedule.lie(liars, (ONE,))
    assert balances(schedule.reader, ONE) == (150,)


@pytest.mark.parametrize(("t", "b", "liars", "far"), CASES)
def test_so_it_is_at_all_objects(
    t: int, b: int, liars: Collection[int], far: Collection[int]
) -> None:
    schedule = Schedule(t, b, far)
    user = schedule.user
    transfer = Transfer(b"move", 60)
    user.run(user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who))
    schedule.copy((ONE, OTHER), range(1, schedule.sizes.r + 1))
    schedule.lose_disk()
    schedule.lie(liars, (ONE, OTHER))
    assert balances(schedule.reader, ONE) == (40,)
    assert balances(schedule.reader, OTHER) == (160,)


@pytest.mark.parametrize(("t", "b", "liars", "far"), CASES)
def test_what_an_update_is_made_on_is_there_with_it(
    t: int, b: int, liars: Collection[int], far: Collection[int]
) -> None:
    """Nothing was lost; but nobody could read or change the object without those that are far."""
    schedule = Schedule(t, b, far)
    schedule.user.run(deposit(schedule.user, ONE, 50))
    partial = schedule.partial
    balances(partial, ONE)
    schedule.reached[:] = range(1, schedule.sizes.r + 1)
    schedule.world.start(partial.host, deposit(partial, ONE, 7))
    schedule.world.run_for(SECOND_US)
    partial.host.crash()
    schedule.lose_disk()
    schedule.lie(liars, (ONE,))
    assert balances(schedule.reader, ONE) in ((150,), (157,))


def test_must_fail_a_server_that_takes_over_the_latest_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_healing, "beneath_it", lambda *_: NOTHING)
    for case in CASES:
        for test in (
            test_what_a_copy_copies_is_there_with_it,
            test_so_is_what_a_copy_of_a_copy_copies,
            test_so_it_is_at_all_objects,
        ):
            with pytest.raises(AssertionError, match="assert \\("):
                test(*case)
    with pytest.raises(ContentionExhausted):
        test_what_an_update_is_made_on_is_there_with_it(*CASES[0])


def test_what_nobody_tells_is_waited_for_until_others_have_repaired_it() -> None:
    """Two servers may fail, one of them by lying. Of what a copy copies the server that rebuilds
    hears from one other alone; it waits, and others finish the copy without it."""
    schedule = Schedule(2, 1, ())
    world, partial, liar = schedule.world, schedule.partial, schedule.sizes.n - 1
    balances(partial, ONE)
    schedule.reached[:] = having = [LOSER, 1, 2, liar]
    world.start(partial.host, deposit(partial, ONE, 7))
    world.run_for(SECOND_US)
    partial.host.crash()
    quorum = [*having, 3, 4, 5]
    schedule.send(ConditionedKind.BARRIER, (ONE,), quorum, quorum)
    schedule.send(ConditionedKind.COPY, (ONE,), quorum, (3, 4, 5, 6))
    adopt(world, NodeId(liar), NodeId(liar - 1), ONE)
    loser = ("node", NodeId(LOSER))

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        far = source == loser and target[1] == 1 and isinstance(message, HistoryRequest)
        repairs = source[0] == "node" and isinstance(message, REPAIRS)
        return kind is Kind.REQUEST and (far or repairs)

    world.ways.hold(late)
    world.deployment.lose_disk(NodeId(LOSER))
    world.run_for(20 * SECOND_US)
    recovery = world.deployment.recoveries[NodeId(LOSER)]
    assert recovery.rebuilding
    world.ways.flow()
    world.run_until(lambda: not recovery.rebuilding, within_us=30 * SECOND_US)
    assert balances(schedule.reader, ONE) == (107,)
