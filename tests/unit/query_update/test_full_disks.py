"""Servers whose disks are full: the others do without t of them, and more are not waited for."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.credentials import Grant
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import ConditionedKind, decode_conditioned
from bftfs.query_update.messages import Update, UpdateReply
from bftfs.server.step import Ready, Sender
from bftfs.thresholds import QueryUpdateThresholds
from tests.builders import USER
from tests.simulation.mutants import leave_requests_under_way
from tests.unit.query_update.harness import (
    SMALLEST,
    Behaviour,
    Client,
    Cluster,
    counter_id,
    honest,
)

A = counter_id(1)
ALONE = QueryUpdateThresholds.smallest(t=0, b=0)
LARGER = QueryUpdateThresholds(n=9, t=2, b=1, q=7, r=4)


def full(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    ready: Ready = step(view, sender, message, b"", now_us)
    return Ready(Refused(errno.ENOSPC, "the disk is full")) if ready.writes else ready


def reserved(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    """Full but for a reserve: what the node owes to others it still stores."""
    ready: Ready = step(view, sender, message, b"", now_us)
    if ready.writes and not ready.uses_reserve:
        return Ready(Refused(errno.ENOSPC, "the disk is full"))
    return ready


def unwritable(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    """The node has heard that the client may only read."""
    may_only_read = replace(sender, grant=Grant(write=False))
    ready: Ready = step(view, may_only_read, message, b"", now_us)
    return ready


def increment(client: Client) -> Any:
    return client.run(client.qu.update((A,), "counter.increment", Increment(), USER))


def fetch(client: Client) -> Any:
    return client.run(client.qu.query((A,), "counter.fetch", Fetch(), USER))


@pytest.mark.parametrize("thresholds", [SMALLEST, LARGER])
def test_more_full_disks_than_t_refuse_updates_at_once(thresholds: QueryUpdateThresholds) -> None:
    cluster = Cluster(thresholds)
    client, reader = cluster.client("X"), cluster.client("Y")
    increment(client)
    for node in range(thresholds.t):
        cluster.nodes[node].behaviour = full
        increment(client)
    before = fetch(reader)
    for node in range(thresholds.n):
        cluster.nodes[node].behaviour = full
    began = cluster.now_us
    for _ in range(3):
        with pytest.raises(AdmissionRefused) as refused:
            increment(client)
        assert refused.value.code == errno.ENOSPC
        assert fetch(reader) == before
    assert cluster.now_us - began < 1_000_000
    for node in range(thresholds.n):
        cluster.nodes[node].behaviour = honest
    increment(client)
    assert fetch(reader) == fetch(client) != before


def test_an_update_is_finished_once_there_is_room() -> None:
    cluster = Cluster()
    client, reader = cluster.client("X"), cluster.client("Y")
    increment(client)
    before = fetch(reader)
    for node in range(SMALLEST.t + 1):
        cluster.nodes[node].behaviour = full
    began = cluster.now_us
    with pytest.raises(AdmissionRefused):
        increment(client)
    assert cluster.now_us - began < 1_000_000
    for node in range(SMALLEST.n):
        cluster.nodes[node].behaviour = honest
    assert fetch(reader) == fetch(client) != before


def refused_then_copied(
    thresholds: QueryUpdateThresholds, refusing: int, behaviour: Behaviour
) -> tuple[int, int]:
    """What a counter should stand at and does, after this many nodes have refused an increment.

    When they would take it, copies of its requests arrive.
    """
    cluster = Cluster(thresholds)
    client = cluster.client("X")
    value = increment(client).answer.value
    order = thresholds.n - 1, *range(thresholds.n - 1)  # one of those that have room is asked last
    for node in order[:refusing]:
        cluster.nodes[node].behaviour = behaviour
    cluster.sent.clear()
    with contextlib.suppress(AdmissionRefused):
        value = increment(client).answer.value
    requests = [each for each in cluster.sent if isinstance(each[2], Update)]
    for node in cluster.nodes:
        node.behaviour = honest
    for source, target, message in requests:
        if decode_conditioned(message.conditioned).kind is ConditionedKind.METHOD:
            cluster.request(source, target, message)
    cluster.settle()
    return value, fetch(cluster.client("Y")).answer.value


REFUSING = [
    (thresholds, refusing, behaviour)
    for thresholds in (ALONE, SMALLEST, LARGER)
    for refusing in range(thresholds.t + 1, thresholds.n + 1)
    for behaviour in (reserved, unwritable)
]


@pytest.mark.parametrize(("thresholds", "refusing", "behaviour"), REFUSING)
def test_what_nodes_have_refused_takes_effect_at_once_or_never(
    thresholds: QueryUpdateThresholds, refusing: int, behaviour: Behaviour
) -> None:
    told, found = refused_then_copied(thresholds, refusing, behaviour)
    assert told == found
    if told == 2:  # what some have taken was finished
        assert thresholds.n - refusing >= thresholds.r


def test_must_fail_clients_that_are_refused_and_leave_requests_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_requests_under_way(monkeypatch)
    for thresholds, refusing, behaviour in REFUSING:
        told, found = refused_then_copied(thresholds, refusing, behaviour)
        assert (told, found) == (1, 2), "it has been told that nothing changed"


def test_what_took_effect_is_told_though_the_client_may_only_read_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large answer comes whole from one server. That is silent, and the others refuse by then."""
    monkeypatch.setattr(limits, "ANSWER_INLINE_BYTES", 0)
    cluster = Cluster()
    client = cluster.client("X")
    increment(client)

    def once(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
        ready: Ready = step(view, sender, message, b"", now_us)
        if isinstance(ready.reply, UpdateReply) and not ready.writes:  # it asks again
            return unwritable(step, view, sender, message, now_us)
        return ready

    for node in cluster.nodes:
        node.behaviour = once
    cluster.sent.clear()
    first: list[int] = []

    def route(_source: Any, target: Any, message: Any) -> int | None:
        if isinstance(message, Update) and not first:
            first.append(message.whole_answer_from)
        return None if first and target == ("node", first[0]) else 200

    cluster.route = route
    assert increment(client).answer.value == 2
    assert sum(isinstance(message, Update) for *_, message in cluster.sent) > SMALLEST.n


def test_who_cannot_exclude_what_was_refused_says_that_it_is_not_known() -> None:
    """Nodes have no room for an update, and are silent when it is to be excluded."""
    cluster = Cluster()
    client = cluster.client("X", patience_total_us=1_000_000)
    increment(client)
    for node in cluster.nodes:
        node.behaviour = reserved
    kinds: list[ConditionedKind] = []

    def route(source: Any, _target: Any, message: Any) -> int | None:
        if source == client.endpoint and isinstance(message, Update):
            kinds.append(decode_conditioned(message.conditioned).kind)
            if kinds[-1] is ConditionedKind.BARRIER:
                return None
        return 200

    cluster.route = route
    with pytest.raises(QuorumUnavailable):
        increment(client)
    assert kinds[0] is ConditionedKind.METHOD
    assert ConditionedKind.BARRIER in kinds


def test_who_may_make_no_barriers_is_refused_at_once() -> None:
    """Whoever tries again and again while all disks are full makes no more barriers than others."""
    cluster = Cluster()
    client = cluster.client("X")
    increment(client)
    for node in cluster.nodes:
        node.behaviour = reserved
    cluster.sent.clear()
    began = cluster.now_us
    for _ in range(60):
        with pytest.raises(AdmissionRefused) as refused:
            increment(client)
        assert refused.value.code == errno.ENOSPC
    assert cluster.now_us - began < 2_000_000
    assert fetch(cluster.client("Y")).answer.value == 1


@pytest.mark.parametrize("thresholds", [SMALLEST, LARGER])
def test_readers_finish_or_fence_what_full_disks_left_half_done(
    thresholds: QueryUpdateThresholds,
) -> None:
    """Whatever nodes have taken an update: once all disks are full, it is read at once."""
    cluster = Cluster(thresholds)
    client = cluster.client("X")
    increment(client)
    for first in range(thresholds.n):
        for others in range(thresholds.t + 1, thresholds.n + 1):
            before = fetch(client).answer.value
            for node in range(thresholds.n):
                early = (node - first) % thresholds.n < others
                cluster.nodes[node].behaviour = reserved if early else honest
            with contextlib.suppress(AdmissionRefused):  # unless it finishes what it has begun
                increment(client)
            for node in range(thresholds.n):
                cluster.nodes[node].behaviour = reserved
            reader = cluster.client(f"reader {first} {others}")
            began = cluster.now_us
            found = fetch(reader).answer.value
            assert cluster.now_us - began < 2_000_000
            assert found in (before, before + 1)
            assert fetch(cluster.client(f"next {first} {others}")).answer.value == found
            with pytest.raises(AdmissionRefused):
                increment(reader)
            for node in range(thresholds.n):
                cluster.nodes[node].behaviour = honest
            increment(client)


def test_must_fail_without_a_reserve_readers_are_refused() -> None:
    cluster = Cluster()
    client = cluster.client("X")
    increment(client)
    for node in range(SMALLEST.t + 1):
        cluster.nodes[node].behaviour = full
    with pytest.raises(AdmissionRefused):
        increment(client)
    for node in range(SMALLEST.n):
        cluster.nodes[node].behaviour = full
    with pytest.raises(AdmissionRefused) as refused:
        fetch(cluster.client("Y"))
    assert refused.value.code == errno.ENOSPC


def test_a_full_server_is_replaced_and_asked_last() -> None:
    """To end the round without him would leave something behind to be repaired, each time."""
    cluster = Cluster()
    client = cluster.client("X")

    def asked() -> list[int]:
        cluster.sent.clear()
        increment(client)
        return [target[1] for source, target, _ in cluster.sent if source[0] == "client"]

    preferred = asked()
    (spare,) = set(range(SMALLEST.n)).difference(preferred)
    cluster.nodes[preferred[0]].behaviour = full
    late = ("node", spare)
    cluster.route = lambda source, target, _: 20_000 if late in (source, target) else 200
    assert asked() == [*preferred, spare]
    cluster.route = lambda *_: 200
    assert sorted(asked()) == sorted([*preferred[1:], spare])
