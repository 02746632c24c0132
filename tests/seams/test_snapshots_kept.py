"""Snapshots stand in the volume, and what they keep elsewhere: no node collects by an old list.

A node was down when a snapshot was made, or is in the midst of a pass when somebody gives a time of
the past a name. Others' updates of the file reach it before those of the volume do.
"""

from __future__ import annotations

from typing import Any

import pytest

from bftfs import limits
from bftfs.filesystem import registry
from bftfs.filesystem.volume import SnapshotCreation
from bftfs.identifiers import BlockId, NodeId, ObjectId
from bftfs.query_update.messages import CatalogueReply
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.file_collection import Collector
from bftfs.server.object_collection import ObjectWalk
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from tests.seams.world import SUPERUSER, VOLUME, User, World

WINDOW_US = 3_600 * SECOND_US


def started(t: int = 1, b: int = 1, *, roomy: bool = False) -> tuple[World, User, ObjectId]:
    """A file, which all nodes know; they collect what they may, unless they are `roomy`."""
    nodes = tuple(map(NodeId, range(3 * t + 2 * b + 1))) if roomy else ()
    world = World(t, b, collection=CollectionPlan(WINDOW_US, roomy=nodes), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "one")
    world.run_for(700 * SECOND_US)
    return world, user, identifier


def make_snapshot(user: User, time_us: int = 0) -> None:
    arguments = SnapshotCreation(b"kept", time_us)
    user.run(user.objects.update((VOLUME,), registry.CREATE_SNAPSHOT, arguments, SUPERUSER))


def first_version(user: User, identifier: ObjectId) -> tuple[BlockId, BlockTimestamp]:
    """What the file's block is now."""
    layout = user.attributes(identifier).layout
    assert layout is not None
    block = layout.block(identifier, 0)
    return block, user.run(user.blocks.read(block, SUPERUSER)).timestamp


# --- a node that has missed a snapshot ------------------------------------------------------------


def missed(t: int, b: int, *absent: int) -> tuple[list[int], int]:
    """Some nodes are down while a snapshot is made and the file goes on, for longer than the
    window. Then they hear of the file at once. Who has kept what the snapshot shows; and n."""
    world, user, identifier = started(t, b)
    version = first_version(user, identifier)
    for node in absent:
        world.nodes[node].crash(down_us=None)
    make_snapshot(user)
    world.run_for(10 * SECOND_US)
    user.put(identifier, "two")
    world.run_for(2 * WINDOW_US)
    user.put(identifier, "three")
    world.run_for(WINDOW_US + 10 * SECOND_US)
    endpoints = {world.nodes[node].endpoint for node in absent}
    world.ways.hold(  # so that they do not heal yet
        lambda _source, target, _kind, message: (
            target in endpoints and isinstance(message, CatalogueReply)
        )
    )
    for node in absent:
        world.nodes[node].start()
    for mode in range(10):
        user.chmod(identifier, 0o600 + mode)
        world.run_for(SECOND_US)
    world.ways.flow()
    world.run_for(2 * limits.COLLECT_EVERY_US)
    return world.hosting(*version), world.sizes.n


ABSENT = [(1, 1, (0,)), (1, 1, (3,)), (1, 0, (0,)), (2, 1, (0, 4))]


@pytest.mark.parametrize(("t", "b", "absent"), ABSENT)
def test_who_has_missed_a_snapshot_keeps_what_it_shows(
    t: int, b: int, absent: tuple[int, ...]
) -> None:
    kept, n = missed(t, b, *absent)
    assert kept == list(range(n))


async def without_asking(*_: Any) -> bool:
    """In place of `Collector._knows_snapshots`: a node goes by what it knows of the volume."""
    return True


def test_must_fail_where_a_node_goes_by_the_snapshots_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Collector, "_knows_snapshots", without_asking)
    assert missed(1, 1, 0)[0] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("t", "b"), [(1, 0), (1, 1), (2, 1)])
def test_what_no_snapshot_shows_goes_though_t_nodes_are_down(t: int, b: int) -> None:
    world, user, identifier = started(t, b)
    version = first_version(user, identifier)
    for node in range(t):
        world.nodes[node].crash(down_us=None)
    user.put(identifier, "two")
    world.run_for(2 * WINDOW_US)
    user.put(identifier, "three")
    world.run_for(WINDOW_US)
    assert world.hosting(*version) == list(range(t))


# --- a snapshot that is made while nodes collect --------------------------------------------------


def named_meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All nodes are in the midst of a pass when a time of the past is given a name.

    The nodes that have kept what that shows.
    """
    world, user, identifier = started(roomy=True)
    version = first_version(user, identifier)
    then_us = world.now_us
    user.put(identifier, "two")
    world.run_for(2 * WINDOW_US)
    user.put(identifier, "three")
    held: set[int] = set()
    step = ObjectWalk.step

    def waiting(walk: ObjectWalk, view: Any) -> Any:
        if walk.object == identifier:
            held.add(id(walk))
        return step(walk, view) if is_named or walk.object != identifier else []

    is_named = False
    monkeypatch.setattr(ObjectWalk, "step", waiting)
    monkeypatch.setattr(limits, "COLLECT_EVERY_US", 10**15)
    for node in world.nodes:
        node.crash(down_us=None)
    world.deployment.collection = CollectionPlan(WINDOW_US)
    for node in world.nodes:
        node.start()
    world.run_until(lambda: len(held) == world.sizes.n)
    make_snapshot(user, then_us)
    world.run_for(SECOND_US)
    is_named = True
    world.run_for(60 * SECOND_US)
    monkeypatch.setattr(ObjectWalk, "step", step)
    return world.hosting(*version)


def test_what_a_snapshot_shows_is_kept_though_nodes_are_collecting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At those that have heard of it. The sixth goes on as if it had been done before."""
    assert named_meanwhile(monkeypatch) == list(range(5))


def test_must_fail_where_a_walk_goes_by_the_snapshots_of_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Collector, "_go_on", lambda _collector, walk, _facts, view: (True, walk.step(view))
    )
    assert not named_meanwhile(monkeypatch)
