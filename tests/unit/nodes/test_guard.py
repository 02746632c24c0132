"""A server as its node offers it: outlives bugs, stops at contradictions, obeys the disk."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.asking.refusal import Refused
from bftfs.errors import DamagedRow
from bftfs.identifiers import ClientId, ObjectId
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Role, Sender
from bftfs.storage import MemoryStorage, Table, Write
from nodes.guard import FullDiskGate, Guard
from nodes.health import Health
from nodes.metrics import Tally
from nodes.store_errors import MapFull, StoreFailed, StoreFull

SENDER = Sender(Role.CLIENT, ClientId(bytes(16)))


class Scripted:
    """Does in each step what the message is."""

    def step(self, view: Any, sender: Any, message: Any, body: Any, now_us: int) -> Ready:
        if isinstance(message, Exception):
            raise message
        return message


def guarded() -> tuple[Guard, FullDiskGate, list[tuple[Any, Exception]]]:
    switch = FullDiskGate()
    reported: list[tuple[Any, Exception]] = []
    guard = Guard(Scripted(), switch, lambda message, error: reported.append((message, error)))
    return guard, switch, reported


def step(guard: Guard, message: Any) -> Ready:
    return guard.step(MemoryStorage(), SENDER, message, b"", 0)


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
    guard, switch, _ = guarded()
    reading = Ready("value")
    writing = Ready("done", writes=[Write(Table.STATE, b"k", b"v")])
    switch.refuse(errno.ENOSPC, "the disk is full", left=1 << 20)
    assert step(guard, reading) is reading
    refused = step(guard, writing)
    assert refused.reply == Refused(errno.ENOSPC, "the disk is full")
    assert refused.writes == []
    switch.serve()
    assert step(guard, writing) is writing


def test_what_is_owed_is_written_while_there_is_a_reserve() -> None:
    guard, switch, _ = guarded()
    owed = Ready("done", writes=[Write(Table.STATE, b"k", b"v")], uses_reserve=True)
    switch.refuse(errno.ENOSPC, "the disk is full", left=1 << 20)
    assert step(guard, owed) is owed
    switch.refuse(errno.ENOSPC, "the disk is full", left=0)
    assert step(guard, owed).reply == Refused(errno.ENOSPC, "the disk is full")


def test_nobody_gets_all_of_a_reserve_and_not_all_together() -> None:
    guard, switch, _ = guarded()
    owed = Ready("done", writes=[Write(Table.STATE, b"k", b"v" * 1000)], uses_reserve=True)
    switch.refuse(errno.ENOSPC, "the disk is full", left=1 << 20)

    def draws(client: int) -> int:
        """How often it gets something, until it gets no more."""
        sender = Sender(Role.CLIENT, ClientId(bytes((client,)) * 16))
        times = 0
        while guard.step(MemoryStorage(), sender, None, b"", 0) is owed:
            times += 1
            assert times < 10_000
        return times

    guard._step = lambda *_: owed  # type: ignore[assignment]
    had = [draws(client) for client in range(8)]
    assert had == sorted(had, reverse=True)
    assert 200 < had[0] < 300  # of 834
    assert all(had)
    switch.serve()
    switch.refuse(errno.ENOSPC, "the disk is full", left=1 << 20)
    assert draws(0) == had[0]


def test_a_full_disk_is_told_of_until_there_is_room() -> None:
    space = SimpleNamespace(used_bytes=1, free_bytes=0)
    links = SimpleNamespace(unreachable=tuple)
    switch = FullDiskGate()
    health = Health(
        space=space,  # type: ignore[arg-type]
        links=links,  # type: ignore[arg-type]
        switch=switch,
        tally=Tally(),
        recovery=Recovery(),
        gauges=tuple,
    )
    assert health.reply().healthy
    switch.refuse(errno.ENOSPC, "the disk is full", left=0)
    assert not health.reply().healthy
    assert health.reply().reasons == ("writes are refused: the disk is full",)
    switch.serve()
    assert health.reply().healthy
