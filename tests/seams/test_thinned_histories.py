"""What was kept for a while goes as if it had gone with the others: values and blocks, too.

A snapshot is deleted, or a policy thins out what it has kept: then versions go whose successors
have gone long before.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import msgspec
import pytest

from bftfs.filesystem.file_history import History
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.past_state import state_at
from bftfs.query_update.replica import NUMBER_BYTES, Replica
from bftfs.server.object_collection import ObjectWalk, establish
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.disk import Disk, Tables
from bftfs.simulation.world import SECOND_US
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import encode
from tests.seams.world import BLOCK_BYTES, VOLUME, World

WINDOW_US = 600 * SECOND_US
_END = b"\xff" * 99


def rows(view: StorageView, table: Table, name: ObjectId) -> int:
    return len(list(view.keys(table, name, name + _END)))


def left_of_a_snapshot() -> set[tuple[int, int]]:
    """The versions of blocks and the overwritten values that nodes have of a file with one block,
    when a snapshot of it was deleted, of which several changes came after."""
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
    """How many overwritten values no version sees."""
    replica = Replica(disk, name)
    versions = [replica.version(timestamp) for timestamp in states(disk, name)]
    numbers = [version.number for version in versions if version is not None]
    spans = [
        (int.from_bytes(row[:NUMBER_BYTES], "big"), int.from_bytes(key[-NUMBER_BYTES:], "big"))
        for key, row in disk.scan(Table.PAST, name, name + _END)
    ]
    return sum(not any(since <= each < until for each in numbers) for since, until in spans)


def thin_out(seed: int) -> int:
    """Versions go in several passes; those that stay show what they did. Returns what is unseen."""
    draw = Random(seed)
    tables, name = busy_file()
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


def test_must_fail_without_sweeps_values_stay_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_sweeps(monkeypatch)
    assert sum(map(bool, map(thin_out, SEEDS))) > 10


def test_must_fail_sweeps_that_know_the_first_gap_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes what some version sees is found."""

    def careless(walk: ObjectWalk, since: int, until: int) -> bool:
        return bool(walk._before) and walk._before[0] < since and until <= walk._after[-1]

    monkeypatch.setattr(ObjectWalk, "_is_unseen", careless)
    with pytest.raises(AssertionError):
        list(map(thin_out, SEEDS))
