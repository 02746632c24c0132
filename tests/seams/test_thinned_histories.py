"""What was kept for a while goes as if it had gone with the others: values and blocks, too.

A snapshot is deleted, or a policy thins out what it has kept: then versions go whose successors
have gone long before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from random import Random
from typing import Any

import msgspec
import pytest

from bftfs.filesystem.file_history import History
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, history_of, time_of
from bftfs.query_update.object_type import is_in_sequence, serial_at, serial_from
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.past_state import FIRST_KEY, state_at
from bftfs.query_update.replica import (
    NUMBER_BYTES,
    Link,
    Reach,
    Replica,
    hole_start,
    link_of,
    unescaped,
)
from bftfs.server import object_collection
from bftfs.server.object_collection import ObjectWalk, establish
from bftfs.server.object_rebuilding import Past, replacement
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.disk import Disk, Tables
from bftfs.simulation.world import SECOND_US
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import encode
from tests.seams.world import BLOCK_BYTES, ROOT, VOLUME, World

WINDOW_US = 600 * SECOND_US
_END = b"\xff" * 99


def rows(view: StorageView, table: Table, name: ObjectId) -> int:
    return len(list(view.keys(table, name, name + _END)))


def left_of_a_snapshot(disturb: Callable[[World], None] = lambda _: None) -> set[tuple[int, int]]:
    """The versions of blocks and the overwritten values that nodes have of a file with one block,
    when a snapshot of it was deleted, of which several changes came after; and `disturb` then."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    root = world.user("root")
    root.format()
    identifier = root.make("file", "first")
    history = History(root.files, root.objects, PastReader(root.objects), root.blocks)
    root.run(history.create_snapshot(b"kept", root.who))
    for number in range(3):
        world.run_for(SECOND_US)
        root.put(identifier, str(number))
    world.run_for(3 * WINDOW_US)
    hosted = {rows(node.disk, Table.BLOCK, identifier) for node in world.nodes}
    assert hosted == {2}, "that of the snapshot, and the present one"
    root.run(history.delete_snapshot(b"kept", root.who))
    root.put(identifier, "last")
    disturb(world)
    world.run_for(4 * WINDOW_US)
    return {
        (rows(node.disk, Table.BLOCK, identifier), rows(node.disk, Table.PAST, identifier))
        for node in world.nodes
    }


def test_what_a_snapshot_has_kept_goes_when_it_was_deleted() -> None:
    assert left_of_a_snapshot() == {(1, 0)}


def without_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(walk: ObjectWalk, _view: Any) -> list[Write]:
        walk.done = True
        return []

    monkeypatch.setattr(ObjectWalk, "_sweep", end)


def test_must_fail_where_values_go_with_their_successors_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_sweeps(monkeypatch)
    assert left_of_a_snapshot() == {(2, 2)}


def left_of_a_listing() -> set[tuple[int, int]]:
    """The versions and the rows of the past that nodes have of a directory from which entries were
    removed before and after a snapshot, which was deleted."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    root = world.user("root")
    root.format()
    for number in range(9):
        root.make(f"{number}", "x")
    history = History(root.files, root.objects, PastReader(root.objects), root.blocks)

    def remove(numbers: range) -> None:
        for number in numbers:
            world.run_for(SECOND_US)
            root.run(root.files.unlink(ROOT, b"%d" % number, root.who))

    remove(range(3))
    root.run(history.create_snapshot(b"kept", root.who))
    remove(range(3, 6))
    world.run_for(3 * WINDOW_US)
    root.run(history.delete_snapshot(b"kept", root.who))
    remove(range(8, 9))
    world.run_for(4 * WINDOW_US)
    return {
        (rows(node.disk, Table.VERSION, ROOT), rows(node.disk, Table.PAST, ROOT))
        for node in world.nodes
    }


def test_notes_of_holes_go_with_the_last_of_what_was_in_them() -> None:
    assert left_of_a_listing() == {(1, 0)}


def test_must_fail_where_notes_of_holes_go_with_their_versions_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ObjectWalk, "_is_needless", lambda *_: False)
    assert left_of_a_listing() == {(1, 2)}


# --- whatever goes, in whatever order -------------------------------------------------------------


@cache
def busy_file() -> tuple[Tables, ObjectId]:
    """A node's disk, and a file in it that was changed in many ways."""
    world = World(verifying=False)
    root = world.user("root")
    root.format()
    identifier = root.make("file", "." * 3 * BLOCK_BYTES)
    draw = Random(1)
    for number in range(24):
        world.run_for(SECOND_US)
        match draw.randrange(4):
            case 0:
                root.chmod(identifier, 0o600 + number)
            case 1:
                name, value = b"user." + draw.choice((b"a", b"b")), str(number).encode()
                root.run(root.files.set_extended(identifier, name, value, root.who))
            case _:
                root.put(identifier, str(number), offset=draw.randrange(3) * BLOCK_BYTES)
    return world.copy_of(0), identifier


