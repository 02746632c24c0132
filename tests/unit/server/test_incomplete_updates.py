"""What clients leave incomplete servers finish or fence, with nobody asking; and it is bounded."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.conversation import Pause
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.admission import Entry, IncompleteUpdates
from bftfs.query_update.counter import Count, Increment
from bftfs.query_update.history import (
    ZERO,
    Conditioned,
    ConditionedKind,
    ObjectHistorySet,
    Operation,
    is_barrier,
    logical_timestamp,
)
from bftfs.query_update.messages import (
    LatestReply,
    LatestRequest,
    Query,
    Status,
    Update,
    UpdateReply,
)
from bftfs.query_update.object_type import encode_record
from bftfs.query_update.replica import Replica
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.step import Host, Ready
from bftfs.simulation.byzantine.positions import as_sent
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import node_endpoint
from bftfs.simulation.world import START_US
from bftfs.wire.codec import encode
from tests.builders import USER
from tests.unit.query_update.harness import SMALLEST, Client, Cluster, counter_id
from tests.unit.query_update.ledger import Read, Transfer, ledger_types
from tests.unit.server.verifying import Cluster as Deployed

SECOND_US = limits.SECOND_US
BOUND_US = 10 * SECOND_US  # in which all is clean, if all nodes can be reached
NAMES = tuple(counter_id(number, placement=number) for number in range(3))


def latest(cluster: Cluster, name: ObjectId, faulty: frozenset[int]) -> list[bytes]:
    return [
        node.replica(name).history.latest for node in cluster.nodes if node.number not in faulty
    ]


def clean(cluster: Cluster, name: ObjectId, faulty: frozenset[int] = frozenset()) -> bool:
    """The latest candidate of any correct node is an object version at as many as a quorum needs;
    whatever the others have is older than that."""
    found = latest(cluster, name, faulty)
    last = max(found)
    enough = cluster.quorums.q - len(faulty)
    return found.count(last) >= enough and not is_barrier(last)  # type: ignore[arg-type]


def crash_after(
    cluster: Cluster, client: Client, requests: int, names: tuple[ObjectId, ...]
) -> None:
    """An update by `client`, which dies when so many requests of it have left."""
    left = requests
    route = cluster.route

    def dying(source: Any, target: Any, message: Any) -> int | None:
        nonlocal left
        if source == ("client", client.name):
            left -= 1
            if left < 0:
                return None
        return route(source, target, message)

    cluster.route = dying
    client.start(client.qu.update(names, f"transfer.{len(names)}", Transfer(client.name), USER))
    rest(cluster, 5_000)
    cluster.running[-1].cancel()
    cluster.route = route


def rest(cluster: Cluster, us: int = BOUND_US) -> None:
    """Let time pass, in which no client does anything."""
    end_us = cluster.now_us + us
    cluster.after(us, lambda: None)
    cluster.run(lambda: cluster.now_us >= end_us, within_us=us + SECOND_US)


def scenario(seed: int, *, background: bool = True, down: int | None = None) -> Cluster:
    """Clients that crash in the middle of updates of one to three objects, at every point."""
    cluster = Cluster(types=ledger_types(), seed=seed, background=background)
    random = Random(seed)
    setter = cluster.client("setter")
    for name in NAMES:
        setter.run(setter.qu.update((name,), "transfer.1", Transfer("first", 0), USER))
    if down is not None:
        cluster.mute(down)
    for number in range(6):
        names = tuple(random.sample(NAMES, 1 + random.randrange(3)))
        crash_after(cluster, cluster.client(f"crash{number}"), random.randrange(1, 8), names)
    return cluster


@pytest.mark.parametrize("seed", range(12))
def test_updates_of_crashed_clients_are_finished_unasked(seed: int) -> None:
    cluster = scenario(seed)
    rest(cluster)
    assert all(clean(cluster, name) for name in NAMES)
    assert all(node.server.incomplete.total == 0 for node in cluster.nodes)
    # Whole updates only: what was taken from one account is in the others.
    reader = cluster.client("reader")
    read = reader.run(reader.qu.query(NAMES, "read.3", Read(), USER)).answer
    assert sum(read.balances) == 0


@pytest.mark.parametrize("seed", range(4))
def test_with_a_node_down_the_others_become_clean(seed: int) -> None:
    cluster = scenario(seed, down=seed)
    rest(cluster, 2 * BOUND_US)
    assert all(clean(cluster, name, frozenset({seed})) for name in NAMES)


def test_must_fail_without_background_repair() -> None:
    """The tests above can fail: nobody else finishes what nobody asks for."""
    seeds = range(12)
    left = [seed for seed in seeds if _dirty(scenario(seed, background=False))]
    assert len(left) >= 4


def _dirty(cluster: Cluster) -> bool:
    rest(cluster)
    return not all(clean(cluster, name) for name in NAMES)


def test_a_candidate_outside_the_quorum_is_fenced() -> None:
    cluster = Cluster(background=True)
    name = counter_id()
    client = cluster.client("client")
    client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    before = cluster.route
    cluster.block(client="client", nodes=(0, 1, 2, 3, 4))
    client.qu.peers.silent(NodeId(0), client.now_us())  # so that the last one is asked
    client.start(client.qu.update((name,), "counter.increment", Increment(1), USER))
    cluster.run(lambda: cluster.nodes[5].replica(name).history.latest != ZERO)
    cluster.running[-1].cancel()
    cluster.route = before
    assert not clean(cluster, name)
    rest(cluster)
    assert clean(cluster, name)
    assert cluster.nodes[5].server.incomplete.tally.repaired == 1
    assert latest(cluster, name, frozenset())[5] == max(latest(cluster, name, frozenset()))


def test_a_client_that_is_at_work_is_left_alone() -> None:
    """Updates one after the other, and nobody interferes: no barrier, no copy, no repair."""
    cluster = Cluster(background=True)
    client = cluster.client("client")
    for number in range(200):
        update = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
        assert client.run(update).answer == Count(number + 1)
        rest(cluster, 20_000)
    rest(cluster)
    assert sum(node.server.incomplete.tally.repaired for node in cluster.nodes) == 0
    assert sum(node.server.incomplete.tally.settled for node in cluster.nodes) >= 5


def test_what_is_complete_costs_one_comparison_of_many_objects() -> None:
    cluster = Cluster(background=True)
    client = cluster.client("client")
    for number in range(100):
        name = counter_id(number)
        client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    cluster.sent.clear()
    rest(cluster)
    between = [message for source, _, message in cluster.sent if source[0] == "node"]
    assert len([message for message in between if isinstance(message, LatestRequest)]) == 5 * 5
    assert len(between) == 2 * 5 * 5
    assert all(node.server.incomplete.total == 0 for node in cluster.nodes)


def test_a_liar_that_reports_anything_stops_nothing() -> None:
    def lie(step: Any, view: Any, sender: Any, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, LatestReply):
            later = b"\x7f" + bytes(len(ZERO) - 1)
            ready.reply = LatestReply((later,) * len(ready.reply.latest))  # type: ignore[arg-type]
        return ready

    cluster = Cluster(background=True)
    cluster.nodes[1].behaviour = lie
    client = cluster.client("client")
    for number in range(20):
        name = counter_id(number)
        client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    rest(cluster, 3 * BOUND_US)
    correct = [node for node in cluster.nodes if node.number != 1]
    assert all(node.server.incomplete.total == 0 for node in correct)
    assert all(clean(cluster, counter_id(number)) for number in range(20))
    assert sum(node.server.incomplete.tally.repaired for node in correct) == 0


# --- bounds -----------------------------------------------------------------------------------


def partial_update(cluster: Cluster, client: Client, name: ObjectId) -> Any:
    """An update of a new object that reaches server 0 only; what that one replies."""
    operation = Operation(
        "counter.increment", (name,), encode_record(Increment(1)), USER.uid, USER.gid, (), 7
    )
    conditioned = Conditioned(
        ConditionedKind.METHOD, operation, client.now_us(), (ObjectHistorySet(name),)
    )
    message = Update(encode(conditioned), (b"",), (), NodeId(0))
    node = cluster.nodes[0]
    ready = node.server.step(node.storage, client.sender, message, b"", node.now_us())
    node.storage.apply(ready.writes)
    return ready


def test_incomplete_updates_of_a_client_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 8)
    cluster = Cluster(background=True)
    attacker, honest = cluster.client("attacker"), cluster.client("honest")
    for number in range(8):
        reply = partial_update(cluster, attacker, counter_id(number)).reply
        assert isinstance(reply, UpdateReply)
        assert reply.status is Status.SUCCESS
    waits = partial_update(cluster, attacker, counter_id(8))
    assert waits.wants
    assert waits.reply is None
    incomplete = cluster.nodes[0].server.incomplete
    assert incomplete.of_client(attacker.sender.client) == 8
    # What is fresh is not repaired; but it was looked at, and is not worth another look.
    cluster.nodes[0].engine.start(waits.wants[0].fetch(cluster.nodes[0].storage), lambda *_: None)
    cluster.nodes[0].send()
    rest(cluster, 100_000)
    refused = partial_update(cluster, attacker, counter_id(8)).reply
    assert refused.status is Status.TOO_MANY
    # An honest client goes on: its oldest updates are found complete.
    for number in range(100, 150):
        name = counter_id(number)
        update = honest.qu.update((name,), "counter.increment", Increment(1), USER)
        assert honest.run(update).answer == Count(1)
        assert incomplete.of_client(honest.sender.client) <= 8
    # And so does the other one, when its work has been fenced.
    rest(cluster)
    assert incomplete.total == 0
    for number in range(8):  # one server alone had all of it, and has not given up on itself
        latest = [
            Replica(node.storage, counter_id(number)).history.latest for node in cluster.nodes
        ]
        assert latest.count(latest[0]) >= 5
    assert partial_update(cluster, attacker, counter_id(8)).reply.status is Status.SUCCESS


def test_an_update_of_what_it_shows_complete_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is ahead with the update would not confirm what it builds on."""
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 1)
    cluster = Cluster(background=True)
    cluster.mute(5)
    client = cluster.client("client")
    client.qu.peers.silent(NodeId(5), client.now_us())
    for number in range(20):
        update = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
        assert client.run(update).answer == Count(number + 1)
    assert all(node.server.incomplete.tally.demands == 0 for node in cluster.nodes)
    assert all(node.server.incomplete.total == 1 for node in cluster.nodes[:5])
    kinds = {type(message) for source, _, message in cluster.sent if source[0] == "client"}
    assert kinds == {Update}  # no barrier, no other look
    # It says nothing of other objects.
    reply = partial_update(cluster, client, counter_id(1))
    assert reply.wants


