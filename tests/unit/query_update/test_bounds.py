"""What others send costs little: no time, memory or failure beyond what it is worth."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.crypto.digest import authenticator_bytes
from bftfs.envelope import REQUESTS
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update import history as histories
from bftfs.query_update.counter import Count, Fetch, Increment
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    HistoryGroup,
    LogicalTimestamp,
    ObjectHistorySet,
    history_of,
    logical_timestamp,
    parse_history,
)
from bftfs.query_update.messages import FetchReply, InlineUpdate, Status
from bftfs.query_update.observation import Observations
from bftfs.server.step import Ready
from bftfs.simulation.deployment import client_named
from bftfs.simulation.world import START_US
from bftfs.wire.codec import encode
from tests.builders import USER
from tests.fuzz.tracing import Tracer
from tests.unit.query_update.harness import SMALLEST, Cluster, counter_id

CLIENT = client_named("client")
BEYOND_US = 1 << 63
MOST = limits.HISTORY_CANDIDATES_MOST


def at(time_us: int) -> LogicalTimestamp:
    return logical_timestamp(time_us=time_us, barrier=False, client=CLIENT, digest=bytes(32))


# --- times ----------------------------------------------------------------------------------


def test_a_candidate_after_which_there_is_no_time_is_malformed() -> None:
    latest = history_of([Candidate(at(BEYOND_US - 1), ZERO)], initial=True)
    assert parse_history(latest).candidates
    with pytest.raises(MalformedMessage, match="beyond all times"):
        parse_history(history_of([Candidate(at(BEYOND_US), ZERO)], initial=True))


def _built_on(time_us: int) -> bytes:
    """A request that claims to be built on a version of that time."""
    group = HistoryGroup(history_of([Candidate(at(time_us), ZERO)], initial=True), b"\0\1\2\3\4")
    history_set = ObjectHistorySet(counter_id(), (group,))
    return encode(Conditioned(ConditionedKind.BARRIER, None, 0, (history_set,)))


@pytest.mark.parametrize("time_us", [BEYOND_US - 1, (1 << 64) - 1])
def test_an_inline_update_built_on_the_end_of_time_is_refused(time_us: int) -> None:
    node = Cluster().nodes[0]
    sender = Cluster().client("attacker").sender
    conditioned = msgspec.msgpack.decode(_built_on(time_us))
    conditioned[0] = ConditionedKind.COPY  # only these and methods are finished inline
    request = InlineUpdate(
        msgspec.msgpack.encode(conditioned),
        ClientId(bytes(16)),
        ObjectHistorySet(counter_id()),
        b"",
        NodeId(0),
    )
    ready = node.server.step(node.storage, sender, request, b"", START_US)
    assert ready.reply is not None
    assert not ready.writes


@pytest.mark.parametrize("time_us", [BEYOND_US - 1, (1 << 64) - 1])
def test_an_original_request_from_the_end_of_time_is_no_answer(time_us: int) -> None:
    """A reader repairs what a client left behind, and asks servers for the original request."""

    def lie(step: Any, view: Any, sender: Any, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, FetchReply):
            ready.reply = FetchReply(_built_on(time_us))
        return ready

    cluster = Cluster()
    writer, reader = cluster.client("writer"), cluster.client("reader")
    cluster.block(client="writer", nodes=(3, 4, 5))  # repairable, and not complete
    writer.start(writer.qu.update((counter_id(),), "counter.increment", Increment(1), USER))
    cluster.run(lambda: bool(cluster.nodes[2].storage.get(1, counter_id())))  # type: ignore[arg-type]
    cluster.heal()
    cluster.running[-1].cancel()
    cluster.nodes[0].behaviour = lie
    query = reader.qu.query((counter_id(),), "counter.fetch", Fetch(), USER)
    assert reader.run(query).answer in (Count(0), Count(1))
    assert reader.run(
        reader.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
    ).answer in (Count(1), Count(2))


# --- authenticators -------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [lambda mac: mac[:-1], lambda mac: b"", lambda mac: mac + b"x"])
def test_an_authenticator_of_another_length_spoils_no_operation(spoil: Any) -> None:
    """It would leave the servers unable to tell the others' apart: they would reject it all."""

    def lie(step: Any, view: Any, sender: Any, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        macs = getattr(ready.reply, "authenticators", ())
        if macs:
            ready.reply = msgspec.structs.replace(
                ready.reply, authenticators=tuple(map(spoil, macs))
            )
        return ready

    cluster = Cluster()
    client = cluster.client("client")
    cluster.nodes[1].behaviour = lie
    for number in range(1, 5):
        update = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
        assert client.run(update).answer == Count(number)


# --- progress -------------------------------------------------------------------------------


def test_a_liar_and_a_slow_server_do_not_stop_repair() -> None:
    """What the liar reports is culled by everybody. The client disbelieves it and needs the slow
    one, of which it has not heard in time: it must wait for it, not turn to the liar again.
    """

    def lie(step: Any, view: Any, sender: Any, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if getattr(ready.reply, "histories", ()):
            (before,) = ready.reply.histories
            invented = Candidate(at(now_us), parse_history(before).latest_object.timestamp)
            ready.reply = msgspec.structs.replace(
                ready.reply,
                histories=((before or b"\1") + invented.encoded,),
                authenticators=(bytes(authenticator_bytes(SMALLEST.n)),),
            )
        return ready

    cluster = Cluster()
    cluster.route = lambda source, target, message: 2_000 if ("node", 4) in (source, target) else 50
    cluster.nodes[1].behaviour = lie
    client = cluster.client("client")
    client.qu.peers.silent(NodeId(4), client.now_us())
    for number in range(1, 4):
        update = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
        assert client.run(update).answer == Count(number)
    assert len(cluster.sent) < 300


def test_a_server_that_takes_back_reports_stops_no_reader() -> None:
    """What a query finds in disorder must be so for the repair as well, or neither ever ends."""
    cluster = Cluster()
    cluster.route = lambda source, target, message: 2_000 if ("node", 5) in (source, target) else 50
    client = cluster.client("client")
    increment = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
    assert client.run(increment).answer == Count(1)
    past = cluster.nodes[1].storage.snapshot()
    again = client.qu.update((counter_id(),), "counter.increment", Increment(1), USER)
    assert client.run(again).answer == Count(2)

    def forget(step: Any, view: Any, sender: Any, message: Any, now_us: int) -> Ready:
        ready: Ready = step(past, sender, message, b"", now_us)
        return ready

    cluster.nodes[1].behaviour = forget
    client.qu.peers.silent(NodeId(5), client.now_us())
    cluster.sent.clear()
    query = client.qu.query((counter_id(),), "counter.fetch", Fetch(), USER)
    assert client.run(query, within_us=3_000_000).answer == Count(2)
    assert len(cluster.sent) < 300


# --- work -----------------------------------------------------------------------------------


def _chain(objects: tuple[ObjectId, ...], *, odd: bool) -> bytes:
    """As many copies as a history may hold, each of the one before."""
    candidates = []
    before = ZERO
    for number in range(MOST):
        timestamp = at(START_US + 2 * number + odd)
        candidates.append(Candidate(timestamp, before, objects, True))
        before = timestamp
    barrier = logical_timestamp(
        time_us=START_US + 2 * MOST, barrier=True, client=CLIENT, digest=bytes(32)
    )
    return history_of(
        [*candidates[:-1], Candidate(barrier, candidates[-2].timestamp)], initial=True
    )


def test_an_inline_update_without_vouchers_costs_little() -> None:
    """What it says it is conditioned on is not authenticated, and deduction on it is costly."""
    cluster = Cluster()
    node, sender = cluster.nodes[0], cluster.client("attacker").sender
    objects = (counter_id(1), counter_id(2))
    sets = tuple(
        ObjectHistorySet(name, (HistoryGroup(_chain(objects, odd=bool(number)), bytes(range(6))),))
        for number, name in enumerate(objects)
    )
    conditioned = encode(Conditioned(ConditionedKind.COPY, None, 0, sets))
    request = InlineUpdate(
        conditioned, ClientId(bytes(16)), ObjectHistorySet(objects[0]), b"", NodeId(0)
    )
    assert REQUESTS.decode(encode(request)) == request
    with Tracer(most_work=50 * 2 * MOST) as tracer:
        ready = node.server.step(node.storage, sender, request, b"", START_US)
    assert ready.reply.status is Status.DIFFERENT
    assert tracer.work > 2 * MOST, "the request was not even read"


# --- memory ---------------------------------------------------------------------------------


def _long_history(number: int) -> bytes:
    return history_of(
        [Candidate(at(START_US + number * MOST + each), ZERO) for each in range(MOST)],
        initial=True,
    )


def test_parsed_histories_are_bounded_by_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HISTORIES_PARSED_BYTES", 1_000_000)
    histories._parsed.clear()
    histories._parsed.volume = 0
    for number in range(20):
        parse_history(_long_history(number))
        assert sum(map(len, histories._parsed)) <= 1_000_000
    assert histories._parsed


def test_a_clients_observations_are_bounded_by_their_volume() -> None:
    quorums = ThresholdQuorums(SMALLEST)
    observations = Observations(Peers(quorums), bound_bytes=1_000_000)
    macs = bytes(authenticator_bytes(quorums.n))
    for number in range(20):
        history = _long_history(number)
        assert observations.learn(counter_id(number), NodeId(0), history, macs, 0)
        assert observations.volume <= 1_000_000
    assert 2 < len(observations) < 20
    kept = counter_id(19)
    observations.keep(kept, {})
    observations.forget(counter_id(18))
    for number in range(18):
        observations.forget(counter_id(number))
    assert observations.volume == 0
