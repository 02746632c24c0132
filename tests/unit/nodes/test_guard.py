"""A server as its node offers it: outlives bugs, stops at contradictions, obeys the disk."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.asking.refusal import Refused
from bftfs.errors import DamagedRow
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.messages import Update
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.room import Figures, Room
from bftfs.server.step import Ready, Role, Sender
from bftfs.storage import MemoryStorage, Table, Write
from nodes.metrics import Health, LoopTally
from nodes.node import Guard
from nodes.store_directory import MapFull, StoreFailed, StoreFull

SENDER = Sender(Role.CLIENT, ClientId(bytes(16)))


class Scripted:
    """Does in each step what the message is."""

    def step(self, view: Any, sender: Any, message: Any, body: Any, now_us: int) -> Ready:
        if isinstance(message, Exception):
            raise message
        return message


def guarded() -> tuple[Guard, Room, list[tuple[Any, Exception]]]:
    room = Room()
    reported: list[tuple[Any, Exception]] = []
    guard = Guard(Scripted(), room, lambda message, error: reported.append((message, error)))
    return guard, room, reported


def figures(free_bytes: int = 0, *, left: int = 0) -> Figures:
    return Figures(0, free_bytes, 1 << 20, left)


def step(guard: Guard, message: Any) -> Ready:
    return guard.step(MemoryStorage(), SENDER, message, b"", 0)


def test_the_administrators_key_does_no_clients_work() -> None:
    guard, _, _ = guarded()
    administrator = Sender(Role.ADMINISTRATOR, ClientId(bytes(16)))
    refusal = guard.step(MemoryStorage(), administrator, Ready("fine"), b"", 0).reply
    assert isinstance(refusal, Refused)
    assert refusal.code == errno.EACCES


def test_a_bug_costs_one_request_and_is_reported() -> None:
    guard, _, reported = guarded()
    bug = KeyError("what is not there")
    refusal = step(guard, bug).reply
    assert isinstance(refusal, Refused)
    assert refusal.code == errno.EIO
    assert reported == [(bug, bug)]
    answer = Ready("fine")
    assert step(guard, answer) is answer


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("impossible"),
        StoreFailed(Path("store"), "gone"),
        StoreFull(Path("store"), "full"),
        MapFull(),
        DamagedRow(ObjectId(bytes(16)), "rotten"),  # has it mended
    ],
)
def test_what_concerns_the_node_reaches_it(error: Exception) -> None:
    guard, _, reported = guarded()
    with pytest.raises(type(error)):
        step(guard, error)
    assert reported == []


def test_while_writes_are_refused_reads_are_served() -> None:
    guard, room, _ = guarded()
    reading = Ready("value")
    writing = Ready("done", writes=[Write(Table.STATE, b"k", b"v")])
    room.disk_is_full("the disk is full", figures(left=1 << 20))
    assert step(guard, reading) is reading
    refused = step(guard, writing)
    assert refused.reply == Refused(errno.ENOSPC, "the disk is full")
    assert refused.writes == []
    room.look_again(figures(1 << 20))
    assert step(guard, writing) is writing


def test_what_uses_the_reserve_is_written_while_it_lasts() -> None:
    guard, room, _ = guarded()
    repair = Ready("done", writes=[Write(Table.STATE, b"k", b"v")], uses_reserve=True)
    room.disk_is_full("the disk is full", figures(left=1 << 20))
    assert step(guard, repair) is repair
    room.disk_is_full("the disk is full", figures(left=0))
    assert step(guard, repair).reply == Refused(errno.ENOSPC, "the disk is full")


def test_updates_of_objects_are_refused_while_the_pool_is_full() -> None:
    room = Room(pool_bytes=1_000)
    room.attach(lambda: Figures(1_000, 0, 1 << 20, 0))
    ready = Ready("done", writes=[Write(Table.STATE, b"k", b"v")])
    server = SimpleNamespace(step=lambda *_: ready)
    guard = Guard(server, room, lambda *_: None)  # type: ignore[arg-type]
    other, update = object(), Update(b"", (), (), NodeId(0))
    assert step(guard, other) is ready
    refusal = step(guard, update).reply
    assert isinstance(refusal, Refused)
    assert refusal.code == errno.ENOSPC


def test_a_full_disk_is_told_of_until_there_is_room() -> None:
    links = SimpleNamespace(unreachable=tuple)
    latest = SimpleNamespace(serial=0, digest=bytes(32), let_go=())
    membership = SimpleNamespace(
        latest=latest,
        others=SimpleNamespace(digests=()),
        outdated="",
        unused="",
        contradicted="",
        narrowed="",
        unstored="",
        is_partial=False,
    )
    room = Room()
    health = Health(
        disk_bytes=lambda: 1,
        links=links,  # type: ignore[arg-type]
        room=room,
        tally=LoopTally(),
        recovery=Recovery(),
        membership=membership,  # type: ignore[arg-type]
        own_clock=OwnClock(1),
        gauges=tuple,
        ahead=tuple,
    )
    assert health.reply().healthy
    room.disk_is_full("the disk is full", figures(left=0))
    assert not health.reply().healthy
    assert health.reply().reasons == ("writes are refused: the disk is full",)
    room.look_again(figures(1 << 20))
    assert health.reply().healthy
