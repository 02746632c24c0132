"""A server that lost its disk has forgotten barriers, too: what they ended must stay ended.

Schedules in an asynchronous network: messages of one client, and those that nodes' own repairs
send, are held back for as long as it takes. That is legal; they are late, not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import pytest

from bftfs.asking.lives import Lives
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.crypto.digest import AuthenticatorKeys, replica_history_digest
from bftfs.identifiers import NodeId, ObjectId, object_id
from bftfs.query_update import accepting
from bftfs.query_update.history import (
    Conditioned,
    ConditionedKind,
    Known,
    Operation,
    assemble,
    decode_conditioned,
)
from bftfs.query_update.messages import (
    DeduceRequest,
    FetchRequest,
    HistoryRequest,
    InlineBarrier,
    InlineUpdate,
    LifeRequest,
    Query,
    Status,
    Update,
    UpdateReply,
)
from bftfs.query_update.object_type import encode_record
from bftfs.query_update.observation import Observations
from bftfs.query_update.replica import INITIAL_ROW, rows_of, stored_row
from bftfs.query_update.server import QueryUpdateServer
from bftfs.server import object_healing
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import SimulatedPrincipal
from bftfs.simulation.workloads.ledger import ACCOUNT, Audit, Deposit, Transfer
from bftfs.simulation.world import SECOND_US
from bftfs.simulation.world import World as Agenda
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode
from tests.seams.world import Hand, User, World

ONE = object_id(ACCOUNT, placement=0, unique=b"1" * 14)
OTHER = object_id(ACCOUNT, placement=0, unique=b"2" * 14)
REPAIRS = (Query, Update, InlineUpdate, InlineBarrier, FetchRequest, DeduceRequest)
LOSER = 0  # the server that loses its disk


def balances(user: User, *accounts: ObjectId) -> tuple[int, ...]:
    answered = user.run(
        user.objects.query(accounts, f"ledger.audit{len(accounts)}", Audit(), user.who)
    )
    return tuple(account.balance for account in answered.answer.accounts)


def deposit(user: User, account: ObjectId, amount: int) -> Any:
    return user.objects.update(
        (account,), "ledger.deposit", Deposit(b"%d" % amount, amount), user.who
    )


def is_copy(message: Any) -> bool:
    return (
        isinstance(message, Update)
        and decode_conditioned(message.conditioned).kind is ConditionedKind.COPY
    )


class Schedule:
    """A partial update, a barrier, a copy that is late, and a lost disk in between."""

    def __init__(self, t: int, b: int, accounts: tuple[ObjectId, ...]) -> None:
        self.world = world = World(t, b)
        self.accounts = accounts
        sizes = world.sizes.query_update
        # All but one of the quorum that would have to know it, and all outside of the quorum.
        self.quorum = sizes.q
        self.hosts = [*range(1, sizes.r), *range(sizes.q, sizes.n)]
        self.reached = self.hosts  # by the first client's update, so far
        self.partial, self.barring = world.user("partial"), world.user("barring")
        self.late = False
        self.unknown = False  # does the first client not know what the one that fails has?
        self.far: dict[Any, list[int]] = {}  # by client, servers that it does not reach for now
        self.ways()
        first = world.user("first")
        for account in accounts:
            first.run(deposit(first, account, 100))
        world.run_for(5 * SECOND_US)

    def ways(self) -> None:
        """Whose messages are late: the first client's but to some, the second one's copies."""
        partial, barring = self.partial.host.endpoint, self.barring.host.endpoint

        def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
            if kind is Kind.REPLY:
                return False
            if source == partial:
                unknown = self.unknown and target[1] == LOSER
                return unknown or (target[1] not in self.reached and not isinstance(message, Query))
            if source == barring:
                return self.late or is_copy(message)
            if target[1] in self.far.get(source, ()):
                return True
            # What healing asks comes through; what nodes repair as clients do, does not.
            return bool(source[0] == "node" and isinstance(message, REPAIRS))

        self.world.ways.hold(late)

    def update_partially(self, *, within: bool = False) -> None:
        """An update of all accounts reaches some servers; its client dies.

        Those outside of the quorum it reaches later, if it is to reach those `within` alone.
        """
        partial = self.partial
        balances(partial, *self.accounts)
        if len(self.accounts) == 1:
            update = deposit(partial, *self.accounts, 50)
        else:
            update = partial.objects.update(
                self.accounts, "ledger.transfer2", Transfer(b"move", 100), partial.who
            )
        self.reached = [node for node in self.hosts if not within or node < self.quorum]
        accepted = set()

        def watch(source: Any, target: Any, kind: Kind, message: Any) -> None:
            if isinstance(message, UpdateReply) and target == partial.host.endpoint:
                assert message.status is Status.SUCCESS
                accepted.add(source[1])

        self.world.ways.watch = watch
        self.world.start(partial.host, update)
        self.world.run_until(lambda: accepted == set(self.reached), within_us=60 * SECOND_US)
        self.world.ways.watch = None
        self.world.run_for(2 * SECOND_US)  # what it has sent to the others is on its way
        partial.host.crash()

    def bar(self) -> None:
        """A correct client bars the last account, and sends a copy of what was before it."""
        copies = []

        def watch(source: Any, target: Any, kind: Kind, message: Any) -> None:
            if source == self.barring.host.endpoint and is_copy(message):
                copies.append(target)

        self.world.ways.watch = watch
        self.world.start(self.barring.host, deposit(self.barring, self.accounts[-1], 1))
        self.world.run_until(lambda: bool(copies), within_us=60 * SECOND_US)
        self.world.ways.watch = None
        self.late = True  # and whatever it sends from now on

    def lose_disk(self, wait_us: int = 40 * SECOND_US) -> None:
        """The server comes back with an empty disk, and rebuilds its store meanwhile."""
        self.world.deployment.lose_disk(NodeId(LOSER))
        self.world.run_for(wait_us)

    def update_further(self, *also: int) -> None:
        """What the client that died has sent arrives outside of the quorum, too."""
        outside = [("node", NodeId(node)) for node in self.hosts if node >= self.quorum]
        outside += [("node", NodeId(node)) for node in also]
        partial = self.partial.host.endpoint
        self.world.ways.release(lambda source, target, *_: source == partial and target in outside)
        self.world.run_for(SECOND_US)

    def lie(self, liars: int) -> None:
        """The last servers of the quorum say of the first account what one with the update says."""
        world = self.world
        for liar in range(world.sizes.query_update.q - liars, world.sizes.query_update.q):
            adopt(world, NodeId(liar), NodeId(self.hosts[0]), self.accounts[0])

    def neighbour(self, name: str, liars: int) -> User:
        """A client that does not reach those servers of the quorum that lack the update."""
        user = self.world.user(name)
        self.far[user.host.endpoint] = [
            node for node in range(1, self.quorum - liars) if node not in self.hosts
        ]
        return user

    def copy_to(self, nodes: Collection[int]) -> None:
        """The copies arrive at some servers."""
        self.world.ways.release(
            lambda source, target, _kind, message: bool(
                source == self.barring.host.endpoint and target[1] in nodes and is_copy(message)
            )
        )
        self.world.run_for(SECOND_US)

    def copy(self) -> None:
        """The copies arrive at last, and whatever else was late but repairs of nodes."""
        self.world.ways.release(lambda source, *_: source == self.barring.host.endpoint)
        self.world.run_for(SECOND_US)


def adopt(world: World, liar: NodeId, host: NodeId, name: ObjectId) -> None:
    """A lying node has of an object what another one has, authentically in its own name."""
    source, disk = world.nodes[host].disk, world.nodes[liar].disk
    writes = [Write(table, key, None) for table, key in rows_of(disk, name)]
    writes += [Write(table, key, source.get(table, key)) for table, key in rows_of(source, name)]
    stored = source.get(Table.OBJECT, name)
    row = INITIAL_ROW if stored is None else stored_row(stored)
    digest = replica_history_digest(object=name, encoded=row.history)
    macs = world.deployment.keys(liar).make(digest)
    row = type(row)(row.number, row.established, row.floor, row.history, macs, row.collected_us)
    disk.apply([*writes, Write(Table.OBJECT, name, encode(row))])
    disk.commit()


CASES = [(1, 0, 0), (2, 0, 0), (2, 1, 1), (1, 1, 1)]  # t, b, and how many lie in the end


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_an_update_is_at_all_objects_or_at_none(t: int, b: int, liars: int) -> None:
    """A transfer reaches few servers; the second account is barred, and a copy without it is late.

    A server of that quorum loses its disk and finds the transfer at a repairable set of others.
    With (1, 1) it has rebuilt its store before another server turns Byzantine.
    """
    schedule = Schedule(t, b, (ONE, OTHER))
    world = schedule.world
    schedule.update_partially()
    schedule.bar()
    schedule.lose_disk()
    assert not world.deployment.recoveries[NodeId(LOSER)].rebuilding
    schedule.lie(liars)
    user = world.user("user of the first account")
    before = balances(user, ONE)
    user.run(deposit(user, ONE, 7))
    schedule.copy()
    one, other = balances(world.user("reader"), ONE, OTHER)
    assert before in ((100,), (0,))
    assert one + other in (207, 208), "all that was moved is still there"


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_a_repair_does_not_bring_back_what_was_barred(t: int, b: int, liars: int) -> None:
    """The transfer is at too few when the server walks; a reader's repair brings it, later."""
    schedule = Schedule(t, b, (ONE, OTHER))
    schedule.update_partially(within=True)
    schedule.bar()
    schedule.lose_disk()
    schedule.update_further()
    schedule.lie(liars)
    user = schedule.neighbour("user of the first account", liars)
    balances(user, ONE)
    user.run(deposit(user, ONE, 7))
    schedule.copy()
    one, other = balances(schedule.world.user("reader"), ONE, OTHER)
    assert one + other in (207, 208), "all that was moved is still there"