@pytest.mark.parametrize("down", range(6))
def test_with_a_node_down_no_update_at_the_limit_waits_for_it(
    down: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all the others share is complete: to hear that from a quorum is enough."""
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 4)
    cluster = Cluster(background=True)
    cluster.mute(down)
    client = cluster.client("client")
    client.qu.peers.silent(NodeId(down), client.now_us())
    began_us = cluster.now_us
    for number in range(40):
        update = client.qu.update((counter_id(number),), "counter.increment", Increment(1), USER)
        assert client.run(update).answer == Count(1)
    assert sum(node.server.incomplete.tally.demands for node in cluster.nodes) > 36
    assert cluster.now_us - began_us < limits.HEAL_PATIENCE_US


def look_on_demand(cluster: Cluster, number: int) -> int:
    """How long server 0 looks at what only it has, for the sake of the next update."""
    attacker = cluster.client(f"attacker {number}")
    partial_update(cluster, attacker, counter_id(number))
    wanted = partial_update(cluster, attacker, counter_id(100)).wants[0]
    ended: list[BaseException | None] = []
    node, began_us = cluster.nodes[0], cluster.now_us
    node.engine.start(wanted.fetch(node.storage), lambda _, error: ended.append(error))
    node.send()
    cluster.run(lambda: bool(ended))
    assert ended == [None]
    return cluster.now_us - began_us


def test_a_silent_peer_is_waited_for_again_once_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 1)
    cluster = Cluster(background=True)
    route = cluster.route

    def slow(us: int | None) -> None:
        def delayed(source: Any, target: Any, message: Any) -> int | None:
            return us if source == node_endpoint(NodeId(5)) else route(source, target, message)

        cluster.route = delayed

    waits = []
    for number, delay_us in enumerate((None, None, 0, 300_000, 300_000)):
        slow(delay_us)
        waits.append(look_on_demand(cluster, number))
    assert waits[0] >= limits.HEAL_PATIENCE_US  # somebody might say that it is complete
    assert max(waits[1:3]) < 100_000
    assert all(300_000 <= wait < limits.HEAL_PATIENCE_US for wait in waits[3:])


def test_what_is_being_settled_peers_are_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request about no objects would be malformed; whoever waits comes again."""
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 4)
    cluster = Cluster(background=True)
    attacker, node = cluster.client("attacker"), cluster.nodes[0]
    for number in range(4):
        partial_update(cluster, attacker, counter_id(number))
    wanted = partial_update(cluster, attacker, counter_id(4)).wants[0]
    supplied: list[Any] = []
    for _ in range(2):
        node.engine.start(wanted.fetch(node.storage), lambda writes, _: supplied.append(writes))
    assert supplied == [None]
    node.send()
    rest(cluster, limits.INCOMPLETE_STAGGER_US)
    assert supplied == [None, []]
    requests = [each for _, each in cluster.nodes[1].received if isinstance(each, LatestRequest)]
    assert [len(request.objects) for request in requests] == [4]


