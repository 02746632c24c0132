"""A node that does not know an inode, or knows it as it was, must not help to overwrite the file.

An update goes to a quorum; the t nodes outside of it learn of a new inode, or of a `chmod`, only
when they heal. A lying node that says it hosts what it does not host is one more.
"""

from __future__ import annotations

import pytest

from bftfs.filesystem.block_reading import BlockReader
from bftfs.identifiers import NodeId, ObjectId
from bftfs.simulation.world import SECOND_US
from bftfs.thresholds import ReadWriteThresholds
from tests.seams.world import (
    STRANGER,
    STRANGERS_GRANT,
    World,
    accepted,
    latest_complete,
    private_file,
)


@pytest.fixture(autouse=True)
def _readers_go_by_what_nodes_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the inode does not name would not be read anyway: nodes have to refuse it besides."""
    monkeypatch.setattr(BlockReader, "_shown", latest_complete)


MINE, EVIL = "what root wrote", "EVIL!!"


def outside(world: World) -> list[int]:
    """The nodes outside of the preferred quorum of all objects here: placement 0."""
    return list(range(world.sizes.query_update.q, world.sizes.n))


def overwrite(world: World, identifier: ObjectId, liars: int, lost: int = 0) -> list[int]:
    """What a stranger without permission does to a file. The nodes that took it in the end.

    He writes to all nodes; asks all to vouch that they host it; and shows the vouchers to the rest
    as a reader does that repairs. The version is dated when root wrote last, so that it is covered.
    """
    knowing = world.sizes.query_update.q
    stranger = world.hand("stranger", grant=STRANGERS_GRANT, allies=range(knowing - liars, knowing))
    found = world.user("onlooker", STRANGER).attributes(identifier)
    assert found.layout is not None
    version = stranger.version(found.layout.block(identifier, 0), EVIL, found.contents)
    for node in range(lost):
        world.deployment.lose_disk(NodeId(node))
        world.nodes[node].start()
    direct = stranger.write(version, range(world.sizes.n))
    assert set(accepted(direct)) <= {*outside(world), *stranger.allies}, "knowing nodes refuse it"
    stranger.finish(version, stranger.vouchers(version))
    return world.hosting(version.block, version.timestamp)


SIZES = [(1, 1, 1), (1, 0, 0), (2, 1, 0), (2, 1, 1)]  # t, b, and how many lie


@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_new_file_is_not_overwritten(t: int, b: int, liars: int) -> None:
    """Root makes a file 0600; t nodes have not heard of it; a stranger writes to all."""
    assert what_is_read_of_a_new_file(t, b, liars) == MINE


def what_is_read_of_a_new_file(t: int, b: int, liars: int, lost: int = 0) -> str:
    world, _, identifier = private_file(t, b, MINE)
    overwrite(world, identifier, liars, lost)
    return world.user("reader").read(identifier)


@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_nodes_that_lost_their_stores_do_not_let_strangers_in(t: int, b: int, liars: int) -> None:
    """As many as may fail: beside t that have not heard of the file they are more than t."""
    assert what_is_read_of_a_new_file(t, b, liars, lost=t - liars) == MINE


@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_must_fail_where_too_few_nodes_vouch(
    monkeypatch: pytest.MonkeyPatch, t: int, b: int, liars: int
) -> None:
    """With vouchers of b + 1 nodes, none of them needs to know the file."""
    monkeypatch.setattr(ReadWriteThresholds, "repairable", property(lambda sizes: sizes.b + 1))
    assert what_is_read_of_a_new_file(t, b, liars).startswith(EVIL)


@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
@pytest.mark.parametrize("wait_s", [0, 60])
def test_closed_file_is_not_overwritten(t: int, b: int, liars: int, wait_s: int) -> None:
    """All know a file that was 0666; root closes it at a quorum; t nodes still think it open."""
    world = World(t, b)
    root = world.user("root")
    root.format()
    identifier = root.make("secret", MINE, mode=0o666)
    world.run_for(605 * SECOND_US)  # healing
    assert world.knowing(identifier) == list(range(world.sizes.n))
    root.put(identifier, MINE)
    root.chmod(identifier, 0o600)
    world.run_for(wait_s * SECOND_US)
    overwrite(world, identifier, liars)
    assert world.user("reader").read(identifier) == MINE


@pytest.mark.parametrize("down", [0, 3])
def test_owner_writes_past_a_node_that_is_behind(down: int) -> None:
    """t nodes are down, and among the N - t that a write needs are some that know no inode."""
    world = World()
    root = world.user("root")
    root.format()
    identifier = root.make("mine", MINE)
    assert world.knowing(identifier) == [0, 1, 2, 3, 4]
    world.nodes[down].crash(down_us=None)
    root.put(identifier, "more", offset=len(MINE), within_us=60 * SECOND_US)
    assert world.user("reader").read(identifier) == MINE + "more"


@pytest.mark.parametrize("down", [0, 3])
def test_who_was_let_in_writes_past_a_node_that_is_behind(down: int) -> None:
    """Root opens a file to all at a quorum; a stranger may write at once, with t nodes down."""
    world = World()
    root, stranger = world.user("root"), world.user("stranger", STRANGER, grant=STRANGERS_GRANT)
    root.format()
    identifier = root.make("shared", MINE)
    world.run_for(605 * SECOND_US)
    root.chmod(identifier, 0o666)
    world.nodes[down].crash(down_us=None)
    stranger.put(identifier, "more", offset=len(MINE), within_us=60 * SECOND_US)
    assert world.user("reader").read(identifier) == MINE + "more"