@pytest.mark.parametrize(("t", "b", "liars"), CASES[:3])
def test_nor_does_a_reader_who_asks_while_it_rebuilds(t: int, b: int, liars: int) -> None:
    """The server is asked for the account at once, and heals it before it answers."""
    schedule = Schedule(t, b, (ONE, OTHER))
    schedule.update_partially()
    schedule.bar()
    schedule.lose_disk(wait_us=SECOND_US // 10)
    if t > 1:
        schedule.lie(liars)
    user = schedule.neighbour("user of the first account", liars)
    balances(user, ONE)
    schedule.world.run_for(5 * SECOND_US)
    schedule.lie(liars)
    user.run(deposit(user, ONE, 7))
    schedule.copy()
    one, other = balances(schedule.world.user("reader"), ONE, OTHER)
    assert one + other in (207, 208), "all that was moved is still there"


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_what_was_read_is_read_again(t: int, b: int, liars: int) -> None:
    """The same with one account: a deposit is read, and then the copy of what was before it."""
    schedule = Schedule(t, b, (ONE,))
    schedule.update_partially()
    schedule.bar()
    schedule.lose_disk()
    schedule.lie(liars)
    (before,) = balances(schedule.world.user("reader"), ONE)
    schedule.copy()
    (after,) = balances(schedule.world.user("later reader"), ONE)
    assert after >= before, "what was deposited and read is still there"


def left_behind_at_few(t: int, b: int, accounts: tuple[ObjectId, ...], *, late: bool) -> None:
    """A copy that leaves an update behind has reached one server too few when a disk is lost.

    The server that lost it has forgotten the barrier on which the copy rests. The update reaches
    the servers outside of that quorum before it asks what they have, or (if `late`) afterwards.
    Then another server turns Byzantine. It has the update at the first account, and the copy at the
    last one; and what is shown by r servers, anybody finishes.
    """
    schedule = Schedule(t, b, accounts)
    world, sizes = schedule.world, schedule.world.sizes.query_update
    if late:  # or others would find outlived what the update shows of the server that fails
        world.run_for(605 * SECOND_US)
        schedule.unknown = True
    schedule.update_partially(within=late)
    schedule.bar()
    schedule.copy_to(range(1, sizes.r))
    schedule.lose_disk()
    schedule.update_further(LOSER)
    liar = NodeId(schedule.quorum - 1)
    adopt(world, liar, NodeId(schedule.quorum), accounts[0])
    if len(accounts) > 1:
        adopt(world, liar, NodeId(1), accounts[-1])
    user = schedule.neighbour("user of the first account", 1)
    query = user.objects.query(accounts[:1], "ledger.audit1", Audit(), user.who)
    ended = world.start(user.host, query)
    world.run_for(5 * SECOND_US)
    if len(accounts) == 1:
        adopt(world, liar, NodeId(1), accounts[0])
    schedule.far.clear()
    world.ways.flow()
    world.run_until(lambda: bool(ended), within_us=60 * SECOND_US)
    before = (ended[0].answer.accounts[0].balance,)
    after = balances(world.user("reader"), *accounts)
    if len(accounts) > 1:
        assert sum(after) in (200, 201), "all that was moved is still there"
    else:
        assert after >= before, "what was read is read again"
    recovery = world.deployment.recoveries[NodeId(LOSER)]
    world.run_until(lambda: not recovery.rebuilding, within_us=60 * SECOND_US)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("accounts", [(ONE,), (ONE, OTHER)])
def test_what_few_have_left_behind_is_not_taken_over(
    accounts: tuple[ObjectId, ...], late: bool
) -> None:
    left_behind_at_few(1, 1, accounts, late=late)


def test_must_fail_a_server_that_waits_for_nobodys_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "is_undecided", lambda *_: False)
    with pytest.raises(AssertionError):
        left_behind_at_few(1, 1, (ONE, OTHER), late=False)


