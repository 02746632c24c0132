"""One node lies about its own lives: what others can do without it, they go on doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from bftfs.asking.quorum import NOBODY
from bftfs.conversation import Pause, Send
from bftfs.crypto import digest
from bftfs.crypto.digest import LIFE_BYTES, LIFE_DIGEST, replica_history_digest
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.query_update.consistent import Claims
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.messages import LifeRequest, QueryReply, Status, Update, UpdateReply
from bftfs.query_update.observation import Observations
from bftfs.query_update.repair import Repair
from bftfs.query_update.replica import Replica
from bftfs.query_update.rounds import Rounds
from bftfs.read_write.descent import Descent
from bftfs.read_write.messages import ReadReply
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from tests.seams.world import User, World

LIAR = NodeId(5)
COUNTERS = [object_id(ObjectKind.COUNTER, placement=each, unique=bytes(14)) for each in range(6)]


def claim(world: World, life: int, nodes: Iterable[int]) -> None:
    """The liar shows these nodes that it has begun a life."""

    async def tell() -> None:
        proof = world.deployment.keys(LIAR).make(LIFE_DIGEST, life=life)
        for node in nodes:
            await Send(NodeId(node), LifeRequest(proof))

    world.start(world.nodes[LIAR], tell())
    world.run_for(SECOND_US // 10)


def increment(user: User, name: ObjectId) -> Any:
    return user.objects.update((name,), "counter.increment", Increment(1), user.who)


def fetch(user: User, name: ObjectId) -> int:
    query = user.objects.query((name,), "counter.fetch", Fetch(), user.who)
    value: int = user.run(query, within_us=5 * SECOND_US).answer.value
    return value


@pytest.mark.parametrize("life", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_life_that_no_reply_can_tell_is_none(life: int) -> None:
    """Correct nodes name the liar's life in each of their replies."""
    world = World()
    user = world.user("user")
    user.run(increment(user, COUNTERS[0]))
    claim(world, life, range(5))
    user.run(increment(user, COUNTERS[0]), within_us=5 * SECOND_US)
    assert fetch(world.user("other"), COUNTERS[0]) == 2


@pytest.mark.parametrize("told", [(1,), (1, 2), (1, 2, 3), (0, 1, 2, 3, 4)])
def test_a_new_life_that_only_some_are_told_of_stops_nobody(told: tuple[int, ...]) -> None:
    """To clients and to the other nodes the liar is what it was before."""
    world = World()
    users = [world.user(f"user {number}") for number in range(2)]
    for name in COUNTERS:
        users[0].run(increment(users[0], name))
    claim(world, 1, told)
    for round_ in range(3):
        for user in users:
            for name in COUNTERS:
                user.run(increment(user, name), within_us=5 * SECOND_US)
        assert fetch(world.user(f"reader {round_}"), COUNTERS[0]) == 1 + 2 * (round_ + 1)


def test_must_fail_clients_that_never_doubt_who_denies_a_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rounds, "denied", lambda *_: NOBODY)
    with pytest.raises(AssertionError):
        test_a_new_life_that_only_some_are_told_of_stops_nobody((1, 2, 3))


def test_must_fail_servers_that_believe_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "LIFE_MOST", (1 << 64) - 1)
    monkeypatch.setattr(digest, "_LATEST", b"\xff" * digest.LIFE_BYTES)
    with pytest.raises(AssertionError):
        test_a_life_that_no_reply_can_tell_is_none(1 << 63)


Change = Callable[[Any, Any], Any]  # of what the liar answers: by who asks, and the honest reply