@cache
def busy_directory() -> tuple[Tables, ObjectId]:
    """A node's disk, and a directory in it in which names came and went."""
    world = World(verifying=False)
    root = world.user("root")
    root.format()
    draw, names = Random(2), list[int]()
    for number in range(28):
        world.run_for(SECOND_US)
        if len(names) > 3 and draw.randrange(2):
            gone = names.pop(draw.randrange(len(names)))
            root.run(root.files.unlink(ROOT, b"%d" % gone, root.who))
        else:
            root.make(f"{number}", "")
            names.append(number)
    return world.copy_of(0), ROOT


def states(disk: Disk, name: ObjectId) -> dict[LogicalTimestamp, list[tuple[bytes, bytes]]]:
    """All versions that are there, and the object's map at each."""
    replica = Replica(disk, name)
    found = {}
    for key in disk.keys(Table.VERSION, name, name + _END):
        timestamp = LogicalTimestamp(bytes(key)[len(name) :])
        state = state_at(replica, timestamp)
        assert state is not None
        found[timestamp] = list(state.scan(b"\0", _END))
    return found


def unseen(disk: Disk, name: ObjectId) -> int:
    """How many overwritten values no version sees, and notes of holes that nothing is in."""
    replica = Replica(disk, name)
    past = dict(disk.scan(Table.PAST, name + FIRST_KEY, name + _END))
    notes = disk.scan(Table.PAST, name, name + FIRST_KEY)
    serials = {serial_at(key) for key in map(key_in, past) if is_in_sequence(key)}
    needless = sum(
        not any(hole_start(name, key) <= serial < serial_from(end) for serial in serials)
        for key, end in notes
    )
    versions = [replica.version(timestamp) for timestamp in states(disk, name)]
    numbers = [version.number for version in versions if version is not None]
    spans = [
        (int.from_bytes(row[:NUMBER_BYTES], "big"), int.from_bytes(key[-NUMBER_BYTES:], "big"))
        for key, row in past.items()
    ]
    return needless + sum(
        not any(since <= each < until for each in numbers) for since, until in spans
    )


def key_in(past: bytes) -> bytes:
    """The key of an object's map to which a row of its past belongs."""
    return unescaped(past[len(ROOT) : -NUMBER_BYTES - 2])


def thin_out(seed: int, busy: Callable[[], tuple[Tables, ObjectId]] = busy_file) -> int:
    """Versions go in several passes; those that stay show what they did. Returns what is unseen."""
    draw = Random(seed)
    tables, name = busy()
    disk = Disk()
    disk.put_back(tables)
    head = Replica(disk, name).head
    disk.apply(establish(name, head, disk, 0))
    before = states(disk, name)
    times = [time_of(timestamp) for timestamp in before]
    left = 0
    for _ in range(4):
        horizon_us = draw.choice(times)
        kept_us = frozenset(draw.sample(times, draw.randrange(len(times))))
        row = Replica(disk, name).row
        row = msgspec.structs.replace(row, collected_us=max(row.collected_us, horizon_us))
        disk.apply([Write(Table.OBJECT, name, encode(row))])

        def keeps(
            since_us: int,
            until_us: int | None,
            horizon_us: int = horizon_us,
            kept_us: frozenset[int] = kept_us,
        ) -> bool:
            return until_us is None or until_us > horizon_us or since_us in kept_us

        walk = ObjectWalk(name, keeps, horizon_us=horizon_us)
        while not walk.done:
            disk.apply(walk.step(disk))
        after = states(disk, name)
        assert all(before[timestamp] == state for timestamp, state in after.items())
        left += unseen(disk, name)
    assert head in after
    return left