def rebuilt_beside_a_barrier_that_all_have(within_us: int) -> None:
    """One server rebuilds its store. Three others have a copy, and all have a later barrier.

    So it has to wait until others have repaired the object. All were started again since, and no
    client asks for it.
    """
    world = World(2, 1)
    sizes, user, hand = world.sizes.query_update, world.user("user"), world.hand("hand")
    user.run(deposit(user, ONE, 100))

    def known() -> dict[NodeId, Known]:
        replies = hand.ask_all(Query((ONE,), "", b"", 0, 0, (), NodeId(0)))
        return {
            NodeId(node): Known(reply.histories[0], reply.authenticators[0])
            for node, reply in replies.items()
        }

    def send(kind: ConditionedKind, shown: dict[NodeId, Known], to: Collection[int]) -> None:
        history_set, authenticators, _ = assemble(ONE, shown)
        request = Update(
            encode(Conditioned(kind, None, 0, (history_set,))), (authenticators,), (), NodeId(0)
        )
        replies = hand.ask(dict.fromkeys(to, (request, b"")))
        assert {reply.status for reply in replies.values()} == {Status.SUCCESS}

    everyone, few = range(sizes.n), (1, 2, 3)
    histories = known()
    send(ConditionedKind.BARRIER, {node: histories[node] for node in range(sizes.q - 1)}, everyone)
    send(ConditionedKind.COPY, known(), few)
    send(ConditionedKind.BARRIER, {NodeId(1): known()[NodeId(1)]}, everyone)
    for node in world.nodes:
        node.crash(down_us=1_000)
    world.deployment.lose_disk(NodeId(LOSER))
    recovery = world.deployment.recoveries[NodeId(LOSER)]
    world.run_until(lambda: recovery.is_whole, within_us=within_us)