def test_no_update_waits_for_silence_on_superseded_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the others have later makes room at once; this server gets it when it has time."""
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS_OF_CLIENT", 4)
    cluster = Cluster(background=True)
    node, attacker, client = cluster.nodes[0], cluster.client("attacker"), cluster.client("client")
    names, route = tuple(counter_id(number) for number in range(4)), cluster.route
    for name in names:
        partial_update(cluster, attacker, name)
    rest(cluster, 10_000)
    cluster.block(nodes=(0,))
    for name in names:
        client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    cluster.route = route
    cluster.mute(5)
    wanted = partial_update(cluster, attacker, counter_id(4)).wants[0]
    ended: list[BaseException | None] = []
    began_us = cluster.now_us
    node.engine.start(wanted.fetch(node.storage), lambda _, error: ended.append(error))
    node.send()
    cluster.run(lambda: bool(ended))
    assert ended == [None]
    assert cluster.now_us - began_us <= limits.HEAL_PATIENCE_US + 10_000  # the first such wait
    assert node.server.incomplete.of_client(attacker.sender.client) == 0
    assert partial_update(cluster, attacker, counter_id(4)).reply.status is Status.SUCCESS
    cluster.route = route
    rest(cluster)
    for name in names:
        assert len(set(latest(cluster, name, frozenset()))) == 1


def test_updates_accepted_while_settling_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a client could have more objects in question than the limit of one client."""
    catch_up = ObjectHealer.catch_up
    cluster = Cluster(background=True)
    node = cluster.nodes[0]
    stages: list[str] = []

    async def linger(healer: ObjectHealer, host: Host, name: ObjectId) -> bool:
        found = await catch_up(healer, host, name)
        if healer is node.healer:
            stages.append("superseded")
            await Pause(BOUND_US)
            stages.append("settled")
        return found

    monkeypatch.setattr(ObjectHealer, "catch_up", linger)
    name, client = counter_id(), cluster.client("client")
    partial_update(cluster, cluster.client("attacker"), name)
    node.send()
    rest(cluster, 10_000)
    route = cluster.route
    cluster.block(nodes=(0,))
    client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    cluster.route = route
    cluster.run(lambda: stages == ["superseded"])
    client.qu.peers.silent(NodeId(5), client.now_us())
    client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    assert node.server.incomplete.of_client(client.sender.client) == 1
    cluster.run(lambda: stages == ["superseded", "settled"], within_us=2 * BOUND_US)
    assert node.server.incomplete.of_client(client.sender.client) == 1
    rest(cluster)
    assert node.server.incomplete.total == 0


