"""Twins: two instances with one identity, and every schedule of who meets which of them.

A twin of a node has the same keys and a disk of its own, and is correct in itself; likewise a twin
of a client. Together they equivocate, forget, and do everything twice: whatever a Byzantine
principal can do that sends only what a correct one would send. Instead of drawing who meets which
instance, and which ways are cut, all schedules of few rounds are enumerated.

In each round every client begins an operation. Clients reach one instance of each twinned node, as
the round says, and correct nodes always the same; the ways between clients and nodes that the round
cuts carry nothing. Then all ways are open, and every operation must end. As long as at most b nodes
have a twin, nothing may be found. [Q/U §4.3.3 (4.3), (4.4); PASIS §3.4.4]

In some scenes a correct node loses its disk, once, and rebuilds its store while the others go on:
after each commit of a correct node from the beginning of the last round until its operations have
ended, repairs included. In the audit another node is down, so that what it has rebuilt is needed.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from random import Random
from typing import Any

from bftfs.identifiers import NodeId
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.checkers.candidates import CandidateRecord
from bftfs.simulation.deployment import Deployment, Sizes, twin_endpoint
from bftfs.simulation.network import Endpoint, Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.principals import SimulatedClient, node_endpoint
from bftfs.simulation.scenario import TYPES
from bftfs.simulation.workloads import ClientSession, CorrectNodes, Task, Workload
from bftfs.simulation.workloads.blocks import BlockMix, BlockWorkload
from bftfs.simulation.workloads.objects import ObjectMix, ObjectWorkload
from bftfs.simulation.world import SECOND_US, World

KINDS = ("objects", "blocks")

CLIENTS = 2
ROUND_US = 900  # four exchanges: what is cut short is left behind half done
DELAY_US = (100, 100)
QUIET_US = 300 * SECOND_US
MOST_EVENTS = 60_000
MOST_COMMITS = 200  # of a round

_SIZES = Sizes.smallest(t=1, b=1)
_OBJECTS = ObjectMix(counters=1, accounts=2, updates=0.9, ledger=0.4, several=0.7)
_BLOCKS = BlockMix(blocks=1, writes=0.6, past_reads=0.0, many=0.0, most_bytes=40)


class Cut(Enum):
    """Which ways between clients and nodes carry nothing."""

    NONE = "none"
    HALVES = "halves"  # each client is cut off from every other node, not from the same ones
    FEW = "few"  # the first client reaches three nodes only


@dataclass(frozen=True, slots=True)
class TwinRound:
    """Which instance of twinned nodes each client reaches, and what is cut."""

    sides: tuple[int, ...]  # by client
    cut: Cut


Schedule = tuple[TwinRound, ...]


def schedules(rounds: int, *, twins: bool = True) -> Iterator[Schedule]:
    """Every schedule of so many rounds, but for those that only swap the twins, if there are."""
    instances = (0, 1) if twins else (0,)
    each = [TwinRound(sides, cut) for sides in product(instances, repeat=CLIENTS) for cut in Cut]
    for schedule in product(each, repeat=rounds):
        if not schedule or schedule[0].sides[0] == 0:
            yield schedule


@dataclass(frozen=True, slots=True)
class Scene:
    """Which principals have twins, and what clients do."""

    kind: str = "objects"  # or "blocks"
    sizes: Sizes = _SIZES
    twinned_nodes: tuple[NodeId, ...] = ()
    twinned_client: bool = False  # the second client is the first one's twin
    loser: NodeId | None = None  # a correct node that loses its disk
    seed: int = 0


class _TwinNetwork(SimulatedNetwork):
    """A network in which requests to a twinned node reach the instance that the round says."""

    def __init__(self, world: World, twinned: Sequence[NodeId]) -> None:
        super().__init__(world, NetworkFaults(delay_us=DELAY_US))
        self._twinned = frozenset(map(node_endpoint, twinned))
        self.sides: dict[Endpoint, int] = {}

    def send(
        self, source: Endpoint, target: Endpoint, kind: Kind, *rest: Any, **named: Any
    ) -> None:
        if kind is Kind.REQUEST and target in self._twinned and self.sides.get(source):
            target = twin_endpoint(target)
        super().send(source, target, kind, *rest, **named)


class _Run:
    """One schedule of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.findings: list[str] = []
        self.world = World(scene.seed)
        self.network = _TwinNetwork(self.world, scene.twinned_nodes)
        self._record = CandidateRecord()
        self._correct = [
            NodeId(node) for node in range(scene.sizes.n) if node not in scene.twinned_nodes
        ]
        self.workload = _workload(scene)
        self.deployment = Deployment(
            self.world,
            self.network,
            scene.sizes,
            types=TYPES,
            commit_us=(20, 20),
            on_commit=self._committed,
            on_loss=self._forget,
            verification=None if scene.loser is None else VerificationSettings(),
        )
        self.twins = [self.deployment.twin_of_node(node) for node in scene.twinned_nodes]
        for node in self._correct:
            self.network.sides[node_endpoint(node)] = node & 1
        self.waiting: dict[int, Task] = {}
        self._begun = 0
        self._commits: int | None = None  # until the loser loses its disk
        self.is_lost = False

    def _committed(self, node: NodeId, writes: Any) -> None:
        if node in self._correct:
            self._record.take_down(node, writes)
            if writes and self._commits is not None:
                self._commits -= 1
                self._lose_when_due(node)

    def _forget(self, node: NodeId) -> None:
        established = self.scene.sizes.query_update.q - len(self.scene.twinned_nodes)
        self._record.forget(node, established=established)

    def _clients(self) -> list[SimulatedClient]:
        first = self.deployment.client("client 0")
        if self.scene.twinned_client:
            return [first, self.deployment.twin_of_client(first)]
        return [first, self.deployment.client("client 1")]

    def run(self, schedule: Schedule, commits: int | None = None) -> list[str]:
        """The findings of the checkers. The disk is lost after that commit of the last round."""
        administrator = self.deployment.client("administrator")
        self._perform(administrator, self.workload.session(administrator, "administrator").prepare)
        hosts = self._clients()
        sessions = [
            self.workload.session(host, f"client {number}") for number, host in enumerate(hosts)
        ]
        for left, each in zip(range(len(schedule) - 1, -1, -1), schedule, strict=True):
            if not left:
                self._commits = commits
                self._lose_when_due()
            self._round(each, hosts, sessions)
        self.network.heal()
        self._wait()
        self._commits = None
        if self.is_lost:
            self._await_healing()
        if not self.findings:
            auditor = self.deployment.client("auditor")
            self._perform(auditor, self.workload.session(auditor, "auditor").audit)
        return [
            *self.findings,
            *self.workload.findings(),
            *self.workload.findings_on_disks(
                CorrectNodes(
                    {node: self.deployment.nodes[node].disk for node in self._correct},
                    self._record,
                    len(self.scene.twinned_nodes),
                )
            ),
        ]

    def _round(
        self, each: TwinRound, hosts: Sequence[SimulatedClient], sessions: Sequence[ClientSession]
    ) -> None:
        self.network.heal()
        for number, (host, side) in enumerate(zip(hosts, each.sides, strict=True)):
            self.network.sides[host.endpoint] = side
            for node in self._cut(each.cut, number):
                self.network.sever(host.endpoint, node_endpoint(node))
                self.network.sever(node_endpoint(node), host.endpoint)
        for host, session in zip(hosts, sessions, strict=True):
            self._start(host, session.next_task())
        end_us = self.world.now_us + ROUND_US
        self.world.after(ROUND_US, lambda: None)
        self.world.run(until=lambda: self.world.now_us >= end_us, most_events=MOST_EVENTS)

    def _cut(self, cut: Cut, client: int) -> list[NodeId]:
        match cut:
            case Cut.NONE:
                return []
            case Cut.HALVES:
                return [node for node in self._correct if node % 2 == client % 2]
            case Cut.FEW:
                return self._correct[3:] if client == 0 else []

    def _lose_when_due(self, committing: NodeId | None = None) -> None:
        if self._commits == 0:
            self._commits = None
            if committing == self.scene.loser:
                self.world.after(0, self._lose)  # the commit is over by then
            else:
                self._lose()  # before others commit at the same moment

    def _lose(self) -> None:
        assert self.scene.loser is not None
        self.is_lost = True
        self.deployment.lose_disk(self.scene.loser)

    def _await_healing(self) -> None:
        """The loser must have rebuilt its store; then another correct node is down."""
        loser = self.scene.loser
        assert loser is not None
        deadline_us = self.world.now_us + QUIET_US

        def is_whole() -> bool:
            return not self.deployment.recoveries[loser].rebuilding

        self.world.run(
            until=lambda: is_whole() or self.world.now_us >= deadline_us,
            most_events=10 * MOST_EVENTS,
        )
        if not is_whole():
            self.findings.append(f"healing: node {loser} still rebuilds its store")
        other = next(node for node in reversed(self._correct) if node != loser)
        self.deployment.nodes[other].crash(down_us=None)

    # --- operations --------------------------------------------------------------------------

    def _start(self, host: SimulatedClient, task: Task) -> None:
        self._begun += 1
        number = self._begun
        self.waiting[number] = task

        def outcome(_result: Any, error: BaseException | None) -> None:
            del self.waiting[number]
            if error is not None:
                self.findings.append(f"progress: no result of {task.name}: {error!r}")

        host.start(task.conversation(), outcome)

    def _wait(self) -> None:
        deadline_us = self.world.now_us + QUIET_US
        self.world.run(
            until=lambda: not self.waiting or self.world.now_us >= deadline_us,
            most_events=MOST_EVENTS,
        )
        self.findings += [f"progress: {task.name} does not end" for task in self.waiting.values()]
        self.waiting.clear()

    def _perform(self, host: SimulatedClient, tasks: Any) -> None:
        for task in tasks():
            self._start(host, task)
            self._wait()