def test_others_repair_what_a_server_waits_for() -> None:
    rebuilt_beside_a_barrier_that_all_have(30 * SECOND_US)


def test_must_fail_servers_that_leave_a_barrier_which_all_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        object_healing, "is_in_order", lambda _latest, nodes, quorums: quorums.is_quorum(nodes)
    )
    with pytest.raises(AssertionError, match="it has not happened"):
        rebuilt_beside_a_barrier_that_all_have(1_300 * SECOND_US)


def read_before_late_messages(world: World, reader: User) -> int:
    """The balance of ONE that the reader reads; what is held comes half a minute after it asks."""
    query = reader.objects.query((ONE,), "ledger.audit1", Audit(), reader.who)
    ended = world.start(reader.host, query)
    world.run_for(30 * SECOND_US)
    world.ways.flow()
    world.run_until(lambda: bool(ended), within_us=60 * SECOND_US)
    balance: int = ended[0].answer.accounts[0].balance
    return balance


def read_before_all_objects_are_heard() -> int:
    """What is read of an account with 100 after a transfer of 50 to another one was acknowledged.

    One of the transfer's quorum loses its disk. Of the first account it hears from all others; of
    the second one from too few, so that it cannot tell what has become of the transfer, though
    it can tell that there were 100. Then another one turns Byzantine.
    """
    world = World()
    first, user, reader = (world.user(name) for name in ("first", "user", "reader"))
    loser = ("node", NodeId(LOSER))
    for account in (ONE, OTHER):
        first.run(deposit(first, account, 100))
    world.run_for(605 * SECOND_US)

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if source == user.host.endpoint:
            return bool(target[1] == 5)
        if source == reader.host.endpoint:
            return bool(target[1] == 4)
        if source == first.host.endpoint:
            return kind is Kind.REQUEST and not isinstance(message, Query)
        if source == loser and isinstance(message, HistoryRequest):
            return message.object == OTHER and target[1] in (1, 2)
        between = source[0] == target[0] == "node"
        return between and kind is Kind.REQUEST and isinstance(message, REPAIRS[:-1])

    world.ways.hold(late)
    transfer = Transfer(b"move", 50)
    user.run(user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who))
    world.deployment.lose_disk(NodeId(LOSER))
    world.start(first.host, first.objects.query((ONE,), "ledger.audit1", Audit(), first.who))
    world.run_for(40 * SECOND_US)
    adopt(world, NodeId(3), NodeId(5), ONE)
    return read_before_late_messages(world, reader)


