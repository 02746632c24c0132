"""Nodes disagree about who may write a file: the writer asks the inode, and waits for no node.

A change of permission reaches a quorum. The others go by what they know; those that are behind
refuse what is permitted now, and those that have taken a block take no refusal back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from bftfs.asking.ask import Refusals
from bftfs.asking.quorum import Nodes
from bftfs.asking.refusal import Refused
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.messages import LifeRequest
from bftfs.read_write.messages import WriteRequest
from bftfs.simulation.world import SECOND_US
from tests.seams.disputes import (
    Full,
    asking_anywhere,
    far_away,
    no_patience,
    refusing,
    without_asking,
)
from tests.seams.world import READERS_GRANT, STRANGER, STRANGERS_GRANT, User, World

SIZES = [(1, 0), (1, 1), (2, 0), (2, 1)]
MINE = "what root wrote"
SOON_US = 5 * SECOND_US


def started(t: int, b: int) -> tuple[World, User, User, ObjectId, Any]:
    """A file that everybody may write, which a stranger has open. All nodes know it."""
    world = World(t, b)
    root, stranger = world.user("root"), world.user("stranger", STRANGER, grant=STRANGERS_GRANT)
    root.format()
    identifier = root.make("shared", MINE, mode=0o666)
    world.run_for(605 * SECOND_US)
    file = stranger.run(stranger.files.open(identifier, os.O_WRONLY, STRANGER))
    stranger.files.write(file, 0, b"more", now_ns=world.now_us * 1_000)
    return world, root, stranger, identifier, file


# --- permission goes while a block is on its way --------------------------------------------------


def withdrawn(
    t: int, b: int, late: int, *, by_grant: bool = False
) -> tuple[World, list[Any], ObjectId]:
    """t nodes are down; `late` others get the block after they have heard of the change.

    What comes of closing the file, soon after.
    """
    world, root, stranger, identifier, file = started(t, b)
    n = world.sizes.n
    for node in range(n - t, n):
        world.nodes[node].crash(down_us=None)
    behind = {world.nodes[node].endpoint for node in range(n - t - late, n - t)}
    world.ways.hold(
        lambda _source, target, _kind, message: (
            target in behind and isinstance(message, WriteRequest)
        )
    )
    ended = world.start(stranger.host, stranger.files.release(file))
    world.run_for(SECOND_US // 2)
    if by_grant:
        senders, endpoint = world.deployment._senders, stranger.host.endpoint
        senders[endpoint] = replace(senders[endpoint], grant=READERS_GRANT)
    else:
        root.chmod(identifier, 0o600)
    world.ways.flow()
    world.run_for(SOON_US)
    return world, ended, identifier


LATE = [(t, b, late) for t, b in SIZES for late in range(1, t + 2)]


@pytest.mark.parametrize(("t", "b", "late"), LATE)
def test_a_write_ends_when_permission_goes(t: int, b: int, late: int) -> None:
    world, ended, identifier = withdrawn(t, b, late)
    assert [each.code for each in ended] == [errno.EACCES]
    for node in world.nodes:
        node.start()
    world.run_for(SECOND_US)
    assert world.user("reader").read(identifier) == MINE


def test_a_write_ends_when_the_grant_goes() -> None:
    """The client may only read from now on, as all nodes that are there have heard."""
    _, ended, _ = withdrawn(1, 1, 1, by_grant=True)
    assert [each.code for each in ended] == [errno.EROFS]


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_must_fail_where_writers_wait_for_nodes_to_agree(
    t: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_asking(monkeypatch, "write_many")
    _, ended, _ = withdrawn(t, b, 1)
    assert ended == []


# --- nodes that are behind refuse what is permitted -----------------------------------------------


def let_in(
    t: int, b: int, prepare: Callable[[World], None], within_us: int = SOON_US
) -> tuple[World, ObjectId]:
    """All nodes know that the stranger may not write; then he may, and t nodes do not know it."""
    world, root, stranger, identifier, file = started(t, b)
    root.chmod(identifier, 0o600)
    world.run_for(605 * SECOND_US)
    root.chmod(identifier, 0o666)
    world.run_for(30 * SECOND_US)
    prepare(world)
    stranger.run(stranger.files.release(file), within_us=within_us)
    return world, identifier


def take_down(nodes: Iterable[int]) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        for node in nodes:
            world.nodes[node].crash(down_us=None)

    return prepare


@pytest.mark.parametrize(("t", "b"), SIZES)
@pytest.mark.parametrize("first", [0, 1])
def test_who_was_let_in_writes_though_t_nodes_are_down_and_t_behind(
    t: int, b: int, first: int
) -> None:
    world, identifier = let_in(t, b, take_down(range(first, first + t)))
    assert world.user("reader").read(identifier).startswith("more")


@pytest.mark.parametrize(("t", "b", "liars"), [(1, 1, (0,)), (1, 1, (3,)), (2, 1, (0,))])
def test_who_was_let_in_writes_though_a_liar_sides_with_those_behind(
    t: int, b: int, liars: tuple[int, ...]
) -> None:
    """They are more than t that refuse, and b + 1 that give the same reason. The liar permits it
    when the inode is asked, as a part of the quorum that could have done without those behind."""
    world, identifier = let_in(t, b, refusing(*liars))
    assert world.user("reader").read(identifier).startswith("more")


def test_must_fail_where_it_counts_what_more_than_t_nodes_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_asking(monkeypatch, "write_many")
    with pytest.raises(Exception, match="may not write"):
        let_in(1, 1, refusing(0))


def test_must_fail_where_the_question_goes_to_the_usual_quorum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking_anywhere(monkeypatch)
    with pytest.raises(AssertionError, match="it has not happened"):
        let_in(1, 1, refusing(0), within_us=60 * SECOND_US)


# --- beside full disks ----------------------------------------------------------------------------


def full(*nodes: int) -> Callable[[World], None]:
    return refusing(*nodes, kind=Full)


@pytest.mark.parametrize(("t", "b"), SIZES)
@pytest.mark.parametrize("first", [0, 1])
def test_full_disks_beside_nodes_that_are_behind_are_not_final(t: int, b: int, first: int) -> None:
    """t disks are full, and t nodes behind: together more than t refuse."""
    world, identifier = let_in(t, b, full(*range(first, first + t)))
    assert world.user("reader").read(identifier).startswith("more")


@pytest.mark.parametrize(("t", "b"), [(1, 0), (2, 1)])
def test_must_fail_where_refusals_of_nodes_that_are_behind_count(
    t: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_asking(monkeypatch, "write_many")
    with pytest.raises(AdmissionRefused):
        let_in(t, b, full(*range(t)))


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_full_disks_beside_one_that_comes_back_are_not_final(t: int, b: int) -> None:
    """t disks are full, and another node has to begin a new life before it takes anything."""
    world, _, stranger, identifier, file = started(t, b)
    full(*range(t))(world)
    comes_back = world.nodes[t]
    world.ways.hold(
        lambda source, _target, _kind, message: (
            source == comes_back.endpoint and isinstance(message, LifeRequest)
        )
    )
    world.deployment.lose_disk(comes_back.node)
    ended = world.start(stranger.host, stranger.files.release(file))
    world.run_for(SOON_US)
    assert ended == []
    world.ways.flow()
    world.run_for(2 * SOON_US)
    assert ended == [None]
    assert world.user("reader").read(identifier).startswith("more")


def test_must_fail_where_refusals_that_pass_count(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Refusals.add

    def count_all(refusals: Refusals, node: NodeId, refused: Refused) -> None:
        refusals.nodes = refusals.nodes.plus(node)
        add(refusals, node, refused)

    monkeypatch.setattr(Refusals, "add", count_all)
    with pytest.raises(AssertionError, match="AdmissionRefused"):
        test_full_disks_beside_one_that_comes_back_are_not_final(1, 0)


@pytest.mark.parametrize(("t", "b"), SIZES)
def test_more_full_disks_than_may_fail_are_final(t: int, b: int) -> None:
    with pytest.raises(AdmissionRefused) as refused:
        let_in(t, b, full(*range(t + 1)))
    assert refused.value.code == errno.ENOSPC


# --- it is no way past the nodes ------------------------------------------------------------------


def test_who_permits_himself_gets_no_further() -> None:
    """A client that takes the inode's refusal for a permission. One node lies besides."""
    world, root, stranger, identifier, _ = started(1, 1)
    root.chmod(identifier, 0o600)
    asked: list[Nodes] = []

    async def permit(forbidding: Nodes) -> None:
        asked.append(forbidding)
        with pytest.raises(FileSystemError) as refused:
            await stranger.files._metadata.permit_writing(identifier, STRANGER, forbidding)
        assert refused.value.code == errno.EACCES

    layout = root.attributes(identifier).layout
    assert layout is not None
    block = layout.block(identifier, 0)
    ended = world.start(
        stranger.host, stranger.blocks.write_many([(block, b"EVIL")], STRANGER, permit=permit)
    )
    world.run_for(60 * SECOND_US)
    assert asked
    assert not ended
    assert world.user("reader").read(identifier) == MINE


# --- a liar is near, and the others are far away --------------------------------------------------


def write_beside_a_liar(t: int, b: int) -> list[Any]:
    """What comes of a write that a near liar refuses, and all others take in three seconds."""
    world, _, stranger, _, file = started(t, b)
    refusing(0)(world)
    far_away(world, range(1, world.sizes.n), 1_500_000)
    ended = world.start(stranger.host, stranger.files.release(file))
    world.run_for(60 * SECOND_US)
    return ended


@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 1)])
def test_a_liar_does_not_keep_those_writing_who_are_far_from_the_others(t: int, b: int) -> None:
    assert write_beside_a_liar(t, b) == [None]


def test_must_fail_where_no_write_bears_more_silences_than_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_patience(monkeypatch)
    assert write_beside_a_liar(1, 1) == []