def test_what_a_server_keeps_in_mind_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POSSIBLE_OBJECTS", 10)
    incomplete = IncompleteUpdates()
    for number in range(30):
        client = ClientId(bytes([number % 3]) * 16)
        timestamp = START_US.to_bytes(8, "big") + b"\0" + client + bytes(32)
        incomplete.accepted(counter_id(number), timestamp)  # type: ignore[arg-type]
    assert incomplete.total == 10
    assert incomplete.entry(counter_id(19)) is None
    assert incomplete.entry(counter_id(20)) is not None
    assert sum(incomplete.of_client(ClientId(bytes([each]) * 16)) for each in range(3)) == 10


def test_what_healing_finds_again_and_again_is_not_tried_more_often() -> None:
    """Each walk reports an object that is not in order, also one whose repair has failed."""
    incomplete, name = IncompleteUpdates(), counter_id()
    first, second = (
        logical_timestamp(
            time_us=time_us, barrier=True, client=ClientId(bytes(16)), digest=bytes(32)
        )
        for time_us in (1, 2)
    )
    incomplete.found(name, first)
    entry = incomplete.entry(name)
    assert entry is not None
    entry.retry_us, entry.failures = 60_000_000, 5
    incomplete.found(name, first)
    assert incomplete.entry(name) is entry
    assert (entry.retry_us, entry.failures) == (60_000_000, 5)
    incomplete.found(name, second)
    assert incomplete.entry(name) == Entry(second, incomplete.tick)