def test_what_r_have_is_waited_for_where_something_earlier_is_known() -> None:
    assert read_before_all_objects_are_heard() == 50


def test_must_fail_a_server_that_makes_do_with_what_it_can_believe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take = ObjectHealer._take_what_is_shared

    async def satisfied(healer: ObjectHealer, host: Any, name: ObjectId, heard: Any) -> bool:
        await take(healer, host, name, heard)
        await healer._believe(host, name, heard)
        return True

    monkeypatch.setattr(ObjectHealer, "_take_what_is_shared", satisfied)
    assert read_before_all_objects_are_heard() == 100


# --- several disks at once ------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "b"), [(2, 0), (3, 1)])
def test_what_was_acknowledged_survives_t_lost_disks(t: int, b: int) -> None:
    """t servers of an update's quorum lose their disks together; t - 1 others are slow to tell.

    What they hear from each other is no reason to believe that the update never was.
    """
    world = World(t, b)
    sizes, user = world.sizes.query_update, world.user("user")
    losers, slow = range(t), range(sizes.q - t + 1, sizes.q)
    far: dict[Any, range] = {}

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        between = source[0] == target[0] == "node"
        if between and source[1] in slow and target[1] in losers:
            return True
        if kind is Kind.REQUEST and target[1] in far.get(source, ()):
            return True
        return bool(between and kind is Kind.REQUEST and isinstance(message, REPAIRS))

    user.run(deposit(user, ONE, 100))
    world.run_for(605 * SECOND_US)
    world.ways.hold(late)
    user.run(deposit(user, ONE, 50))
    world.run_for(SECOND_US)
    for loser in losers:
        world.deployment.lose_disk(NodeId(loser))
    world.run_for(40 * SECOND_US)
    reader = world.user("reader")
    far[reader.host.endpoint] = range(sizes.q - t, sizes.q)
    ended = world.start(
        reader.host, reader.objects.query((ONE,), "ledger.audit1", Audit(), reader.who)
    )
    world.run_for(30 * SECOND_US)
    far.clear()
    world.ways.flow()
    world.run_until(lambda: bool(ended), within_us=60 * SECOND_US)
    assert ended[0].answer.accounts[0].balance == 150


# --- word that comes late -------------------------------------------------------------------------


def late_word() -> int:
    """What an update has left that was acknowledged to its client; it added 50 to 100.

    A server accepts the update, loses its disk, and rebuilds its store; then the update reaches
    four others, and the word that the first one gave reaches the client last of all. One of the
    four turns out to lie, and a reader does not hear another one.
    """
    world = World()
    first, user, reader = (world.user(name) for name in ("first", "user", "reader"))
    me, loser = user.host.endpoint, ("node", NodeId(LOSER))
    first.run(deposit(first, ONE, 100))
    world.run_for(605 * SECOND_US)
    world.ways.hold(lambda source, target, *_: source == me and target == loser)
    balances(user, ONE)  # or others would find what it shows of that server outlived
    reached = [LOSER]

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if source == me and isinstance(message, Update):
            return target[1] not in reached
        repairs = source[0] == target[0] == "node" and isinstance(message, REPAIRS)
        far = source == reader.host.endpoint and target[1] == 1
        return far or (source == loser and target == me) or (kind is Kind.REQUEST and repairs)

    world.ways.hold(late)
    ended = world.start(user.host, deposit(user, ONE, 50))
    world.run_for(SECOND_US)
    reached.clear()
    world.deployment.lose_disk(NodeId(LOSER))
    world.run_for(40 * SECOND_US)
    reached[:] = [1, 2, 3, 4]
    world.ways.release(lambda source, target, *_: source == me and target[1] in reached)
    world.run_for(SECOND_US)
    assert not ended
    reached.append(5)
    world.ways.release(lambda source, target, *_: source == loser and target == me)
    world.run_until(lambda: bool(ended), within_us=60 * SECOND_US)
    assert ended[0].answer.accounts[0].balance == 150
    adopt(world, NodeId(4), NodeId(5), ONE)
    (left,) = balances(reader, ONE)
    return left


