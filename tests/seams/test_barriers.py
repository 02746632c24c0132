"""Barriers cost whoever makes them his allowance, and nobody else more than half of the speed."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking import peers
from bftfs.clock_skew import NEAR_US
from bftfs.conversation import Now, Pause, Receive, Send
from bftfs.credentials import Credentials
from bftfs.errors import ContentionExhausted
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import PERMIT_READING, PERMIT_WRITING
from bftfs.identifiers import ClientId, NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.admission import BarrierBudget, Bucket
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    Known,
    assemble,
    history_of,
    logical_timestamp,
    time_of,
)
from bftfs.query_update.messages import (
    InlineBarrier,
    Query,
    QueryReply,
    Status,
    Update,
    UpdateReply,
)
from bftfs.query_update.object_type import Record
from bftfs.query_update.observation import Observed
from bftfs.query_update.replica import Replica
from bftfs.simulation.byzantine.positions import as_sent
from bftfs.simulation.world import SECOND_US
from bftfs.wire.codec import encode
from tests.seams.world import READERS_GRANT, STRANGER, FreeHand, Hand, User, World

COUNTER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
ONE = Increment(1)
OTHER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(13) + b"2")
AHEAD_US = 200 * SECOND_US
FORGER = NodeId(5)


class Counting:
    """A correct client that increments a counter, or the like, one update after the other."""

    def __init__(
        self,
        world: World,
        user: User | None = None,
        identifier: ObjectId = COUNTER,
        method: str = "counter.increment",
        arguments: Record = ONE,
    ) -> None:
        self._world = world
        self._user = user or world.user("correct", Credentials(uid=1000, gid=1000))
        self._update = (identifier,), method, arguments
        self.count = 0
        self.errors: list[BaseException] = []
        self._user.host.start(self._increment(), lambda _, error: self._ended(error))

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            self.errors.append(error)

    async def _increment(self) -> None:
        while True:
            await self._user.objects.update(*self._update, self._user.who)
            self.count += 1

    def rate(self, duration_us: int) -> float:
        """Updates per second from now on."""
        before = self.count
        self._world.run_for(duration_us)
        assert not self.errors, self.errors
        return (self.count - before) * SECOND_US / duration_us


def rates(
    world: World, *attacks: tuple[Any, Coroutine[Any, Any, None]], apart_us: int = 0
) -> tuple[float, float]:
    """Updates per second of a correct client: alone, and while others attack."""
    counting = Counting(world)
    world.run_for(SECOND_US // 4)
    alone = counting.rate(SECOND_US // 2)
    for number, (host, attack) in enumerate(attacks):
        world.agenda.after(number * apart_us, world.start, host, attack)
    world.run_for(SECOND_US)  # any burst that is allowed is over
    return alone, counting.rate(SECOND_US)


def histories(hand: FreeHand, name: ObjectId = COUNTER) -> dict[NodeId, Known]:
    """What nodes report of an object."""
    replies = hand.ask_all(Query((name,), "", b"", 0, 0, (), NodeId(0)))
    return {
        NodeId(node): Known(reply.histories[0], reply.authenticators[0])
        for node, reply in replies.items()
    }


# --- barriers that carry a clock -----------------------------------------------------------------


def barrier(
    known: Known, reporter: NodeId, clock_us: int = 0, *, name: ObjectId = COUNTER
) -> Update:
    """A barrier that is conditioned on what one server reports."""
    history_set, authenticators, _ = assemble(name, {reporter: known})
    conditioned = Conditioned(ConditionedKind.BARRIER, None, clock_us, (history_set,))
    return Update(encode(conditioned), (authenticators,), (), NodeId(0))


async def bar(world: World, known: Known, reporter: NodeId, clock_us: int = 0) -> None:
    """Send all nodes such a barrier."""
    request = barrier(known, reporter, clock_us)
    for node in range(world.sizes.n):
        await Send(NodeId(node), as_sent(request, node, world.sizes.n))


async def clocked(world: World, known: Known, every_us: int) -> None:
    """Barriers far in the future, all conditioned on one old history of one server."""
    while True:
        await bar(world, known, NodeId(0), await Now() + AHEAD_US)
        await Pause(every_us)


WAYS = [(2_000, 5_100), (20_000, 100_000)]  # one way, and between two barriers


@pytest.mark.parametrize(("delay_us", "every_us"), WAYS)
def test_a_reader_does_not_stop_updates(delay_us: int, every_us: int) -> None:
    """A client that may only read makes barriers 200 s ahead, within its allowance."""
    assert SECOND_US // every_us <= limits.REPAIRS_PER_SECOND
    world = World(delay_us=(delay_us, delay_us))
    user = world.user("first")
    user.run(user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who))
    reader = world.hand("reader", grant=READERS_GRANT)
    known = histories(reader)[NodeId(0)]
    alone, attacked = rates(world, (reader.host, clocked(world, known, every_us)))
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


async def racing(world: World, pause_us: int) -> None:
    """Ask one server for its history, and bar what it says at once: no clock, nothing forged."""
    while True:
        await Send(NodeId(0), Query((COUNTER,), "", b"", 0, 0, (), NodeId(0)))
        reply: Any = None
        while not isinstance(reply, QueryReply):
            delivery = await Receive(SECOND_US)
            reply = None if delivery is None else delivery.message
        await bar(world, Known(reply.histories[0], reply.authenticators[0]), NodeId(0))
        await Pause(pause_us)


@pytest.mark.parametrize(("readers", "pause_us"), [(1, 1), (4, 5_100)])
def test_readers_that_race_do_not_stop_updates(readers: int, pause_us: int) -> None:
    """Readers bar whatever is latest, as fast as they may, or four of them at half of that."""
    world = World(delay_us=(2_000, 2_000))
    user = world.user("first")
    user.run(user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who))
    hands = [world.hand(f"reader {number}", grant=READERS_GRANT) for number in range(readers)]
    attacks = [(hand.host, racing(world, pause_us)) for hand in hands]
    alone, attacked = rates(world, *attacks, apart_us=pause_us // readers)
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


def test_must_fail_where_barriers_have_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BarrierBudget, "take", lambda *_: True)
    with pytest.raises(AssertionError):
        test_readers_that_race_do_not_stop_updates(readers=1, pause_us=1)


async def asking(user: User, identifier: ObjectId) -> None:
    """Ask an inode if reading is permitted, which is an update, without a pause."""
    while True:
        await user.objects.update((identifier,), PERMIT_READING, NoArguments(), user.who)


@pytest.mark.parametrize("delay_us", [2_000, 20_000])
def test_readers_that_ask_for_permission_do_not_stop_updates(delay_us: int) -> None:
    """Keys for reading alone, and a file that everybody may read."""
    world = World(delay_us=(delay_us, delay_us))
    root = world.user("root")
    root.format()
    identifier = root.make("shared", "contents", mode=0o644)
    counting = Counting(world, root, identifier, PERMIT_WRITING, NoArguments())
    alone = counting.rate(SECOND_US)
    readers = [world.user(f"reader {each}", STRANGER, grant=READERS_GRANT) for each in range(4)]
    for reader in readers:
        world.start(reader.host, asking(reader, identifier))
    world.run_for(6 * SECOND_US)  # what is allowed at first is over
    attacked = counting.rate(4 * SECOND_US)
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


def test_must_fail_where_readers_ask_as_often_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accepting, "_require_question", lambda *_: None)
    with pytest.raises(AssertionError, match="updates/s became"):
        test_readers_that_ask_for_permission_do_not_stop_updates(2_000)


def barriers_after(method: str) -> int:
    """How many barriers a client may make that has updated a file three times, in this way."""
    world = World(verifying=False)
    root, user = world.user("root"), world.user("client", STRANGER)
    root.format()
    identifier = root.make("shared", "contents", mode=0o646)
    for _ in range(3):
        user.run(user.objects.update((identifier,), method, NoArguments(), user.who))
    hand = world.hand("client")
    made = 0
    while True:
        known = histories(hand, identifier)[NodeId(0)]
        (reply,) = hand.ask({0: (barrier(known, NodeId(0), name=identifier), b"")}).values()
        if reply.status is not Status.SUCCESS:
            return made
        made += 1


def test_who_asks_for_permission_to_read_earns_no_barriers() -> None:
    most = limits.BARRIERS_EARNED + limits.BARRIERS_OF_OTHERS
    assert barriers_after(PERMIT_READING) < most
    assert barriers_after(PERMIT_WRITING) > 3 * limits.BARRIERS_EARNED


def test_must_fail_where_questions_earn_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Accepting,
        "_require_question",
        lambda self, request, _: self._budget.earn(request.replicas[0].object, request.author),
    )
    with pytest.raises(AssertionError):
        test_who_asks_for_permission_to_read_earns_no_barriers()


# --- barriers that a node forges -----------------------------------------------------------------


def forged(world: World, ahead_us: int = AHEAD_US) -> Iterator[Known]:
    """Histories with barriers that node 5 says it has accepted, each later than the one before."""
    hand = Hand(world, "forger", None, (int(FORGER),))
    number = 0
    while True:
        number += 1
        later = logical_timestamp(
            time_us=world.now_us + ahead_us,
            barrier=True,
            client=ClientId(b"c" * 16),
            digest=number.to_bytes(32, "big"),
        )
        own = Replica(world.nodes[FORGER].disk, COUNTER).history
        head = own.latest_object.timestamp if own.candidates else ZERO
        history = history_of(
            (*(each for each in own.candidates if not each.barrier), Candidate(later, head)),
            initial=own.initial,
        )
        yield hand.forged(int(FORGER), COUNTER, history)


async def flood(world: World, histories: Iterator[Known], every_us: int) -> None:
    """A forged barrier to everybody, again and again."""
    for known in histories:
        history_set, authenticators, _ = assemble(COUNTER, {FORGER: known})
        for node in range(world.sizes.n):
            if node != FORGER:
                barred = InlineBarrier(history_set, authenticators)
                await Send(NodeId(node), as_sent(barred, node, world.sizes.n))
        await Pause(every_us)


async def build_on(world: World, histories: Iterator[Known], every_us: int) -> None:
    """The same, but the barriers are the sender's own, on top of what the node has forged."""
    for known in histories:
        await bar(world, known, FORGER)
        await Pause(every_us)