def test_a_node_may_repair_and_nothing_else() -> None:
    cluster = Cluster()
    client = cluster.client("client")
    name = counter_id()
    client.run(client.qu.update((name,), "counter.increment", Increment(1), USER))
    node, sender = cluster.nodes[0], cluster.nodes[1].sender

    def reply(message: Any) -> Any:
        return node.server.step(node.storage, sender, message, b"", node.now_us()).reply

    assert not isinstance(reply(Query((name,), "", b"", 0, 0, (), NodeId(0), True)), Refused)
    asks = Query((name,), "counter.fetch", b"\x90", 0, 0, (), NodeId(0), True)
    assert isinstance(reply(asks), Refused)
    operation = Operation(
        "counter.increment", (name,), encode_record(Increment(1)), USER.uid, USER.gid, (), 7
    )
    observed = client.qu.observations.observe(name)
    conditioned = Conditioned(
        ConditionedKind.METHOD, operation, node.now_us(), (observed.history_set,)
    )
    update = as_sent(
        Update(encode(conditioned), (observed.authenticators,), (), NodeId(0)), 0, SMALLEST.n
    )
    assert isinstance(reply(update), Refused)
    ready = node.server.step(node.storage, client.sender, update, b"", node.now_us())
    assert ready.reply.status is Status.SUCCESS  # the same, from a client
    asked = LatestRequest((name,))
    latest = reply(asked)
    assert isinstance(latest, LatestReply)
    assert isinstance(
        node.server.step(node.storage, client.sender, asked, b"", node.now_us()).reply, Refused
    )


# --- after a restart --------------------------------------------------------------------------


def test_a_restarted_node_finds_again_what_it_had_in_mind() -> None:
    cluster = Deployed()
    client = cluster.client("client")
    name = counter_id()
    operation = Operation(
        "counter.increment", (name,), encode_record(Increment(1)), USER.uid, USER.gid, (), 7
    )
    conditioned = Conditioned(
        ConditionedKind.METHOD, operation, cluster.now_us, (ObjectHistorySet(name),)
    )
    message = Update(encode(conditioned), (b"",), (), NodeId(0))
    cluster.network.send(client.host.endpoint, node_endpoint(NodeId(3)), Kind.REQUEST, 0, message)
    cluster.run_for(100_000)
    cluster.nodes[3].crash(down_us=1_000)
    cluster.run_for(BOUND_US)
    found = [Replica(node.disk, name).history.latest for node in cluster.nodes]
    assert found.count(max(found)) >= cluster.sizes.query_update.q
    assert not is_barrier(max(found))