def test_an_update_is_not_acknowledged_by_late_word_of_an_earlier_life() -> None:
    assert late_word() == 150


def test_must_fail_clients_that_remember_what_is_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Observations, "_is_outlived", lambda *_: False)
    assert late_word() == 100


class Credulous(Lives):
    """Doubts nobody's word."""

    def outlived(self, *_: Any) -> Nodes:
        return NOBODY


def fill_accounts(world: World, first: User, user: User) -> None:
    """Deposit 100 on each account. `user` knows of it from all but the server that is to fail.

    If it knew the history of that server, others would find what it shows of it outlived.
    """
    for account in (ONE, OTHER):
        first.run(deposit(first, account, 100))
    world.run_for(605 * SECOND_US)
    me, loser = user.host.endpoint, ("node", NodeId(LOSER))
    world.ways.hold(lambda source, target, *_: source == me and target == loser)
    balances(user, ONE, OTHER)


def lose_disk_twice(world: World, witness: int) -> None:
    """Before it has begun its third life, a server is asked several times what it has."""
    world.deployment.lose_disk(NodeId(LOSER))
    recoveries = world.deployment.recoveries
    world.run_until(lambda: not recoveries[NodeId(LOSER)].rebuilding, within_us=60 * SECOND_US)
    world.ways.hold(
        lambda source, _target, kind, message: bool(
            source[1] == LOSER and kind is Kind.REQUEST and isinstance(message, LifeRequest)
        )
    )
    world.deployment.lose_disk(NodeId(LOSER))
    healer, _ = world.deployment.healers[NodeId(witness)]
    for _ in range(3):
        world.run_for(SECOND_US // 10)
        assert healer._host is not None
        world.start(world.nodes[witness], healer.catch_up(healer._host, ONE))
    world.run_for(SECOND_US)
    world.ways.flow()
    world.run_until(lambda: not recoveries[NodeId(LOSER)].rebuilding, within_us=60 * SECOND_US)


def healed_by_late_word(*, credulous: bool = False, again: bool = False) -> tuple[int, ...]:
    """What is on two accounts after a transfer between them, and a deposit of 1 on the second.

    While a server heals the first account, another one tells it of the transfer, loses its disk,
    and rebuilds its store; then four others get the transfer, and tell of it, too. One of these
    turns out to lie, and its client dies, so that the transfer is lost at the second account.

    The one that loses its disk may do so `again`: then others have known it in an earlier life.
    """
    world = World()
    if again:
        lose_disk_twice(world, 5)
    first, user, later = (world.user(name) for name in ("first", "user", "later"))
    me, loser, node = user.host.endpoint, ("node", NodeId(LOSER)), world.nodes[5]
    fill_accounts(world, first, user)
    reached = [LOSER]

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if kind is Kind.REPLY:
            return False
        if source == me:
            return target[1] not in reached and not isinstance(message, Query)
        if source == ("node", node.node) and isinstance(message, HistoryRequest):
            return bool(target != loser)
        repairs = source[0] == target[0] == "node" and isinstance(message, REPAIRS)
        return repairs or (source == later.host.endpoint and target[1] == 1)

    def arrive(which: Callable[..., bool]) -> None:
        world.ways.release(which)
        world.run_for(SECOND_US // 50)

    world.ways.hold(late)
    transfer = Transfer(b"move", 100)
    world.start(
        user.host, user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who)
    )
    world.run_for(SECOND_US)
    reached.clear()
    healer, _ = world.deployment.healers[node.node]
    if credulous:
        healer._lives = Credulous()
    assert healer._host is not None
    healed = world.start(node, healer.catch_up(healer._host, ONE))
    world.run_for(SECOND_US // 50)
    world.deployment.lose_disk(NodeId(LOSER))
    recovery = world.deployment.recoveries[NodeId(LOSER)]
    world.run_until(lambda: not recovery.rebuilding, within_us=3 * SECOND_US // 2)
    reached[:] = [1, 2, 3, 4]
    arrive(lambda source, target, *_: source == me and target[1] in reached)
    user.host.crash()
    arrive(lambda *message: isinstance(message[3], HistoryRequest))
    assert healed == [credulous]
    adopt(world, NodeId(4), node.node, OTHER)
    later.run(deposit(later, OTHER, 1))
    world.run_for(30 * SECOND_US)
    world.ways.flow()
    return balances(world.user("reader"), ONE, OTHER)


def test_a_server_does_not_heal_by_word_of_several_lives() -> None:
    assert healed_by_late_word() == (100, 101)


def test_must_fail_servers_that_heal_by_word_of_earlier_lives() -> None:
    assert healed_by_late_word(credulous=True) == (0, 101)


def test_a_server_that_has_forgotten_denies_no_life() -> None:
    """It does not know which life it has lived; who heard it say so believed nobody else."""
    assert healed_by_late_word(again=True) == (100, 101)


def test_must_fail_a_server_that_tells_its_life_before_it_has_begun_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = QueryUpdateServer._history

    def hasty(server: QueryUpdateServer, *given: Any) -> Ready:
        recovery, server._recovery = server._recovery, Recovery()
        try:
            return history(server, *given)
        finally:
            server._recovery = recovery

    monkeypatch.setattr(QueryUpdateServer, "_history", hasty)
    with pytest.raises(AssertionError):
        healed_by_late_word(again=True)


def test_a_server_that_has_not_heard_of_a_new_life_is_not_deceived() -> None:
    """Two servers may fail, one of them by lying. A transfer reaches one that loses its disk. It
    rebuilds its store; one of the others does not hear of it. Then the transfer reaches six, and
    a Byzantine client shows the one that has not heard of anything that seven have it.

    Others leave the transfer behind at the second account, where one turns out to lie.
    """
    world = World(2, 1)
    first, user, later, reader = (world.user(name) for name in ("first", "user", "later", "reader"))
    me, loser, unaware = user.host.endpoint, ("node", NodeId(LOSER)), ("node", NodeId(8))
    hand = world.hand("Byzantine client")
    fill_accounts(world, first, user)
    reached = [LOSER]
    far = {later.host.endpoint: (1, 2), reader.host.endpoint: (0, 6)}

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if {source, target} == {loser, unaware}:
            return True
        if kind is Kind.REPLY:
            return False
        if source == me:
            return target[1] not in reached and not isinstance(message, Query)
        repairs = source[0] == target[0] == "node" and isinstance(message, REPAIRS)
        return repairs or target[1] in far.get(source, ())

    world.ways.hold(late)
    word: list[UpdateReply] = []

    def watch(source: Any, target: Any, _kind: Kind, message: Any) -> None:
        if source == loser and target == me and isinstance(message, UpdateReply):
            word.append(message)

    world.ways.watch = watch
    transfer = Transfer(b"move", 100)
    world.start(
        user.host, user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who)
    )
    world.run_for(SECOND_US)
    world.ways.watch = None
    reached.clear()
    world.deployment.lose_disk(NodeId(LOSER))
    recovery = world.deployment.recoveries[NodeId(LOSER)]
    world.run_until(lambda: not recovery.rebuilding, within_us=60 * SECOND_US)
    reached[:] = [1, 2, 3, 4, 5, 7]
    world.ways.release(lambda source, target, *_: source == me and target[1] in reached)
    world.run_for(SECOND_US // 20)
    user.host.crash()
    deceive(hand, unaware[1], reached, word[0])
    adopt(world, NodeId(7), NodeId(6), OTHER)
    later.run(deposit(later, OTHER, 1))
    (seen,) = balances(reader, ONE)
    world.run_for(30 * SECOND_US)
    world.ways.flow()
    one, other = balances(world.user("last"), ONE, OTHER)
    assert one + other in (201, 206), "all that was moved is still there"
    assert seen == one, "what was read stays as it was read"


def test_must_fail_servers_that_do_not_compare_what_makers_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "claims_in", lambda *_: set())
    with pytest.raises(AssertionError):
        test_a_server_that_has_not_heard_of_a_new_life_is_not_deceived()


def deceive(hand: Hand, unaware: int, reached: list[int], word: UpdateReply) -> None:
    """Deposit 5 on the first account at one server, on what others have and one had."""
    replies = hand.ask_all(Query((ONE,), "", b"", 0, 0, (), NodeId(0)))
    known = {
        NodeId(node): Known(replies[node].histories[0], replies[node].authenticators[0])
        for node in reached
    }
    known[NodeId(LOSER)] = Known(word.histories[0], word.authenticators[0])
    history_set, authenticators, _ = assemble(ONE, known)
    arguments = encode_record(Deposit(b"5", 5))
    operation = Operation("ledger.deposit", (ONE,), arguments, 0, 0, (), 1)
    now_us = hand.world.now_us
    conditioned = Conditioned(ConditionedKind.METHOD, operation, now_us, (history_set,))
    message = Update(encode(conditioned), (authenticators,), (), NodeId(unaware))
    hand.ask({unaware: (message, b"")})


# --- each part of the rule is needed --------------------------------------------------------------


def test_must_fail_servers_that_count_earlier_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuted = AuthenticatorKeys.refuted

    def forgiving(keys: AuthenticatorKeys, **given: Any) -> tuple[list[int], list[int]]:
        return refuted(keys, **given)[0], []

    monkeypatch.setattr(AuthenticatorKeys, "refuted", forgiving)
    with pytest.raises(AssertionError):
        test_what_was_read_is_read_again(1, 1, 1)


def test_must_fail_a_server_that_rests_on_forgetful_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    history = QueryUpdateServer._history

    def sure(server: QueryUpdateServer, *given: Any) -> Ready:
        ready = history(server, *given)
        ready.reply = msgspec.structs.replace(ready.reply, remembers=True)
        return ready

    monkeypatch.setattr(QueryUpdateServer, "_history", sure)
    with pytest.raises(AssertionError):
        test_what_was_acknowledged_survives_t_lost_disks(2, 0)


def test_must_fail_a_server_that_makes_do_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "too_many_forgot", lambda *_: True)
    with pytest.raises(AssertionError):
        test_what_was_acknowledged_survives_t_lost_disks(2, 0)


def test_must_fail_a_server_that_takes_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any, **__: Any) -> bool:
        return True

    monkeypatch.setattr(ObjectHealer, "_take_over", nothing)
    with pytest.raises(AssertionError):
        test_a_repair_does_not_bring_back_what_was_barred(1, 0, 0)