PUSHED = [(1_000, 4_000), (20_000, 200_000)]


@pytest.mark.parametrize(("delay_us", "every_us"), PUSHED)
def test_a_node_does_not_stop_updates(delay_us: int, every_us: int) -> None:
    """One node pushes barriers that it forged, under its own name."""
    world = World(delay_us=(delay_us, delay_us))
    host = world.nodes[FORGER]
    alone, attacked = rates(world, (host, flood(world, forged(world), every_us)))
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


@pytest.mark.parametrize(("delay_us", "every_us"), PUSHED)
def test_a_reader_with_a_nodes_key_does_not_stop_updates(delay_us: int, every_us: int) -> None:
    """The same barriers, sent by a client that may only read."""
    world = World(delay_us=(delay_us, delay_us))
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))
    alone, attacked = rates(world, (reader.host, flood(world, forged(world), every_us)))
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


@pytest.mark.parametrize(("delay_us", "every_us"), [(2_000, 5_100), (20_000, 100_000)])
def test_barriers_on_forged_histories_do_not_stop_updates(delay_us: int, every_us: int) -> None:
    """A reader makes barriers of its own on what the node has forged, within its allowance."""
    world = World(delay_us=(delay_us, delay_us))
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))
    alone, attacked = rates(world, (reader.host, build_on(world, forged(world), every_us)))
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


