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
frozen = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="nodes refuse whatever comes after a future time"
)
jumps = pytest.mark.parametrize(
    "jump_s", [200, pytest.param(900, marks=frozen), pytest.param(YEAR_S, marks=frozen)]
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


@jumps
def test_an_object_is_not_frozen(jump_s: int) -> None:
    """A counter is incremented during the jump, and again after it, and by somebody else."""
    world = World()
    user, other = world.user("user"), world.user("other")

    def increment(who: User) -> int:
        update = who.objects.update((COUNTER,), "counter.increment", Increment(1), who.who)
        value: int = done(world, who, update).answer.value
        return value

    assert increment(user) == 1
    jump(world, [user, other], jump_s)
    assert increment(user) == 2
    jump(world, [user, other], -jump_s)
    fetched = other.objects.query((COUNTER,), "counter.fetch", Fetch(), other.who)
    assert done(world, other, fetched).answer.value == 2
    assert increment(user) == 3
    assert increment(other) == 4


@jumps
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