def lie(world: World, change: Change) -> None:
    """From now on the liar's answers to clients are changed so."""
    send = world.ways.send

    def changed(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        is_reply = source == ("node", LIAR) and kind is Kind.REPLY and target[0] == "client"
        if is_reply and isinstance(message, QueryReply | UpdateReply):
            message = change(target, message)
        send(source, target, kind, number, message, body)

    world.ways.send = changed  # type: ignore[method-assign]


def test_a_life_that_its_own_histories_are_not_of_stops_nobody() -> None:
    """All know of the new life; the liar says that it lives it, and shows what it signed before."""
    world = World()
    user = world.user("user")
    for name in COUNTERS:
        user.run(increment(user, name))
    claim(world, 1, range(5))
    lie(
        world,
        lambda _to, reply: msgspec.structs.replace(reply, lives=(*reply.lives[:LIAR], 1)),
    )
    for each in (user, world.user("other")):
        for name in COUNTERS * 3:
            each.run(increment(each, name), within_us=SECOND_US // 2)


def count_beside_claims_where_clients_look() -> int:
    """What a client counts up to, whose last update others have left incomplete.

    The liar says that all others have begun new lives, and that it has accepted nothing; of lives
    it says so only where a client looks at histories, before it tries again.
    """
    world = World()
    name = COUNTERS[1]
    first, other, user = (world.user(each) for each in ("first", "other", "user"))
    first.run(increment(first, name))
    world.run_for(605 * SECOND_US)
    claims = (0,) * 6

    def without(_to: Any, reply: Any) -> Any:
        if isinstance(reply, UpdateReply):
            reply = msgspec.structs.replace(reply, status=Status.NOT_CURRENT, answer=b"")
        elif claims[0]:
            reply = msgspec.structs.replace(reply, lives=claims, answered=False, answer=b"")
        return msgspec.structs.replace(reply, histories=(b"",), authenticators=(b"",))

    lie(world, without)
    fetch(user, name)
    fetch(other, name)
    world.ways.hold(
        lambda source, target, _kind, message: bool(
            source == other.host.endpoint
            and isinstance(message, Update)
            and target[1] not in (3, 4)
        )
    )
    world.start(other.host, increment(other, name))
    world.run_for(SECOND_US // 200)
    other.host.crash()
    claims = (3, 3, 3, 3, 3, 0)
    value: int = user.run(increment(user, name), within_us=20 * SECOND_US).answer.value
    return value


def test_lives_that_are_claimed_where_a_client_looks_stop_nobody() -> None:
    assert count_beside_claims_where_clients_look() == 2


def test_must_fail_clients_that_look_and_do_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    refresh, is_outdated = Repair.refresh, Rounds.is_outdated
    looking: list[Rounds] = []  # those of different principals look at the same time

    async def careless(repairs: Repair, names: tuple[ObjectId, ...]) -> None:
        looking.append(repairs._rounds)
        try:
            await refresh(repairs, names)
        finally:
            looking.remove(repairs._rounds)

    monkeypatch.setattr(Repair, "refresh", careless)
    monkeypatch.setattr(
        Rounds, "is_outdated", lambda each, plan: each not in looking and is_outdated(each, plan)
    )
    with pytest.raises(AssertionError):
        count_beside_claims_where_clients_look()


def falsely_knowing(world: World, life: int) -> Change:
    """The liar's histories say that each of the others has begun a life."""
    keys = world.deployment.keys(LIAR)
    known = b"".join(
        (0 if node == LIAR else life).to_bytes(LIFE_BYTES, "big") for node in range(world.sizes.n)
    )

    def signed(_to: Any, reply: Any) -> Any:
        made = tuple(
            keys.made_alike(
                replica_history_digest(object=name, encoded=history), authenticator + known
            )
            if history
            else b""
            for name, history, authenticator in zip(
                [current(reply)], reply.histories, reply.authenticators, strict=True
            )
        )
        return msgspec.structs.replace(reply, authenticators=made)

    def current(reply: Any) -> ObjectId:
        """The counter whose history the liar has just shown."""
        (history,) = reply.histories
        disk = world.nodes[LIAR].disk
        return next(
            (name for name in COUNTERS if Replica(disk, name).row.history == history), COUNTERS[0]
        )

    return signed


def work_beside_false_knowledge(t: int, *, down: int | None = None, far: int | None = None) -> None:
    """Two users update all counters. One node may be `down`; another one may not hear the nodes."""
    world = World(t, 1)
    world.run_for(SECOND_US)  # all nodes have begun their runs
    users = [world.user("user"), world.user("other")]

    def is_far(source: Any, target: Any, *_: Any) -> bool:
        return bool(source[0] == target[0] == "node" and far in {source[1], target[1]})

    world.ways.hold(is_far)
    lie(world, falsely_knowing(world, 3))
    for name in COUNTERS:
        users[0].run(increment(users[0], name), within_us=20 * SECOND_US)
    if down is not None:
        world.nodes[down].crash(down_us=None)
    for round_ in range(3):
        for user in users:
            for name in COUNTERS:
                user.run(increment(user, name), within_us=20 * SECOND_US)
            assert fetch(user, COUNTERS[0]) >= 2 + 2 * round_
    began_us = world.agenda.now_us
    for name in COUNTERS:
        users[1].run(increment(users[1], name), within_us=20 * SECOND_US)
    if far is None:
        assert world.agenda.now_us - began_us < SECOND_US, "servers ask for each claim once"
    assert fetch(users[0], COUNTERS[0]) == 8


@pytest.mark.parametrize("given", [{"t": 1}, {"t": 2, "down": 4}, {"t": 2, "far": 4}])
def test_false_knowledge_of_lives_stops_nobody(given: dict[str, int]) -> None:
    """Servers that are shown what the liar signed ask the others of whose lives it tells."""
    work_beside_false_knowledge(**given)


def test_must_fail_servers_that_believe_no_denial(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(Claims, "_ask", nothing)
    with pytest.raises(AssertionError):
        work_beside_false_knowledge(1)


def test_must_fail_clients_that_show_on_what_servers_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Observations, "leave_out_doubted", lambda *_: None)
    with pytest.raises(AssertionError):
        work_beside_false_knowledge(2, far=4)


async def begin_lives(world: World, told: Iterable[int], every_us: int) -> None:
    """A new life every now and then, of which some hear."""
    keys, life = world.deployment.keys(LIAR), 0
    while True:
        life += 1
        for node in told:
            await Send(NodeId(node), LifeRequest(keys.make(LIFE_DIGEST, life=life)))
        await Pause(every_us)


@pytest.mark.parametrize("told", [(1, 2, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("signs", [False, True])
def test_ever_new_lives_slow_nobody_down(told: tuple[int, ...], signs: bool) -> None:
    """It begins one before each update, so that what clients have of it is outlived."""
    world = World(delay_us=(1_000, 1_000))
    user = world.user("user")
    for name in COUNTERS:
        user.run(increment(user, name))
    count = 0

    async def work() -> None:
        nonlocal count
        while True:
            await increment(user, COUNTERS[count % 6])
            count += 1

    ended = world.start(user.host, work())
    world.run_for(SECOND_US // 2)
    alone = count
    world.start(world.nodes[LIAR], begin_lives(world, told, every_us=1_000))
    if signs:
        life = 0

        def sign(_to: Any, reply: Any) -> Any:
            nonlocal life
            life += 1
            return msgspec.structs.replace(reply, lives=(*reply.lives[:LIAR], life))

        lie(world, sign)
    world.run_for(SECOND_US // 4)  # until it is disbelieved
    before = count
    world.run_for(SECOND_US // 2)
    assert not ended
    assert count - before >= alone / 2, f"{alone} updates became {count - before}"


# --- blocks --------------------------------------------------------------------------------------


def read_beside(t: int, b: int, liars: tuple[int, ...], *, corrupt: bool = True) -> None:
    """A block is read while liars say, in each reply, that all others have begun new lives.

    What fragments they send are false.
    """
    world = World(t, b)
    writer, reader = world.user("writer"), world.user("reader")
    block = block_id(
        object_id(ObjectKind.INODE, placement=0, unique=bytes(14)), incarnation=0, number=0
    )
    writer.run(writer.blocks.write(block, b"contents", writer.who))
    world.run_for(SECOND_US)
    send = world.ways.send

    def changed(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        liar = source[1] if source[0] == "node" and target[0] == "client" else None
        if liar in liars and isinstance(message, ReadReply):
            lives = tuple(0 if node == liar else 3 for node in range(world.sizes.n))
            message = msgspec.structs.replace(message, lives=lives)
            if corrupt and len(body):
                body = bytes(len(body))
        send(source, target, kind, number, message, body)

    world.ways.send = changed  # type: ignore[method-assign]
    for _ in range(2):
        read = reader.run(reader.blocks.read(block), within_us=2 * SECOND_US)
        assert read.item == b"contents"


@pytest.mark.parametrize("corrupt", [False, True])
@pytest.mark.parametrize(
    ("t", "b", "liars"),
    [(1, 1, (0,)), (2, 1, (0,)), (2, 2, (1, 10)), (2, 2, (0, 9)), (2, 2, (0, 1))],
)
def test_false_lives_stop_no_reader(t: int, b: int, liars: tuple[int, ...], corrupt: bool) -> None:
    """One is asked at first, and another one when all are asked again."""
    read_beside(t, b, liars, corrupt=corrupt)


def test_must_fail_readers_that_ask_anew_but_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_anew = Descent._ask_anew

    def once(descent: Descent, node: NodeId) -> None:
        again = node in descent._anew
        ask_anew(descent, node)
        if again:
            descent.responses.discard(node)

    monkeypatch.setattr(Descent, "_ask_anew", once)
    with pytest.raises(AssertionError):
        read_beside(2, 2, (0, 10))
