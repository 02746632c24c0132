"""Clients that change the same object make room for each other: none starves, little is wasted."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

import pytest

from bftfs import limits
from bftfs.credentials import Credentials
from bftfs.filesystem import registry
from bftfs.filesystem.directory import Creation
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectKind, object_id, placement_of
from bftfs.query_update.admission import Lines
from bftfs.query_update.counter import Increment
from bftfs.query_update.effort import Streaks
from bftfs.query_update.messages import Status, UpdateReply
from bftfs.simulation.deployment import client_named
from tests.builders import USER
from tests.unit.query_update.harness import Client, Cluster, counter_id

A, B = counter_id(0), counter_id(1)
CLIENTS = 10
EACH = 20
ROOT = object_id(ObjectKind.DIRECTORY, placement=3, unique=bytes(14))
VOLUME = object_id(ObjectKind.VOLUME, placement=3, unique=bytes(14))

Update = Callable[[Client, str], Any]


async def increment(client: Client, name: str) -> None:
    await client.qu.update((A,), "counter.increment", Increment(), USER)


async def create(client: Client, name: str) -> None:
    unique = client_named(name)[:14]
    inode = object_id(ObjectKind.INODE, placement=placement_of(ROOT), unique=unique)
    made = Creation(name.encode(), stat.S_IFREG | 0o644, 0, 0, b"", limits.BLOCK_BYTES_DEFAULT)
    await client.qu.update((ROOT, inode), registry.CREATE, made, USER)


class Crowd:
    """Clients that all do the same, one update after the other."""

    def __init__(self, clients: int, update: Update, *, seed: int = 0) -> None:
        types = registry.file_system_types() if update is create else None
        self.cluster = Cluster(types=types, seed=seed)
        self.cluster.route = self.delay
        self.clients = [self.cluster.client(f"client {number}") for number in range(clients)]
        self.update = update
        if update is create:
            form = Format(limits.BLOCK_BYTES_DEFAULT, 0o777)
            root = Credentials(uid=0, gid=0)
            self.clients[0].run(
                self.clients[0].qu.update((VOLUME, ROOT), registry.FORMAT, form, root)
            )
        self.begun_us = self.cluster.now_us
        self.waits_us: dict[str, list[int]] = {client.name: [] for client in self.clients}
        self.since_us = dict.fromkeys(self.waits_us, self.begun_us)
        self.cluster.sent.clear()

    def delay(self, *_: object) -> int:
        """Of a busy machine: a round takes about 4 ms."""
        return self.cluster.random.randrange(500, 2_500)

    async def _work(self, client: Client, each: int) -> None:
        for number in range(each):
            await self.update(client, f"{client.name}-{number}")
            now_us = self.cluster.now_us
            self.waits_us[client.name].append(now_us - self.since_us[client.name])
            self.since_us[client.name] = now_us

    @property
    def taken_us(self) -> int:
        return self.cluster.now_us - self.begun_us

    @property
    def done(self) -> list[int]:
        """How many updates each client has done, ascending."""
        return sorted(map(len, self.waits_us.values()))

    @property
    def longest_us(self) -> int:
        """The longest that anybody has waited for one update, to this moment."""
        ended = max((wait_us for waits in self.waits_us.values() for wait_us in waits), default=0)
        return max(ended, self.cluster.now_us - min(self.since_us.values()))

    def finish(self, each: int) -> None:
        outcomes = [client.start(self._work(client, each)) for client in self.clients]
        self.cluster.run(lambda: all(each.done for each in outcomes), within_us=600_000_000)
        for outcome in outcomes:
            outcome.value()

    def go_on_for(self, duration_us: int) -> None:
        for client in self.clients:
            client.start(self._work(client, 1 << 40))
        until_us = self.cluster.now_us + duration_us
        self.cluster.run(lambda: self.cluster.now_us >= until_us, within_us=600_000_000)


@pytest.mark.parametrize("update", [increment, create])
def test_ten_clients_take_a_small_multiple_of_the_time_of_one(update: Update) -> None:
    alone = Crowd(1, update)
    alone.finish(CLIENTS * EACH)
    together = Crowd(CLIENTS, update)
    together.finish(EACH)
    assert together.taken_us < 6 * alone.taken_us
    assert together.longest_us < 2 * limits.SECOND_US
    # Not by asking again and again.
    assert len(together.cluster.sent) < 10 * len(alone.cluster.sent)


@pytest.mark.parametrize("clients", [2, CLIENTS])
def test_nobody_starves_while_others_go_on(clients: int) -> None:
    """Who succeeds knows the latest version first, and could succeed for ever."""
    crowd = Crowd(clients, increment, seed=3)  # the longest wait is 1.1 to 2.7 s by the seed
    crowd.go_on_for(4 * limits.SECOND_US)
    assert crowd.longest_us < 2 * limits.SECOND_US
    assert crowd.done[0] > sum(crowd.done) / clients / 5


def test_somebody_starves_where_nobody_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay(*_: object) -> None:
        pass

    monkeypatch.setattr(Streaks, "step_back", stay)
    monkeypatch.setattr(Lines, "join", lambda *_: 0)
    crowd = Crowd(CLIENTS, increment)
    crowd.go_on_for(8 * limits.SECOND_US)
    assert crowd.longest_us > 2 * limits.SECOND_US


def test_who_is_alone_is_not_delayed() -> None:
    crowd = Crowd(1, increment)
    crowd.finish(50)
    assert max(crowd.waits_us["client 0"]) < 5_000
    assert len(crowd.cluster.sent) == 50 * 2 * crowd.cluster.quorums.q


def test_a_latecomer_does_not_halve_the_rate_of_others() -> None:
    """It stands in the line for ever, and never takes its turn."""
    alone = Crowd(1, increment)
    alone.go_on_for(limits.SECOND_US)
    crowd = Crowd(1, increment)
    cluster = crowd.cluster
    mallory = ("client", "mallory")
    held: list[tuple[Any, Any]] = []
    replies: list[UpdateReply] = []

    def route(source: Any, target: Any, message: Any) -> int | None:
        if source == mallory and len(held) < cluster.quorums.q:
            held.append((target, message))
            return None
        if target == mallory:
            replies.append(message)
        return crowd.delay()

    cluster.route = route
    running = cluster.client("mallory")
    running.start(increment(running, ""))

    def again() -> None:
        for target, message in held:
            cluster.request(mallory, target, message)
        cluster.after(2_000, again)

    cluster.after(10_000, again)
    crowd.go_on_for(limits.SECOND_US)
    assert len(replies) > 1_000
    assert all(reply.status is Status.NOT_CURRENT for reply in replies[-500:])
    assert crowd.done[0] > 0.6 * alone.done[0]


# --- lines ------------------------------------------------------------------------------------

ALICE, BOB, CAROL = map(client_named, ("alice", "bob", "carol"))


def test_a_place_in_a_line_is_kept_until_it_was_ones_turn() -> None:
    lines = Lines()
    assert [lines.join([A], client, 0) for client in (ALICE, BOB, CAROL)] == [0, 1, 2]
    assert lines.join([A], BOB, 1) == 1
    assert lines.leave([A], ALICE, 2) == 2
    assert lines.join([A], ALICE, 3) == 2
    assert lines.join([A], BOB, 4) == 0


def test_who_has_not_tried_again_loses_his_place() -> None:
    lines = Lines()
    lines.join([A], ALICE, 0)
    later_us = limits.CONTENDED_US + 1
    assert lines.join([A], BOB, later_us) == 0
    assert lines.leave([A], CAROL, 2 * later_us) == 0


def test_where_several_lines_are_the_longest_counts() -> None:
    lines = Lines()
    lines.join([A], ALICE, 0)
    lines.join([A], BOB, 0)
    lines.join([B], BOB, 0)
    assert lines.join([A, B], CAROL, 0) == 2
    assert lines.leave([A, B], CAROL, 0) == 2


def test_lines_are_bounded() -> None:
    lines = Lines()
    for number in range(limits.CONTENDERS + 10):
        lines.join([A], client_named(str(number)), 0)
    assert lines.join([A], ALICE, 0) == limits.CONTENDERS
    assert lines.leave([A], ALICE, 0) == limits.CONTENDERS
    for number in range(limits.CONTENDED_OBJECTS):
        lines.join([counter_id(number + 2)], ALICE, 0)
    assert lines.leave([A], ALICE, 0) == 0  # the longest untouched line is gone
