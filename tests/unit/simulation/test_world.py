"""Virtual time, the network and the disk do what they are told, and replay."""

from __future__ import annotations

from typing import Any

from bftfs.envelope import REQUESTS, HealthRequest
from bftfs.simulation.disk import Disk
from bftfs.simulation.network import Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.world import World
from bftfs.storage import Table, Write


def test_events_happen_in_order_of_time_and_scheduling() -> None:
    world = World(1)
    happened: list[str] = []
    world.after(20, happened.append, "later")
    world.after(10, happened.append, "first")
    world.after(10, happened.append, "second")
    assert world.run(until=lambda: len(happened) == 3, most_events=10)
    assert happened == ["first", "second", "later"]
    assert world.now_us == 20


def test_a_run_ends_when_nothing_is_left_or_too_much() -> None:
    world = World(1)
    assert not world.run(until=lambda: False, most_events=10)

    def for_ever() -> None:
        world.after(1, for_ever)

    for_ever()
    assert not world.run(until=lambda: False, most_events=100)
    assert world.events == 100


class _Endpoints:
    """Two endpoints on a network, and what has arrived where."""

    def __init__(self, faults: NetworkFaults, seed: int = 1) -> None:
        self.world = World(seed)
        self.network = SimulatedNetwork(self.world, faults)
        self.arrived: list[tuple[str, Any]] = []
        for name in ("a", "b"):
            self.network.attach(name, self._receiver(name))

    def _receiver(self, name: str) -> Any:
        def receive(source: Any, kind: Kind, number: int, metadata: bytes, body: bytes) -> None:
            assert source in ("a", "b")
            assert kind is Kind.REQUEST
            assert REQUESTS.decode(metadata) == HealthRequest()
            self.arrived.append((name, number))

        return receive

    def send(self, count: int, source: str = "a", target: str = "b") -> None:
        for number in range(count):
            self.network.send(source, target, Kind.REQUEST, number, HealthRequest())
        self.world.run(until=lambda: False, most_events=10 * count)


def test_a_good_network_delivers_everything_once() -> None:
    ends = _Endpoints(NetworkFaults(delay_us=(5, 5)))
    ends.send(10)
    assert ends.arrived == [("b", number) for number in range(10)]


def test_a_bad_network_loses_repeats_and_reorders() -> None:
    ends = _Endpoints(NetworkFaults(loss=0.2, duplication=0.2, delay_us=(1, 1000)))
    ends.send(500)
    numbers = [number for _, number in ends.arrived]
    assert set(numbers) != set(range(500))
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)
    traffic = ends.network.traffic
    assert traffic.sent + traffic.duplicated == traffic.delivered + traffic.lost


def test_a_partition_cuts_both_ways_and_a_severed_way_one() -> None:
    ends = _Endpoints(NetworkFaults())
    ends.network.partition({"a": 1})
    ends.send(3)
    ends.send(3, "b", "a")
    assert ends.arrived == []
    ends.network.heal()
    ends.network.sever("a", "b")
    ends.send(3)
    ends.send(1, "b", "a")
    assert ends.arrived == [("a", 0)]
    assert ends.network.traffic.cut == 9


def test_the_same_seed_gives_the_same_network() -> None:
    def arrivals(seed: int) -> list[tuple[str, Any]]:
        ends = _Endpoints(NetworkFaults(loss=0.1, delay_us=(1, 1000)), seed)
        ends.send(200)
        return ends.arrived

    assert arrivals(7) == arrivals(7)
    assert arrivals(7) != arrivals(8)


def test_a_crash_loses_what_was_not_committed_and_nothing_else() -> None:
    disk = Disk()
    disk.apply([Write(Table.META, b"kept", b"1"), Write(Table.META, b"changed", b"1")])
    disk.commit()
    disk.apply(
        [
            Write(Table.META, b"changed", b"2"),
            Write(Table.META, b"changed", b"3"),
            Write(Table.META, b"kept", None),
            Write(Table.META, b"new", b"1"),
        ]
    )
    assert disk.get(Table.META, b"changed") == b"3"
    assert len(disk.uncommitted()) == 4
    disk.crash()
    assert disk.get(Table.META, b"kept") == b"1"
    assert disk.get(Table.META, b"changed") == b"1"
    assert disk.get(Table.META, b"new") is None
    assert disk.uncommitted() == ()