@pytest.mark.parametrize(("delay_us", "every_us"), PUSHED)
def test_many_readers_with_a_nodes_key_do_not_stop_updates(delay_us: int, every_us: int) -> None:
    """The same, by four clients in turns: what each may do must not add up."""
    world = World(delay_us=(delay_us, delay_us))
    barriers = forged(world)
    hands = [world.hand(f"reader {number}", grant=READERS_GRANT) for number in range(4)]
    attacks = [(hand.host, flood(world, barriers, 4 * every_us)) for hand in hands]
    alone, attacked = rates(world, *attacks, apart_us=every_us)
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


# --- budgets ----------------------------------------------------------------------------------


async def query(node: int) -> Known:
    """What a server reports of the counter, asked until it answers."""
    while True:
        await Send(NodeId(node), Query((COUNTER,), "", b"", 0, 0, (), NodeId(0)))
        delivery = await Receive(SECOND_US)
        if delivery is not None and isinstance(delivery.message, QueryReply):
            return Known(delivery.message.histories[0], delivery.message.authenticators[0])


async def drain(world: World, node: int, pause_us: int) -> None:
    """At one server, a barrier on whatever it has; with other clients, one of its own at each."""
    while True:
        barred = as_sent(barrier(await query(node), NodeId(node)), node, world.sizes.n)
        await Send(NodeId(node), barred)
        await Pause(pause_us)


