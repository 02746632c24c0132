"""What an inode names is there, whatever nodes have collected meanwhile.

A mount has written a block and not covered it yet, since the network is down or its program goes on
writing. Others write to the block, and the detection window passes, which may be short. Nodes have
vouched for the version by then, or have not heard of it: when it is covered it is there.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest

from bftfs import limits
from bftfs.errors import NoLongerKept
from bftfs.filesystem.options import Options
from bftfs.server import file_collection
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from tests.seams.world import BLOCK_BYTES, VOLUME, World

WINDOW_US = 600 * SECOND_US


class Written(NamedTuple):
    """A file, of which one block is written and not covered; and others' work on it."""

    world: World
    close: Any
    read: Any
    hosts: Any


def written(*, is_covered: bool = False) -> Written:
    """One mount writes a block, and a second one the same block, later. A third covers another.

    The second mount fails before it covers its block, unless that `is_covered`.
    """
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * 2 * BLOCK_BYTES)
    first, file = opened(world, user, identifier)
    pushed(world, user, first, file, b"first")
    block, timestamp = file.contents.layout.block(identifier, 0), file.contents.uncovered[0][2]
    world.run_for(SECOND_US)
    other = world.user("other")
    second, theirs = opened(world, other, identifier)
    pushed(world, other, second, theirs, b"second")
    if is_covered:
        other.run(second.flush(theirs))
    world.run_for(SECOND_US)
    world.user("third").put(identifier, "third", offset=BLOCK_BYTES)
    world.run_for(2 * WINDOW_US + SECOND_US)
    return Written(
        world,
        lambda: user.run(first.release(file), within_us=20 * SECOND_US),
        lambda: world.user("reader").read(identifier)[:6].rstrip("."),
        lambda: world.hosting(block, timestamp),
    )


def opened(world: World, user: Any, identifier: Any) -> Any:
    mount = user.filesystem(Options())
    return mount, user.run(mount.open(identifier, os.O_RDWR, user.who))


def pushed(world: World, user: Any, mount: Any, file: Any, contents: bytes) -> None:
    mount.write(file, 0, contents, now_ns=world.now_us * 1000)
    user.run(mount._contents._writer.push(file.contents, tuple(file.contents.dirty)))


def test_what_its_author_may_still_name_is_kept() -> None:
    """Nodes have vouched for it long ago, and others' version is later, verified and old."""
    case = written()
    assert len(case.hosts()) == 6
    case.close()
    assert case.read() == "first"


def test_must_fail_where_what_is_superseded_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_collection, "may_be_named", lambda *_, **__: False)
    case = written()
    assert not case.hosts()
    case.close()
    with pytest.raises(NoLongerKept):
        case.read()


def test_what_gave_way_to_a_later_name_goes() -> None:
    """It can never be named any more. Its author, who would write its bytes again, is told."""
    case = written(is_covered=True)
    assert not case.hosts()
    with pytest.raises(NoLongerKept):
        case.close()
    assert case.read() == "second"


def test_what_nobody_names_goes_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COVERED_WITHIN_US", WINDOW_US)
    case = written()
    assert case.hosts()
    case.world.run_for(limits.CLOCKS_AGREE_US)
    assert not case.hosts()