def _workload(scene: Scene) -> Workload:
    random = Random(f"twins {scene.seed}")
    if scene.kind == "objects":
        return ObjectWorkload(random, scene.sizes, TYPES, _OBJECTS)
    return BlockWorkload(random, scene.sizes, _BLOCKS)


SCENES = tuple(
    Scene(kind, twinned_nodes=nodes, twinned_client=client)
    for kind in KINDS
    for nodes, client in (((NodeId(1),), False), ((), True), ((NodeId(1),), True))
)


def run(scene: Scene, schedule: Schedule) -> list[str]:
    """The findings of the checkers in one schedule."""
    return _findings(_Run(scene), schedule)


def _findings(one: _Run, schedule: Schedule, commits: int | None = None) -> list[str]:
    try:
        return one.run(schedule, commits)
    except Exception:
        return ["the simulation broke off: " + traceback.format_exc()]


def enumerate_schedules(scene: Scene, rounds: int) -> Iterator[tuple[Schedule, list[str]]]:
    """Every schedule, and what is found in it."""
    for schedule in schedules(rounds):
        yield schedule, run(scene, schedule)


def enumerate_losses(scene: Scene, rounds: int) -> Iterator[tuple[Schedule, int, list[str]]]:
    """Every schedule, the disk lost after each commit of the last round; and what is found."""
    for schedule in schedules(rounds, twins=bool(scene.twinned_nodes)):
        for commits in range(MOST_COMMITS):
            one = _Run(scene)
            findings = _findings(one, schedule, commits)
            yield schedule, commits, findings
            if not one.is_lost:
                break