def waits_us(world: World, *, pause_us: int = 5_100) -> int:
    """How long a client waits that has never updated the object, while readers drain its budget."""
    user = world.user("first")
    user.run(user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who))
    for node in range(world.sizes.n):
        reader = world.hand(f"reader {node}", grant=READERS_GRANT)
        world.start(reader.host, drain(world, node, pause_us))
    world.run_for(6 * SECOND_US)
    begun_us = world.now_us
    newcomer = world.user("newcomer", Credentials(uid=7, gid=7))
    newcomer.run(
        newcomer.objects.update((COUNTER,), "counter.increment", Increment(1), newcomer.who)
    )
    return world.now_us - begun_us


@pytest.mark.parametrize("delay_us", [2_000, 10_000])
def test_readers_do_not_use_up_what_a_newcomer_needs(delay_us: int) -> None:
    """Readers take each server's barriers as they come, and a different one at each server."""
    world = World(delay_us=(delay_us, delay_us))
    assert waits_us(world) < 5 * SECOND_US


async def spread(world: World, reader: Hand, barriers: Iterator[Known], pause_us: int) -> None:
    """Bar at one server after the other; with its ally's word, each is taken inline by the rest."""
    number = 0
    while True:
        number += 1
        node = NodeId(number % int(FORGER))
        await Send(node, as_sent(barrier(next(barriers), FORGER), node, world.sizes.n))
        delivery = await Receive(SECOND_US)
        while delivery is not None and delivery.node != node:
            delivery = await Receive(SECOND_US)
        reply = None if delivery is None else delivery.message
        if isinstance(reply, UpdateReply) and reply.status is Status.SUCCESS:
            known = Known(reply.histories[0], reply.authenticators[0])
            alike = {node: known, FORGER: reader.forged(int(FORGER), COUNTER, known.history)}
            shown, made, _ = assemble(COUNTER, alike)
            for other in range(world.sizes.n):
                barred = as_sent(InlineBarrier(shown, made), other, world.sizes.n)
                await Send(NodeId(other), barred)
        await Pause(pause_us)


def test_what_one_server_lets_pass_counts_at_all() -> None:
    """A reader and a node that knows each barrier: five servers are not five budgets."""
    world = World(delay_us=(20_000, 20_000))
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))
    barriers = forged(world, 60 * SECOND_US)
    counting = Counting(world)
    world.run_for(SECOND_US)
    alone = counting.rate(SECOND_US)
    world.start(reader.host, spread(world, reader, barriers, pause_us=40_000))
    world.run_for(6 * SECOND_US)
    attacked = counting.rate(5 * SECOND_US)
    assert attacked >= alone / 2, f"{alone:.0f} updates/s became {attacked:.1f}"


