"""The wire does to packets what it is told, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.chaos.wire import CUT, FREE, Way, Wire


@pytest.fixture
def ends() -> Iterator[list[socket.socket]]:
    """Three machines' ends of the wire, as datagram sockets."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    yield [ours for ours, _ in pairs] + [theirs for _, theirs in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def packet(source: int, target: int, number: int) -> bytes:
    header = bytearray(20)
    header[0] = 0x45
    header[12:16] = bytes((10, 78, 0, source + 1))
    header[16:20] = bytes((10, 78, 0, target + 1))
    return bytes(header) + number.to_bytes(2, "big")


class World:
    def __init__(self, ends: list[socket.socket]) -> None:
        self.machines, devices = ends[:3], ends[3:]
        self.devices = [device.fileno() for device in devices]
        self.wire = Wire(self.devices, seed=1)

    def send(self, source: int, target: int, count: int) -> list[int]:
        """The numbers of the packets that arrive, of so many that are sent."""
        for number in range(count):
            self.machines[source].send(packet(source, target, number))
            self.wire.forward(self.devices[source])
        while self.wire.deliver_due() is not None:
            pass
        arrived = []
        while True:
            try:
                arrived.append(int.from_bytes(self.machines[target].recv(100)[20:], "big"))
            except BlockingIOError:
                return arrived


@pytest.fixture
def world(ends: list[socket.socket]) -> World:
    return World(ends)


def test_packets_go_where_they_are_sent_in_order(world: World) -> None:
    assert world.send(0, 2, 20) == list(range(20))
    assert world.send(2, 1, 3) == [0, 1, 2]


def test_a_way_is_cut_in_one_direction_and_mended(world: World) -> None:
    world.wire.change(0, 1, CUT)
    assert world.send(0, 1, 5) == []
    assert world.send(1, 0, 5) == [0, 1, 2, 3, 4]
    assert world.send(0, 2, 1) == [0]
    world.wire.change(0, 1, FREE)
    assert world.send(0, 1, 1) == [0]


def test_packets_are_lost_doubled_and_overtaken(world: World) -> None:
    world.wire.change(0, 1, Way(loss=0.3, jitter_ms=20, duplicates=0.3))
    arrived = world.send(0, 1, 100)
    assert 40 < len(set(arrived)) < 95
    assert len(arrived) > len(set(arrived))
    assert arrived != sorted(arrived)


def test_what_is_no_packet_of_ours_is_dropped(world: World) -> None:
    world.machines[0].send(b"\x60" + bytes(39))
    world.machines[0].send(packet(0, 99, 1))
    world.wire.forward(world.devices[0])
    for machine in world.machines:
        with pytest.raises(BlockingIOError):
            machine.recv(100)


def test_a_throttled_way_takes_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("tests.chaos.wire.time.monotonic", lambda: float(next(clock)))
    world.wire.change(0, 1, Way(bytes_per_s=22.0))  # a packet each second
    assert world.send(0, 1, 5) == [0, 1, 2, 3, 4]
