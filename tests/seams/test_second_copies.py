"""Copies of an update's requests arrive after the first ones were refused, and are accepted.

Nobody lies. The network repeats and delays messages, and servers refuse for reasons that pass. The
update takes effect once all the same, and its client is told the truth about it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem import registry
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.volume import Snapshot, SnapshotCreation
from bftfs.query_update.history import ConditionedKind, decode_conditioned
from bftfs.query_update.messages import Status, Update, UpdateReply
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US, START_US
from tests.seams.test_clock_jumps import incrementing, jump
from tests.seams.world import ROOT, VOLUME, User, World
from tests.simulation.mutants import end_attempts_by_refusals, leave_requests_under_way

HOUR_S = 3_600
LATE_S = 100  # after this time it does not try again at the same time
NOBODYS = 1 << 40  # the number of a request to which nobody waits for a reply
Perform = Callable[[User], Coroutine[Any, Any, Any]]


class Copies:
    """The network has a copy of each request by which a user makes an update."""

    def __init__(self, world: World, user: User) -> None:
        self._world = world
        self._endpoint = user.host.endpoint
        self.requests: list[tuple[Any, Update]] = []
        self.replies: list[UpdateReply] = []
        world.ways.watch = self._watch

    def _watch(self, source: Any, target: Any, kind: Kind, message: Any) -> None:
        if source == self._endpoint and isinstance(message, Update):
            if decode_conditioned(message.conditioned).kind is ConditionedKind.METHOD:
                self.requests.append((target, message))
        elif target == self._endpoint and isinstance(message, UpdateReply):
            self.replies.append(message)

    def arrive(self) -> None:
        """All of them."""
        for target, message in tuple(self.requests):
            self._world.ways.send(self._endpoint, target, Kind.REQUEST, NOBODYS, message)


def make_directory(user: User) -> Coroutine[Any, Any, Any]:
    return user.files.make_directory(ROOT, b"made", 0o700, user.who)


def is_refusal(message: Any) -> bool:
    return isinstance(message, UpdateReply) and message.status is Status.INSANE_TIME


def refused_then_accepted(perform: Perform) -> tuple[World, User, Any]:
    """A user's clock jumps a moment before all others: nodes refuse the time of an update.

    When their clocks have jumped as well, copies of its requests arrive. The user hears the
    refusals some time later. What comes of the update is told as well.
    """
    world = World(verifying=False)
    user = world.user("user")
    user.format()
    for _ in range(2):
        world.run(user.host, incrementing(user))
    copies, quorum = Copies(world, user), world.sizes.query_update.q
    world.ways.hold(lambda _source, target, *_: target == user.host.endpoint)
    user.host.skew_us += HOUR_S * SECOND_US
    ended = world.start(user.host, perform(user))
    world.run_until(lambda: len(copies.replies) == quorum)
    assert len(copies.requests) == quorum
    jump(world, [], HOUR_S)
    copies.arrive()
    world.ways.hold(lambda source, target, *_: user.host.endpoint in (source, target))
    world.run_for(LATE_S * SECOND_US)
    assert world.ways.release(lambda *message: is_refusal(message[3])) == quorum
    world.run_for(SECOND_US // 100)
    world.ways.flow()
    world.run_until(lambda: bool(ended))
    return world, user, ended[0]


@pytest.mark.parametrize("perform", [make_directory, incrementing])
def test_what_all_servers_refused_takes_effect_once(perform: Perform) -> None:
    world, user, outcome = refused_then_accepted(perform)
    assert not isinstance(outcome, BaseException), repr(outcome)
    answered = world.run(user.host, incrementing(user))
    assert answered.answer.value == (4 if perform is incrementing else 3)


def test_must_fail_clients_that_take_refusals_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    end_attempts_by_refusals(monkeypatch)
    _, _, outcome = refused_then_accepted(make_directory)
    assert isinstance(outcome, FileSystemError)
    assert outcome.code == errno.EEXIST, "it has made the directory itself"
    world, user, _ = refused_then_accepted(incrementing)
    answered = world.run(user.host, incrementing(user))
    assert answered.answer.value == 5, "one of the updates took effect twice"


# --- who gives up -------------------------------------------------------------------------------


def snapshot(user: User) -> Coroutine[Any, Any, Any]:
    """Of a moment that is half an hour away: refused, unless the clock is ahead."""
    soon_us = START_US + HOUR_S // 2 * SECOND_US
    arguments = SnapshotCreation(b"made", soon_us)
    return user.objects.update((VOLUME,), registry.CREATE_SNAPSHOT, arguments, user.who)


def given_up(
    perform: Perform, *, is_set_right: bool, t: int = 1, b: int = 1
) -> tuple[World, User, BaseException]:
    """A user's clock is ahead by an hour: nodes refuse the times of an update, until it ends.

    Perhaps his clock is set right before that. Then all clocks jump ahead by an hour, and copies
    of the first requests arrive.
    """
    world = World(t, b, verifying=False)
    user = world.user("user")
    user.format()
    for _ in range(2):
        world.run(user.host, incrementing(user))
    copies = Copies(world, user)
    user.host.skew_us += HOUR_S * SECOND_US
    ended = world.start(user.host, perform(user))
    world.run_until(lambda: len(copies.replies) == world.sizes.query_update.q)
    first = copies.requests[:]
    assert len(first) == len(copies.replies)
    if is_set_right:
        user.host.skew_us = 0
    world.run_until(lambda: bool(ended))
    copies.requests[:] = first
    user.host.skew_us = 0
    jump(world, [user], HOUR_S)
    copies.arrive()
    world.run_for(SECOND_US)
    assert isinstance(ended[0], AdmissionRefused | FileSystemError), ended
    return world, user, ended[0]


def snapshots(world: World, user: User) -> tuple[Snapshot, ...]:
    listing = user.objects.query((VOLUME,), registry.LIST_SNAPSHOTS, NoArguments(), user.who)
    listed: tuple[Snapshot, ...] = world.run(user.host, listing).answer.snapshots
    return listed


def made(world: World, user: User) -> bool:
    """True if there is a directory of this name now."""
    found = world.start(user.host, user.files.lookup(ROOT, b"made", user.who))
    world.run_until(lambda: bool(found))
    return not isinstance(found[0], FileSystemError)


@pytest.mark.parametrize(("t", "b"), [(0, 0), (1, 0), (1, 1), (2, 1)])
def test_what_a_client_gives_up_because_of_its_clock_never_takes_effect(t: int, b: int) -> None:
    world, user, error = given_up(make_directory, is_set_right=False, t=t, b=b)
    assert isinstance(error, AdmissionRefused)
    assert error.code == errno.ETIME
    assert not made(world, user)
    world, user, _ = given_up(incrementing, is_set_right=False, t=t, b=b)
    assert world.run(user.host, incrementing(user)).answer.value == 3


def test_what_a_method_has_refused_never_takes_effect() -> None:
    """Though it would have been permitted at the time of an earlier attempt."""
    world, user, error = given_up(snapshot, is_set_right=True)
    assert isinstance(error, FileSystemError)
    assert error.code == errno.ERANGE
    assert not snapshots(world, user)


def test_must_fail_clients_that_give_up_with_requests_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_requests_under_way(monkeypatch)
    world, user, _ = given_up(make_directory, is_set_right=False)
    assert made(world, user), "it has been told ETIME"
    world, user, _ = given_up(incrementing, is_set_right=False)
    assert world.run(user.host, incrementing(user)).answer.value == 4
    world, user, _ = given_up(snapshot, is_set_right=True)
    assert snapshots(world, user), "it has been told ERANGE"