def evidence_of(hand: FreeHand, names: Sequence[ObjectId]) -> tuple[list[Any], tuple[bytes, ...]]:
    """What all nodes report of these objects, with the authenticators."""
    shown = [assemble(name, histories(hand, name)) for name in names]
    return [each[0] for each in shown], tuple(each[1] for each in shown)


@pytest.mark.parametrize("ahead_us", [AHEAD_US, 365 * 24 * 3_600 * SECOND_US])
def test_one_object_does_not_move_the_time_of_another(ahead_us: int) -> None:
    """A barrier over two objects would be later than both; one of them is its maker's."""
    world = World()
    hand, names = two_objects(world, ahead_us)
    sets, macs = evidence_of(hand, names)
    conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, tuple(sets))
    hand.ask_all(Update(encode(conditioned), macs, (), NodeId(0)))
    assert latest_us(world) < world.now_us + limits.CLOCK_SKEW_US


def two_objects(world: World, ahead_us: int) -> tuple[Hand, list[ObjectId]]:
    """A reader; and two objects, of which one was changed while all clocks were so far ahead."""
    user, maker = world.user("first"), world.user("maker", Credentials(uid=7, gid=7))
    user.run(incrementing(user))
    hosts = (*world.nodes, maker.host)
    for host in hosts:
        host.skew_us += ahead_us
    maker.run(maker.objects.update((OTHER,), "counter.increment", Increment(1), maker.who))
    for host in hosts:
        host.skew_us -= ahead_us
    return world.hand("reader", grant=READERS_GRANT), [COUNTER, OTHER]


def latest_us(world: World) -> int:
    return max(time_of(Replica(node.disk, COUNTER).history.latest) for node in world.nodes)


def copied_together(ahead_us: int) -> tuple[World, set[Status]]:
    """A reader bars both objects, though nothing is out of order, and copies them together."""
    world = World(verifying=False)
    hand, names = two_objects(world, ahead_us)
    for name in names:
        known = histories(hand, name)
        few = {node: known[node] for node in sorted(known)[: world.sizes.query_update.q - 1]}
        history_set, authenticators, _ = assemble(name, few)
        conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (history_set,))
        hand.ask_all(Update(encode(conditioned), (authenticators,), (), NodeId(0)))
    sets, macs = evidence_of(hand, names)
    conditioned = Conditioned(ConditionedKind.COPY, None, 0, tuple(sets))
    replies = hand.ask_all(Update(encode(conditioned), macs, (), NodeId(0)))
    return world, {reply.status for reply in replies.values()}


@pytest.mark.parametrize("ahead_us", [3_600 * SECOND_US, 365 * 24 * 3_600 * SECOND_US])
def test_a_copy_does_not_carry_one_objects_time_over_to_another(ahead_us: int) -> None:
    """All its objects have one time; and barriers below it are there for a reader to make."""
    world, statuses = copied_together(ahead_us)
    assert statuses == {Status.INSANE_TIME}
    user = world.user("user")
    user.run(incrementing(user))
    assert latest_us(world) <= world.now_us


def test_a_copy_that_has_to_wait_takes_the_steps_of_its_maker_once() -> None:
    """One node lacks the version that is to be copied, and gets it before it takes the copy."""
    _, statuses = copied_together(FAST_US)
    assert statuses == {Status.SUCCESS}


def test_must_fail_where_a_copy_takes_steps_before_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_steps_at_once(monkeypatch)
    _, statuses = copied_together(FAST_US)
    assert statuses == {Status.SUCCESS, Status.INSANE_TIME}


