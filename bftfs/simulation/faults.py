"""The faults that are not Byzantine: what goes wrong in the faulty phase, drawn from the world.

Messages are lost, repeated and delayed; partitions come and heal; all clocks jump, and back; nodes
crash at random moments and around commits, and come back with their disks; a few lose their disks,
or their folders are put back from older copies, and have to heal. Afterwards the network is good
and all nodes are up, except those that are to stay down. Byzantine nodes and clients are in
`byzantine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bftfs.identifiers import NodeId
from bftfs.simulation.deployment import Deployment
from bftfs.simulation.disk import Disk, Tables
from bftfs.simulation.network import Endpoint, NetworkFaults
from bftfs.simulation.principals import DiskFaults

_COPIES_KEPT = 3


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which faults happen, and how often. Times are mean intervals in microseconds; 0: never."""

    network: NetworkFaults = field(default_factory=NetworkFaults)
    disk: DiskFaults = field(default_factory=DiskFaults)
    crash_every_us: int = 0
    down_us: tuple[int, int] = (1_000, 3_000_000)
    partition_every_us: int = 0
    sever_every_us: int = 0  # a single way between two endpoints
    cut_us: tuple[int, int] = (1_000, 2_000_000)
    lose_every_us: int = 0  # the disk of one of the losers, all of whom count as faulty
    losers: tuple[NodeId, ...] = ()
    copies: bool = False  # now and then a loser's folder is put back instead, as it was once
    jump_every_us: int = 0  # all clocks jump ahead together, and back…
    jumps_us: tuple[int, ...] = ()  # …by one of these
    jumped_us: tuple[int, int] = (0, 0)  # …for so long
    distances_us: tuple[int, ...] = ()  # of the nodes: how much longer all their ways are
    longest_us: int = 120_000_000  # the faulty phase ends then at the latest
    # One Byzantine client after the other is revoked. Nodes hear of it one by one, and are offered
    # older descriptions all the time.
    revoke_every_us: int = 0
    hear_us: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class FaultCounts:
    """The number of faults so far."""

    partitions: int = 0
    severed: int = 0
    lost_disks: int = 0
    folders: int = 0  # that were put back
    jumps: int = 0
    revoked: int = 0  # clients


@dataclass(slots=True)
class FaultInjector:
    """Makes the faults of one plan happen to one deployment."""

    deployment: Deployment
    plan: FaultPlan
    counts: FaultCounts = field(default_factory=FaultCounts)
    _copies: dict[NodeId, list[Tables]] = field(default_factory=dict)  # of folders
    # Byzantine clients, with their names:
    revocable: list[tuple[Endpoint, str]] = field(default_factory=list)
    on_cut_off: Callable[[str], None] | None = None  # all nodes have heard that it is revoked
    _over: bool = False
    _ahead_us: int = 0  # by which all clocks are ahead

    def begin(self) -> None:
        """Start the faults."""
        plan = self.plan
        self.deployment.network.faults = plan.network
        self.deployment.network.distances_us = {
            node.endpoint: distance_us
            for node, distance_us in zip(self.deployment.nodes, plan.distances_us, strict=False)
        }
        for node in self.deployment.nodes:
            node.faults = plan.disk
        self._every(plan.crash_every_us, self._crash)
        self._every(plan.partition_every_us, self._partition)
        self._every(plan.sever_every_us, self._sever)
        self._every(plan.jump_every_us, self._jump)
        self._every(plan.revoke_every_us, self._revoke)
        if plan.losers:
            self._every(plan.lose_every_us, self._lose)
        if plan.copies:
            self._copies = {loser: [Disk().copy()] for loser in plan.losers}  # as they were made
            self._every(plan.lose_every_us, self._copy)

    def end(self, *, stay_down: Iterable[NodeId] = ()) -> None:
        """Stop them: a good network, and every node up but `stay_down`."""
        self._over = True
        self._jump_back()
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
        node.crash(down_us=world.between(*self.plan.down_us))

    def _partition(self) -> None:
        world, network = self.deployment.world, self.deployment.network
        self.counts.partitions += 1
        network.partition({endpoint: world.draw(2) for endpoint in self.deployment.endpoints})
        world.after(world.between(*self.plan.cut_us), self._heal)

    def _sever(self) -> None:
        world, endpoints = self.deployment.world, self.deployment.endpoints
        self.counts.severed += 1
        self.deployment.network.sever(
            world.random.choice(endpoints), world.random.choice(endpoints)
        )
        world.after(world.between(*self.plan.cut_us), self._heal)

    def _lose(self) -> None:
        random = self.deployment.world.random
        loser = random.choice(self.plan.losers)
        if self.plan.copies and random.random() < 0.5:
            self.counts.folders += 1
            self.deployment.put_back(loser, random.choice(self._copies[loser]))
        else:
            self.counts.lost_disks += 1
            self.deployment.lose_disk(loser)

    def _copy(self) -> None:
        """Make a copy of a loser's folder, and keep the latest few."""
        loser = self.deployment.world.random.choice(self.plan.losers)
        copies = self._copies[loser]
        copies.append(self.deployment.nodes[loser].disk.copy())
        del copies[1:-_COPIES_KEPT]

    def _revoke(self) -> None:
        """The administrator revokes a client; somebody brings each node an older description."""
        world, descriptions = self.deployment.world, self.deployment.descriptions
        for node in self.deployment.nodes:
            descriptions.offer(node.node, world.draw(descriptions.latest + 1))
        if self.revocable:
            self.counts.revoked += 1
            client, name = self.revocable.pop()
            serial = descriptions.revoke(client, name)
            delays_us = [world.between(*self.plan.hear_us) for _ in self.deployment.nodes]
            for node, delay_us in zip(self.deployment.nodes, delays_us, strict=True):
                world.after(delay_us, descriptions.offer, node.node, serial)
            if self.on_cut_off is not None:
                world.after(max(delays_us), self.on_cut_off, name)

    def _jump(self) -> None:
        """All clocks jump ahead, of nodes and clients, unless they are ahead."""
        if not self._ahead_us:
            world = self.deployment.world
            self.counts.jumps += 1
            self._ahead_us = world.random.choice(self.plan.jumps_us)
            self.deployment.set_clocks(self._ahead_us)
            world.after(world.between(*self.plan.jumped_us), self._jump_back)

    def _jump_back(self) -> None:
        self.deployment.set_clocks(-self._ahead_us)
        self._ahead_us = 0

    def _heal(self) -> None:
        self.deployment.network.heal()
