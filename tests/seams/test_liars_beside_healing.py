"""What b nodes that lie together tell a node that was down keeps it neither behind nor busy.

They deny to it what they have accepted, and tell all others that they have it: so nobody else finds
anything to repair. And they tell it of as many operations as fit into a history, of several
objects, by any of which others might know that they are established.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from bftfs import limits
from bftfs.identifiers import NodeId, ObjectId, object_id
from bftfs.query_update.history import (
    Candidate,
    ReplicaHistory,
    history_of,
    logical_timestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import DeduceRequest, HistoryReply, HistoryRequest
from bftfs.query_update.replica import Replica
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.step import Ready, Sender, Server
from bftfs.simulation.deployment import client_named
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import NodeServices
from bftfs.simulation.workloads.ledger import ACCOUNT
from bftfs.simulation.world import SECOND_US
from tests.seams.test_lost_disks import deposit
from tests.seams.world import World

Lie = Callable[[ObjectId, ReplicaHistory], bytes]
CASES = [(1, 1), (2, 1), (2, 2)]  # t, and b


def denied(_name: ObjectId, history: ReplicaHistory) -> bytes:
    """The history without its latest candidate."""
    kept = history.candidates[:-1]
    return history_of(kept, initial=history.initial) if kept else b""


def made_up(name: ObjectId, history: ReplicaHistory) -> bytes:
    """The same, with as many later candidates as anybody takes."""
    kept = history.candidates[:-1]
    objects = tuple(sorted((name, ObjectId(bytes(name[:-1]) + b"\0"))))
    later = (
        Candidate(
            logical_timestamp(
                time_us=time_of(history.latest) + 1 + number,
                barrier=False,
                client=client_named("nobody"),
                digest=bytes(32),
            ),
            kept[-1].timestamp if kept else parse_history(b"").latest,
            objects,
        )
        for number in range(limits.HISTORY_CANDIDATES_MOST - len(kept))
    )
    return history_of((*kept, *later), initial=history.initial)


class Liar:
    """A node that lies to one that heals, and answers it no other question of several objects."""

    def __init__(self, victim: NodeId, server: Server, lie: Lie) -> None:
        self._victim, self._server, self._lie = victim, server, lie

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        ready = self._server.step(view, sender, message, body, now_us)
        if sender.node != self._victim:
            return ready
        if isinstance(message, DeduceRequest):
            return Ready()
        if isinstance(message, HistoryRequest) and isinstance(ready.reply, HistoryReply):
            told = self._lie(message.object, parse_history(ready.reply.history))
            ready.reply = replace(ready.reply, history=told)
        return ready


def asked_to_catch_up(
    t: int, b: int, lie: Lie, *, is_new: bool, accounts: int = 4, within_us: int
) -> Counter[type]:
    """A node was down while accounts were updated, or made. What it sends until it has them all.

    b nodes of their quorum lie to it.
    """
    world = World(t, b)
    sizes, user = world.sizes.query_update, world.user("user")
    names = [object_id(ACCOUNT, placement=0, unique=b"%014d" % n) for n in range(accounts)]
    for name in () if is_new else names:
        user.run(deposit(user, name, 1))
    world.run_for(5 * SECOND_US)
    victim = world.nodes[sizes.q]

    def lying(liar: NodeId) -> NodeServices:
        services = world.deployment.servers(liar)
        servers = {kind: Liar(victim.node, each, lie) for kind, each in services.items()}
        return NodeServices(servers, services.background, services.on_damage)

    for liar in map(NodeId, range(sizes.q - b, sizes.q)):
        world.nodes[liar].become(lambda liar=liar: lying(liar))  # type: ignore[misc]
    victim.crash(down_us=None)
    for name in names:
        user.run(deposit(user, name, 1))
    world.run_for(5 * SECOND_US)
    latest = {name: Replica(world.nodes[0].disk, name).history.latest for name in names}
    asked: Counter[type] = Counter()

    def watch(source: Any, _target: Any, kind: Kind, message: Any) -> None:
        if source == victim.endpoint and kind is Kind.REQUEST:
            asked[type(message)] += 1

    world.ways.watch = watch
    victim.start()
    world.run_until(
        lambda: all(Replica(victim.disk, name).history.latest == latest[name] for name in names),
        within_us=within_us,
    )
    return asked


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(("t", "b"), CASES)
def test_a_node_gets_what_liars_hide_from_it(t: int, b: int, is_new: bool) -> None:
    asked_to_catch_up(t, b, denied, is_new=is_new, within_us=20 * SECOND_US)


def test_must_fail_where_a_node_leaves_it_to_those_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def leave(*_: Any) -> None: ...

    monkeypatch.setattr(Finisher, "_finish_here", leave)
    with pytest.raises(AssertionError, match="it has not happened"):
        asked_to_catch_up(1, 1, denied, is_new=True, within_us=1_800 * SECOND_US)


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(("t", "b"), CASES)
def test_what_liars_make_up_costs_few_questions(t: int, b: int, is_new: bool) -> None:
    accounts = 4
    asked = asked_to_catch_up(
        t, b, made_up, is_new=is_new, accounts=accounts, within_us=60 * SECOND_US
    )
    others = 3 * t + 2 * b
    tries = 4  # of the walk, and of the repair
    most = tries * (b * limits.BELIEVED_OF_SERVER + 2)
    assert asked[DeduceRequest] <= accounts * others * most


def test_must_fail_where_others_are_asked_of_all_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BELIEVED_OF_SERVER", limits.HISTORY_CANDIDATES_MOST)
    asked = asked_to_catch_up(1, 1, made_up, is_new=True, accounts=1, within_us=60 * SECOND_US)
    assert asked[DeduceRequest] > 3 * 1_000 * 5