def take_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are taken when they are looked for, whatever comes of the request."""
    may_move, move = BarrierBudget.may_move, BarrierBudget.move

    def moved(self: BarrierBudget, *of_what: Any) -> bool:
        may = may_move(self, *of_what)
        if may:
            move(self, *of_what)
        return may

    monkeypatch.setattr(BarrierBudget, "may_move", moved)
    monkeypatch.setattr(BarrierBudget, "move", lambda *_: None)


def test_must_fail_where_a_copy_is_of_any_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accepting, "_require_together", lambda *_: set())
    world, statuses = copied_together(3_600 * SECOND_US)
    assert statuses == {Status.SUCCESS}
    assert latest_us(world) > world.now_us + 3_000 * SECOND_US


# --- barriers ahead of clocks --------------------------------------------------------------------

FAST_US = limits.CLOCK_SKEW_US - SECOND_US  # ahead of the nodes: as much as is allowed, nearly


def ahead_of_clocks(world: World, hand: Hand, ahead_us: int) -> Known:
    """What its ally forges: that it has accepted a barrier which is so far ahead."""
    time_us = world.now_us + ahead_us
    later = logical_timestamp(time_us=time_us, barrier=True, client=hand.client, digest=bytes(32))
    return hand.forged(int(FORGER), COUNTER, history_of([Candidate(later, ZERO)], initial=True))


def left_by_a_fast_clock(world: World, fast_us: int) -> None:
    """A client with a fast clock, who updates the object for the first time, leaves it at one.

    Another node is down: the one that has it is needed.
    """
    first, fast = world.user("first"), world.user("fast", skew_us=fast_us)
    first.run(incrementing(first))
    fast.run(fast.objects.query((COUNTER,), "counter.fetch", Fetch(), fast.who))
    has_it = world.nodes[2]
    world.ways.hold(lambda _source, target, *_: target != has_it.endpoint)
    world.start(fast.host, incrementing(fast))
    world.run_for(SECOND_US // 2)
    fast.host.crash()
    world.ways.hold(lambda *_: False)
    left_us = time_of(Replica(has_it.disk, COUNTER).history.latest) - world.now_us
    assert left_us > fast_us - SECOND_US
    world.nodes[FORGER].crash(down_us=None)


def incrementing(user: User) -> Coroutine[Any, Any, Any]:
    return user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)


@pytest.mark.parametrize("skew_us", [-SECOND_US, FAST_US // 2, FAST_US])
def test_what_a_fast_clock_has_left_stops_nobody(skew_us: int) -> None:
    """Whoever comes has never updated the object either, and all clocks are within the bounds."""
    world = World(verifying=False)
    left_by_a_fast_clock(world, FAST_US)
    newcomer = world.user("newcomer", skew_us=skew_us)
    newcomer.run(incrementing(newcomer), within_us=5 * SECOND_US)


def test_must_fail_where_no_barrier_is_ahead_of_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BarrierBudget, "may_move", lambda *_: False)
    with pytest.raises(AssertionError, match="within 5 s"):
        test_what_a_fast_clock_has_left_stops_nobody(FAST_US)


def test_who_finds_the_steps_used_up_waits_and_does_not_give_up() -> None:
    """Somebody has used them, with its key and the word of a node that lies."""
    world = World(verifying=False)
    hand = world.hand("newcomer", allies=(FORGER,))
    ahead_us = limits.CLOCK_SKEW_US // 3
    for _ in range(limits.BARRIER_STEPS + 1):
        request = barrier(ahead_of_clocks(world, hand, ahead_us), FORGER)
        replies = hand.ask(dict.fromkeys(range(int(FORGER)), (request, b"")))
        ahead_us += SECOND_US
    assert {reply.status for reply in replies.values()} == {Status.INSANE_TIME}
    left_by_a_fast_clock(world, FAST_US)
    newcomer = world.user("newcomer", skew_us=FAST_US)
    assert newcomer.host.client == hand.client
    newcomer.run(incrementing(newcomer), within_us=limits.CLOCK_SKEW_US)


def test_must_fail_where_clients_go_by_their_own_clocks_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_own_clock = Observed.is_pushed_ahead
    monkeypatch.setattr(
        Observed, "is_pushed_ahead", lambda each, now_us, **_: by_own_clock(each, now_us)
    )
    with pytest.raises(ContentionExhausted):
        test_who_finds_the_steps_used_up_waits_and_does_not_give_up()


def test_barriers_that_nodes_do_not_take_use_up_no_steps() -> None:
    """Who has used up its barriers waits a second for the next one, and not for the clocks."""
    world = World(verifying=False)
    left_by_a_fast_clock(world, FAST_US)
    hand = world.hand("newcomer", allies=(FORGER,))
    for second in range(limits.BARRIERS_EARNED + limits.BARRIERS_OF_OTHERS + 1):
        request = barrier(ahead_of_clocks(world, hand, second * SECOND_US), FORGER)
        replies = hand.ask(dict.fromkeys((0, 1, 3, 4), (request, b"")))
    assert {reply.status for reply in replies.values()} == {Status.TOO_MANY}
    newcomer = world.user("newcomer", skew_us=FAST_US)
    assert newcomer.host.client == hand.client
    newcomer.run(incrementing(newcomer), within_us=10 * SECOND_US)


def test_must_fail_where_barriers_that_are_refused_use_up_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_steps_at_once(monkeypatch)
    with pytest.raises(AssertionError, match="within 10 s"):
        test_barriers_that_nodes_do_not_take_use_up_no_steps()


def test_a_node_does_not_keep_an_object_ahead_of_the_slowest_clock() -> None:
    """It forges histories as far ahead as the node with the fastest clock takes them, again and
    again; a reader bars there on top of them. The others need as long as clocks differ, once."""
    world = World()
    fastest = world.nodes[0]
    fastest.skew_us = 5 * SECOND_US
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))

    async def push() -> None:
        while True:
            known = ahead_of_clocks(world, reader, fastest.skew_us + FAST_US)
            barred = as_sent(barrier(known, FORGER), fastest.node, world.sizes.n)
            await Send(fastest.node, barred)
            await Pause(SECOND_US // 2)

    user = world.user("user")
    user.run(incrementing(user))
    world.nodes[FORGER].crash(down_us=None)
    world.start(reader.host, push())
    world.run_for(10 * SECOND_US)
    user.run(incrementing(user), within_us=10 * SECOND_US)


def test_must_fail_where_a_node_moves_an_objects_time_as_it_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BarrierBudget, "may_move", lambda *_: True)
    with pytest.raises(AssertionError, match="within 10 s"):
        test_a_node_does_not_keep_an_object_ahead_of_the_slowest_clock()


def exhausting(world: World, hand: Hand) -> None:
    """With its ally's word a reader uses all steps up that it has, at all nodes; and at one of them
    it puts the object's time as far ahead as that allows."""
    for step in range(limits.BARRIER_STEPS):
        ahead_us = NEAR_US + SECOND_US + step
        request = barrier(ahead_of_clocks(world, hand, ahead_us), FORGER)
        hand.ask(dict.fromkeys(range(1, int(FORGER)), (request, b"")))
    request = barrier(ahead_of_clocks(world, hand, FAST_US), FORGER)
    replies = hand.ask({0: (request, b"")})
    assert replies[0].status is Status.SUCCESS


