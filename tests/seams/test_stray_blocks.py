"""Blocks of files that do not exist, whose names a client makes up, do not fill nodes for ever.

A node takes blocks of an inode that it does not know, since it may be behind. Their author pays for
them, and while nodes are short of room they go, when they are as old as the window.
"""

from __future__ import annotations

from typing import Any

import pytest

from bftfs import limits
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.query_update.messages import HistoryReply, HistoryRequest
from bftfs.server import stray_blocks
from bftfs.server.room import used_bytes
from bftfs.server.stray_blocks import Removed, StrayBlocks
from bftfs.simulation.checkers.accounts import check_accounts
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
from tests.seams.world import ROOT, STRANGERS_GRANT, VOLUME, Hand, World, accepted, refused

WINDOW_US = 600 * SECOND_US
MADE_UP = object_id(ObjectKind.INODE, placement=0, unique=b"made up ......")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not named soon is never named."""
    monkeypatch.setattr(limits, "COVERED_WITHIN_US", 60 * SECOND_US)


def world_that_collects(roomy: tuple[NodeId, ...] = ()) -> World:
    world = World(collection=CollectionPlan(WINDOW_US, roomy=roomy), volume=VOLUME)
    world.user("root").format()
    return world


def store(world: World, inode: ObjectId) -> Hand:
    """A stranger stores blocks of an inode."""
    stranger = world.hand("stranger", grant=STRANGERS_GRANT)
    for number in range(5):
        block = block_id(inode, incarnation=number % 2, number=number)
        version = stranger.version(block, "what nobody asked for", world.now_us)
        assert len(accepted(stranger.write(version, range(6)))) == 6
    return stranger


def kept(world: World, inode: ObjectId) -> list[int]:
    """How many blocks of an inode each node has."""
    return [
        len(list(node.disk.keys(Table.BLOCK, inode, inode + b"\xff" * 72))) for node in world.nodes
    ]


def test_made_up_blocks_are_paid_for_and_go() -> None:
    world = world_that_collects()
    stranger = store(world, MADE_UP)
    world.run_for(WINDOW_US - SECOND_US)
    assert kept(world, MADE_UP) == [5] * 6
    assert all(used_bytes(node.disk, stranger.client) for node in world.nodes)
    world.run_for(2 * WINDOW_US)
    assert kept(world, MADE_UP) == [0] * 6
    assert not any(used_bytes(node.disk, stranger.client) for node in world.nodes)
    assert check_accounts({node.node: node.disk for node in world.nodes}) == []


def test_must_fail_where_blocks_are_found_by_their_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> Removed:
        return Removed()

    monkeypatch.setattr(StrayBlocks, "remove", nothing)
    with pytest.raises(AssertionError):
        test_made_up_blocks_are_paid_for_and_go()


def behind(world: World, nodes: tuple[int, ...]) -> ObjectId:
    """A file of which these nodes do not know that it was made; they have its blocks."""
    world.run_for(605 * SECOND_US)  # they know the volume
    endpoints = [world.nodes[node].endpoint for node in nodes]
    user = world.user("user")
    world.ways.hold(
        lambda source, target, _kind, message: (
            (target in endpoints or source in endpoints)
            and type(message).__module__.startswith("bftfs.query_update")
            and not isinstance(message, HistoryRequest | HistoryReply)
        )
    )
    identifier = user.make("file", "contents")
    assert not {*nodes} & {*world.knowing(identifier)}
    return identifier


def test_a_node_that_is_behind_removes_nothing() -> None:
    world = world_that_collects(roomy=(NodeId(0), NodeId(1), NodeId(2)))
    identifier = behind(world, (5,))
    for _ in range(60):
        world.run_for(WINDOW_US // 20)
        assert kept(world, identifier)[5] == 1


def test_must_fail_nodes_that_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def always(*_: Any) -> bool:
        return True

    monkeypatch.setattr(StrayBlocks, "_is_unknown", always)
    with pytest.raises(AssertionError):
        test_a_node_that_is_behind_removes_nothing()


def test_strays_that_nobody_confirms_hold_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a pass asks of some: the next one goes on from there."""
    monkeypatch.setattr(stray_blocks, "_UNCONFIRMED_MOST", 1)
    monkeypatch.setattr(limits, "COLLECT_OBJECTS", 1)
    world = world_that_collects()
    inodes = [ObjectId(MADE_UP[:-1] + bytes([number])) for number in range(3)]
    for inode in inodes:
        store(world, inode)
    asked: list[bytes] = []

    async def unconfirmed(self: StrayBlocks, inode: ObjectId, *_: Any) -> bool:
        asked.extend([inode] * (self._node == 0))
        return False

    monkeypatch.setattr(StrayBlocks, "_is_unknown", unconfirmed)
    world.run_until(lambda: len(asked) > 3, within_us=10 * WINDOW_US)
    assert asked[:4] == [*inodes, inodes[0]]


@pytest.mark.parametrize("identifier", [VOLUME, ROOT, ObjectId(b"\x09" + MADE_UP[1:])])
def test_only_files_have_blocks(identifier: ObjectId) -> None:
    world = World()
    world.user("root").format()
    stranger = world.hand("stranger")
    block = block_id(identifier, incarnation=0, number=0)
    version = stranger.version(block, "what nobody asked for", world.now_us)
    assert len(refused(stranger.write(version, range(6)))) == 6
