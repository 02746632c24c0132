"""All clocks jump ahead together, and back: a bad time server, a machine that was restored.

Nobody can notice that while it lasts: all agree. What was written meanwhile must not be frozen
until the clocks have come to that time again.
"""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.errors import AdmissionRefused
from bftfs.identifiers import ObjectKind, object_id
from bftfs.query_update.counter import Fetch, Increment
from bftfs.simulation.world import SECOND_US
from tests.seams.world import User, World

COUNTER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
YEAR_S = 365 * 24 * 3_600
JUMPS_S = [200, 900, YEAR_S]
frozen = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="nodes refuse blocks that come after a future time"
)


def jump(world: World, users: list[User], by_s: int) -> None:
    """Set all clocks."""
    for host in (*world.nodes, *(user.host for user in users)):
        host.skew_us += by_s * SECOND_US


def done(world: World, user: User, conversation: Any) -> Any:
    """What comes of it within a minute."""
    ended = world.start(user.host, conversation)
    world.run_for(60 * SECOND_US)
    assert ended, "it waits"
    assert not isinstance(ended[0], AdmissionRefused), str(ended[0])
    return ended[0]


def incrementing(user: User) -> Any:
    """An update of the counter."""
    return user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_an_object_is_not_frozen(jump_s: int) -> None:
    """A counter is incremented during the jump, and again after it, and by somebody else."""
    world = World()
    user, other = world.user("user"), world.user("other")

    def increment(who: User) -> int:
        value: int = done(world, who, incrementing(who)).answer.value
        return value

    assert increment(user) == 1
    jump(world, [user, other], jump_s)
    assert increment(user) == 2
    jump(world, [user, other], -jump_s)
    fetched = other.objects.query((COUNTER,), "counter.fetch", Fetch(), other.who)
    assert done(world, other, fetched).answer.value == 2
    assert increment(user) == 3
    assert increment(other) == 4


@pytest.mark.parametrize(
    "jump_s", [JUMPS_S[0], *(pytest.param(jump_s, marks=frozen) for jump_s in JUMPS_S[1:])]
)
def test_a_file_is_not_frozen(jump_s: int) -> None:
    """A file is written during the jump, and again after it: its blocks and its inode."""
    world = World()
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "before")
    jump(world, [user, other], jump_s)
    user.put(identifier, "during")
    jump(world, [user, other], -jump_s)
    assert other.read(identifier).rstrip("\0") == "during"
    done(world, other, other.putting(identifier, "after!"))
    assert user.read(identifier).rstrip("\0") == "after!"


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a future time that one server has is not believed"
)
def test_an_object_with_an_incomplete_update_is_not_frozen() -> None:
    """A client stops in the middle of an update at the end of the jump; then a node is down."""
    world = World(verifying=False)
    user, other = world.user("user"), world.user("other")
    done(world, user, incrementing(user))
    jump(world, [user, other], YEAR_S)
    done(world, user, incrementing(user))
    world.ways.hold(lambda _source, target, _kind, _message: target != world.nodes[2].endpoint)
    world.start(user.host, incrementing(user))
    world.run_for(SECOND_US)
    world.ways.hold(lambda *_: False)
    jump(world, [user, other], -YEAR_S)
    world.nodes[5].crash(down_us=None)
    assert done(world, other, incrementing(other)).answer.value in {3, 4}