def test_what_others_have_used_up_is_not_missing_to_a_newcomer() -> None:
    """All clocks are equal. The lying node is silent then, so that all others are needed."""
    world = World(verifying=False)
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))
    exhausting(world, reader)
    world.nodes[FORGER].crash(down_us=None)
    newcomer = world.user("newcomer")
    newcomer.run(incrementing(newcomer), within_us=10 * SECOND_US)


def test_must_fail_where_all_clients_share_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("may_move", "move"):
        of_each = getattr(BarrierBudget, name)
        monkeypatch.setattr(
            BarrierBudget,
            name,
            lambda self, name, _, *of, of_each=of_each: of_each(
                self, name, ClientId(bytes(16)), *of
            ),
        )
    with pytest.raises(AssertionError, match="within 10 s"):
        test_what_others_have_used_up_is_not_missing_to_a_newcomer()


def pushes_of_a_reader_that_uses_many_objects(world: World) -> int:
    """How often one node lets it put the counter's time ahead, if it bars many others meanwhile."""
    reader = world.hand("reader", grant=READERS_GRANT, allies=(FORGER,))
    for push in range(3):
        request = barrier(ahead_of_clocks(world, reader, FAST_US - 3 + push), FORGER)
        (reply,) = reader.ask({0: (request, b"")}).values()
        if reply.status is not Status.SUCCESS:
            return push
        shown = ahead_of_clocks(world, reader, push).history
        for number in range(limits.OBJECTS_BARRED_OF_CLIENT):
            unique = (1 + number).to_bytes(14, "big")
            name = object_id(ObjectKind.COUNTER, placement=0, unique=unique)
            known = reader.forged(int(FORGER), name, shown)
            reader.ask({0: (barrier(known, FORGER, name=name), b"")})
        world.run_for(SECOND_US)
    return 3