# --- clocks ---------------------------------------------------------------------------------------


def drift(host: SimulatedPrincipal, agenda: Agenda, percent: int) -> None:
    """From now on a clock is faster than time by so much, or slower."""
    host.skew_us += percent * 1_000
    agenda.after(100_000, drift, host, agenda, percent)


CLOCKS = ["client slow", "client set back", "server fast", "server set on"]


@pytest.mark.parametrize(
    "clock", ["client slow", "client set back", "server fast", "server set on"]
)
def test_recovery_does_not_rest_on_clocks(clock: str) -> None:
    """An update has reached servers 0 and 3 when 0 loses its disk; 1 accepts it much later.

    The client still counts that 0 has accepted it, by a clock that runs slowly or was set back; or
    0 believes too early that nobody does.
    """
    world = World(1, 0)
    alice, bob = world.user("alice"), world.user("bob")
    alice.run(deposit(alice, ONE, 100))
    balances(bob, ONE)
    accepted: set[int] = set()
    reachable = {0, 3}

    def late(source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if kind is Kind.REQUEST and source == alice.host.endpoint:
            return target[1] not in reachable
        if source == bob.host.endpoint:
            return bool(target[1] == 3)
        return bool(source[0] == "node" and kind is Kind.REQUEST and isinstance(message, REPAIRS))

    def watch(source: Any, target: Any, kind: Kind, message: Any) -> None:
        if isinstance(message, UpdateReply) and message.status is Status.SUCCESS:
            accepted.add(source[1])

    world.ways.hold(late)
    world.ways.watch = watch
    answers = world.start(alice.host, deposit(alice, ONE, 50))
    world.run_until(lambda: accepted == {0, 3})
    world.deployment.lose_disk(NodeId(LOSER))
    loser = world.nodes[LOSER]
    wait_us = 7 * SECOND_US
    match clock:
        case "client slow":
            drift(alice.host, world.agenda, -60)
        case "client set back":
            alice.host.skew_us -= wait_us
        case "server fast":
            drift(loser, world.agenda, 200)
            wait_us = 2 * SECOND_US
        case "server set on":
            loser.skew_us += 60 * SECOND_US
            wait_us = 2 * SECOND_US
    world.run_for(wait_us)
    reachable.add(1)
    world.run_until(lambda: bool(answers))
    assert not isinstance(answers[0], BaseException)
    assert balances(bob, ONE) == (150,)