SEEDS = range(40)


@pytest.mark.parametrize("rows_in_step", [1, 7, 256])
def test_what_no_version_sees_is_gone_and_nothing_else(
    rows_in_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bftfs.limits.COLLECT_ROWS", rows_in_step)
    assert not any(map(thin_out, SEEDS))
    assert not any(thin_out(seed, busy_directory) for seed in SEEDS)


def test_must_fail_without_sweeps_values_stay_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_sweeps(monkeypatch)
    assert sum(map(bool, map(thin_out, SEEDS))) > 10


def test_must_fail_sweeps_that_know_the_first_gap_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes what some version sees is found."""

    def careless(walk: ObjectWalk, since: int, until: int) -> int | None:
        return 0 if walk._before and walk._before[0] < since and until <= walk._after[-1] else None

    monkeypatch.setattr(ObjectWalk, "_gap_with", careless)
    with pytest.raises(AssertionError):
        list(map(thin_out, SEEDS))


# --- what happens between two steps ---------------------------------------------------------------


def nodes_end_before_their_sweeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """All nodes crash when they have removed versions of a file, and are about to sweep."""
    sweep = ObjectWalk._sweep

    def disturb(world: World) -> None:
        waiting: set[int] = set()

        def wait(walk: ObjectWalk, _view: Any) -> list[Write]:
            waiting.add(id(walk))
            return []

        monkeypatch.setattr(ObjectWalk, "_sweep", wait)
        world.run_until(lambda: len(waiting) == world.sizes.n, within_us=4 * WINDOW_US)
        for node in world.nodes:
            node.crash(down_us=None)
        monkeypatch.setattr(ObjectWalk, "_sweep", sweep)
        for node in world.nodes:
            node.start()

    return disturb


def test_a_sweep_that_a_crash_prevented_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_of_a_snapshot(nodes_end_before_their_sweeps(monkeypatch)) == {(1, 0)}


def test_must_fail_where_a_sweep_is_due_in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = nodes_end_before_their_sweeps(monkeypatch)

    def crash_and_forget(world: World) -> None:
        crash(world)
        for node in world.nodes:
            for key, _ in tuple(node.disk.scan(Table.OBJECT, b"", _END)):
                forget_sweep(node.disk, ObjectId(bytes(key)))

    assert left_of_a_snapshot(crash_and_forget) == {(2, 2)}


def forget_sweep(disk: Disk, name: ObjectId) -> None:
    row = msgspec.structs.replace(Replica(disk, name).row, unswept_us=0)
    disk.apply([Write(Table.OBJECT, name, encode(row))])


class Thinning:
    """Passes over a file that was changed in many ways, with something between their steps."""

    def __init__(self, seed: int) -> None:
        draw = Random(seed)
        self.tables, self.name = busy_file()
        self.disk = Disk()
        self.disk.put_back(self.tables)
        self.disk.apply(establish(self.name, Replica(self.disk, self.name).head, self.disk, 0))
        self.full = states(self.disk, self.name)
        self.chain = [link_of(each, self._version(each)) for each in self.full]
        times = [time_of(timestamp) for timestamp in self.full]
        self.horizon_us = times[-2]
        self.kept_us = frozenset(draw.sample(times[2:-6], 2))
        self.steps = 0

    def _version(self, timestamp: LogicalTimestamp) -> Any:
        return Replica(self.disk, self.name).version(timestamp)

    def one_pass(
        self,
        kept_us: Iterable[int] = (),
        *,
        disturb: Callable[[list[Write]], bool] = lambda _: True,
        at: int = -1,
    ) -> None:
        """In place of what step `at` writes, `disturb` happens; if it returns False, the pass
        ends."""
        row = Replica(self.disk, self.name).row
        row = msgspec.structs.replace(row, collected_us=self.horizon_us)
        self.disk.apply([Write(Table.OBJECT, self.name, encode(row))])

        def keeps(since_us: int, until_us: int | None) -> bool:
            return until_us is None or until_us > self.horizon_us or since_us in kept_us

        walk = ObjectWalk(self.name, keeps, horizon_us=self.horizon_us)
        self.steps = 0
        while not walk.done:
            writes = walk.step(self.disk)
            if self.steps != at:
                self.disk.apply(writes)
            elif not disturb(writes):
                return
            self.steps += 1

    def crash(self, writes: list[Write]) -> bool:
        self.disk.apply(writes)
        return False

    def lose(self, _writes: list[Write]) -> bool:
        """The disk is full: the batch is lost, and the walk goes on."""
        return True

    def rebuild(self, writes: list[Write]) -> bool:
        """The object is made anew from peers that have all of its past."""
        return self._rebuilt(writes, 0)

    def rebuild_latest(self, writes: list[Write]) -> bool:
        """The object is made anew from peers that have some of its past: numbers are less."""
        return self._rebuilt(writes, 3)

    def _rebuilt(self, writes: list[Write], missing: int) -> bool:
        self.disk.apply(writes)
        links = self.chain[missing:]
        base = self.chain[missing - 1].timestamp if missing else ZERO
        made = Disk()
        if missing:
            replica = Replica(made, self.name)
            replica.install(base, iter(self.full[base]))
            stand_at(made, replica, base)
        for link in links:
            learn(made, self.name, link)
        past = Past(tuple(reversed(links)), base, ())
        row = Replica(self.disk, self.name).row
        self.disk.apply(replacement(self.disk, row, self.name, past, made))
        return True

    def check(self) -> None:
        """What is there shows what it did."""
        after = states(self.disk, self.name)
        assert all(self.full[timestamp] == state for timestamp, state in after.items())


def learn(disk: Disk, name: ObjectId, link: Link) -> None:
    replica = Replica(disk, name)
    replica.learn((link,))
    assert replica.reach(link.timestamp) is Reach.KNOWN
    replica.move_to(link.timestamp)
    stand_at(disk, replica, link.timestamp)


def stand_at(disk: Disk, replica: Replica, version: LogicalTimestamp) -> None:
    replica.report(history_of((Candidate(version, ZERO),), initial=False), b"", established=version)
    disk.apply(replica.writes)


def disturbed(seed: int, how: str, at: int, *, forgets: bool = False) -> int | None:
    """What no version sees after a disturbed pass and a whole one; None if it had ended before."""
    thinning = Thinning(seed)
    thinning.one_pass(thinning.kept_us)
    thinning.one_pass(disturb=getattr(thinning, how), at=at)
    if thinning.steps < at:
        return None
    thinning.check()
    if forgets:
        forget_sweep(thinning.disk, thinning.name)
    thinning.one_pass()
    thinning.check()
    return unseen(thinning.disk, thinning.name)


def disturbed_at_every_step(how: str, *, forgets: bool = False) -> int:
    left = 0
    for seed in range(3):
        at = 0
        while (found := disturbed(seed, how, at, forgets=forgets)) is not None:
            left += found
            at += 1
        assert at > 3, "steps of both kinds"
    return left


@pytest.mark.parametrize("how", ["crash", "lose", "rebuild", "rebuild_latest"])
@pytest.mark.parametrize("rows_in_step", [1, 7])
def test_whatever_happens_at_any_step_nothing_is_lost_and_nothing_stays(
    rows_in_step: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bftfs.limits.COLLECT_ROWS", rows_in_step)
    assert disturbed_at_every_step(how) == 0


def test_must_fail_where_a_crash_at_a_step_forgets_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bftfs.limits.COLLECT_ROWS", 7)
    assert disturbed_at_every_step("crash", forgets=True)


@pytest.mark.parametrize("how", ["lose", "rebuild", "rebuild_latest"])
def test_must_fail_walks_that_rely_on_their_memory(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take values that versions see which are there again, or still."""
    monkeypatch.setattr("bftfs.limits.COLLECT_ROWS", 7)
    monkeypatch.setattr(object_collection, "_is_gap", lambda *_: True)
    with pytest.raises(AssertionError):
        disturbed_at_every_step(how)