def test_nobody_gets_steps_back_by_the_use_of_many_objects() -> None:
    assert pushes_of_a_reader_that_uses_many_objects(World(verifying=False)) == 1


def test_must_fail_where_what_is_forgotten_is_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "lower", lambda *_: None)
    assert pushes_of_a_reader_that_uses_many_objects(World(verifying=False)) == 3


RACED_US = 20 * SECOND_US


def test_who_races_a_fast_clock_stops_others_for_as_long_as_clocks_differ() -> None:
    """It leaves an update as far ahead as the node with the fastest clock takes it, and this one is
    needed. Who comes finds it ahead of its own clock, too, and has to doubt that."""
    world = World(verifying=False)
    world.nodes[2].skew_us = RACED_US
    left_by_a_fast_clock(world, RACED_US + FAST_US)
    newcomer = world.user("newcomer")
    newcomer.run(incrementing(newcomer), within_us=2 * RACED_US)


def test_must_fail_where_a_doubt_ends_before_the_pause_for_clocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "_DOUBT_US", 2 * SECOND_US)
    with pytest.raises(AssertionError, match="within 40 s"):
        test_who_races_a_fast_clock_stops_others_for_as_long_as_clocks_differ()


# --- what must stay possible ---------------------------------------------------------------------


def test_clients_whose_clocks_are_fast_contend() -> None:
    """Within what clocks may differ; one node is down, so that all others are needed."""
    world = World(delay_us=(500, 2_500))
    world.nodes[4].crash(down_us=None)
    users = [
        world.user(f"user {number}", Credentials(uid=number, gid=1), skew_us=AHEAD_US)
        for number in range(1, 11)
    ]

    async def work(user: User) -> None:
        for _ in range(5):
            await user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)

    ended = [world.start(user.host, work(user)) for user in users]
    world.run_until(lambda: all(ended), within_us=5 * SECOND_US)
    assert ended == [[None]] * len(users)


@pytest.mark.parametrize("hosts", [(0,), (0, 1), (0, 1, 2), (1, 3, 5)])
def test_a_reader_repairs_what_a_crashed_writer_left(hosts: tuple[int, ...]) -> None:
    """An update has reached some servers when its client dies; nodes do not repair by themselves.

    A client that may only read finds the object in order within a second, whoever else is down.
    """
    world = World(verifying=False)
    writer = world.user("writer")
    writer.run(writer.objects.update((COUNTER,), "counter.increment", Increment(1), writer.who))
    world.ways.hold(
        lambda source, target, *_: source == writer.host.endpoint and target[1] not in hosts
    )
    world.start(
        writer.host,
        writer.objects.update((COUNTER,), "counter.increment", Increment(1), writer.who),
    )
    world.run_for(SECOND_US)
    writer.host.crash()
    world.nodes[4].crash(down_us=None)
    reader = world.user("reader", STRANGER, grant=READERS_GRANT)
    query = reader.objects.query((COUNTER,), "counter.fetch", Fetch(), reader.who)
    assert reader.run(query, within_us=SECOND_US).answer.value in (1, 2)
