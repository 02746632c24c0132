"""The storm: everything benign that goes wrong for a while, drawn from the world.

Messages are lost, repeated and delayed; partitions come and heal; nodes crash at random moments and
around commits, and come back with their disks; but a few lose them, and have to heal. When the
storm ends the network is good again and
all nodes are up, except those that are to stay down. Byzantine nodes are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bftfs.identifiers import NodeId
from bftfs.simulation.deployment import Deployment
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.principals import DiskFaults


@dataclass(frozen=True, slots=True)
class StormFaults:
    """How badly it storms. Times are mean intervals in microseconds; 0: never."""

    network: NetworkFaults = field(default_factory=NetworkFaults)
    disk: DiskFaults = field(default_factory=DiskFaults)
    crash_every_us: int = 0
    down_us: tuple[int, int] = (1_000, 3_000_000)
    partition_every_us: int = 0
    sever_every_us: int = 0  # a single way between two endpoints
    cut_us: tuple[int, int] = (1_000, 2_000_000)
    lose_every_us: int = 0  # the disk of one of the losers, all of whom count as faulty
    losers: tuple[NodeId, ...] = ()
    distances_us: tuple[int, ...] = ()  # of the nodes: how much longer all their ways are
    longest_us: int = 120_000_000  # it is over then at the latest


@dataclass(slots=True)
class Weather:
    """What the storm has done so far."""

    partitions: int = 0
    severed: int = 0
    lost_disks: int = 0


@dataclass(slots=True)
class Storm:
    """One storm over one deployment."""

    deployment: Deployment
    faults: StormFaults
    weather: Weather = field(default_factory=Weather)
    _over: bool = False

    def begin(self) -> None:
        """Let it begin."""
        faults = self.faults
        self.deployment.network.faults = faults.network
        self.deployment.network.distances_us = {
            node.endpoint: distance_us
            for node, distance_us in zip(self.deployment.nodes, faults.distances_us, strict=False)
        }
        for node in self.deployment.nodes:
            node.faults = faults.disk
        self._every(faults.crash_every_us, self._crash)
        self._every(faults.partition_every_us, self._partition)
        self._every(faults.sever_every_us, self._sever)
        if faults.losers:
            self._every(faults.lose_every_us, self._lose)

    def end(self, *, stay_down: Iterable[NodeId] = ()) -> None:
        """Let it end: a good network, and every node up but `stay_down`."""
        self._over = True
        self.deployment.network.faults = NetworkFaults()
        self.deployment.network.distances_us = {}
        self.deployment.network.heal()
        for node in self.deployment.nodes:
            node.faults = DiskFaults()
        self.only_down(stay_down)

    def only_down(self, down: Iterable[NodeId]) -> None:
        """Have exactly these nodes down."""
        chosen = frozenset(down)
        for node in self.deployment.nodes:
            if node.node in chosen:
                node.crash(down_us=None)
            else:
                node.start()

    def _every(self, mean_us: int, action: Callable[[], None]) -> None:
        if mean_us:
            world = self.deployment.world
            world.after(world.between(0, 2 * mean_us), self._do, mean_us, action)

    def _do(self, mean_us: int, action: Callable[[], None]) -> None:
        if not self._over:
            action()
            self._every(mean_us, action)

    def _crash(self) -> None:
        world = self.deployment.world
        node = world.random.choice(self.deployment.nodes)
        node.crash(down_us=world.between(*self.faults.down_us))

    def _partition(self) -> None:
        world, network = self.deployment.world, self.deployment.network
        self.weather.partitions += 1
        network.partition({endpoint: world.draw(2) for endpoint in self.deployment.endpoints})
        world.after(world.between(*self.faults.cut_us), self._heal)

    def _sever(self) -> None:
        world, endpoints = self.deployment.world, self.deployment.endpoints
        self.weather.severed += 1
        self.deployment.network.sever(
            world.random.choice(endpoints), world.random.choice(endpoints)
        )
        world.after(world.between(*self.faults.cut_us), self._heal)

    def _lose(self) -> None:
        self.weather.lost_disks += 1
        self.deployment.lose_disk(self.deployment.world.random.choice(self.faults.losers))

    def _heal(self) -> None:
        self.deployment.network.heal()
