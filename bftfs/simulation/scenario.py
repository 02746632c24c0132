"""One simulation: run a configuration, and judge what happened.

A run has three phases:

1. the faulty phase: clients work while messages, nodes and adversaries misbehave;
2. the quiet phase: benign faults stop, Byzantine nodes go on, every operation of a correct client
   must end, and nodes that have lost their disks must heal;
3. the audit: other nodes are down, up to t with the Byzantine ones, and a new client must find all
   that was ever acknowledged.

The same configuration gives the same run in any process; `Report.digest` shows it.
"""

from __future__ import annotations

import errno
import hashlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

from bftfs import limits
from bftfs.credentials import Grant
from bftfs.errors import AdmissionRefused, FateUnknown, NoLongerKept
from bftfs.filesystem.registry import file_system_types
from bftfs.identifiers import NodeId
from bftfs.query_update.counter import counter_types
from bftfs.read_write.messages import Notice
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.simulation.byzantine.initiative import Initiative, with_initiative
from bftfs.simulation.byzantine.positions import ClientPosition, NodePosition
from bftfs.simulation.byzantine.registry import CLIENTS, GRANTS, INITIATIVES, corrupted
from bftfs.simulation.checkers.accounts import AccountsRecord, check_accounts
from bftfs.simulation.checkers.barriers import BarriersRecord
from bftfs.simulation.checkers.bounds import (
    BoundsRecord,
    IncompleteRecord,
    PossibleVersionsRecord,
    VolumesRecord,
)
from bftfs.simulation.checkers.candidates import CandidateRecord
from bftfs.simulation.checkers.disks import check_redundancy, complete_at
from bftfs.simulation.checkers.retention import RetentionRecord
from bftfs.simulation.configuration import ClientPlan, Configuration
from bftfs.simulation.deployment import CollectionPlan, Deployment, client_named
from bftfs.simulation.faults import FaultCounts, FaultInjector
from bftfs.simulation.key_epochs import KeyEpochs
from bftfs.simulation.network import NetworkFaults, SimulatedNetwork, Traffic
from bftfs.simulation.principals import Servers, SimulatedClient
from bftfs.simulation.workloads import ClientSession, CorrectNodes, Task, Workload
from bftfs.simulation.workloads.blocks import BlockWorkload
from bftfs.simulation.workloads.files import FileWorkload
from bftfs.simulation.workloads.ledger import ledger_types
from bftfs.simulation.workloads.objects import ObjectWorkload
from bftfs.simulation.world import SECOND_US, START_US, World
from bftfs.storage import Write

TYPES = counter_types() | ledger_types() | file_system_types()
QUIET_US = 600 * SECOND_US  # no operation may take longer in the quiet phase
SETTLING_US = 10 * SECOND_US  # in which servers finish incomplete updates
EVENTS_PER_OPERATION = 20_000  # more is a livelock
# How many requests clients may make in the quiet phase until every operation has ended: nearly
# always it is a few dozen each, and some hundreds where clocks must catch up or much is repaired.
REQUESTS_WHEN_QUIET = 10_000
REQUESTS_PER_OPERATION = 1_000
# Besides, nodes finish the updates that clients left incomplete: some hundreds of requests each.
REQUESTS_OF_NODES = 50_000
_ADMINISTRATOR, _AUDITOR = "administrator", "auditor"
HEALS_PER_WINDOW = 4  # where nodes collect; real ones heal every ten minutes, and keep for days


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a run."""

    configuration: Configuration
    findings: tuple[str, ...]
    operations: int
    events: int
    traffic: Traffic
    fault_counts: FaultCounts
    node_crashes: int
    client_crashes: int
    virtual_us: int
    collected: int  # versions of objects and blocks that correct nodes have removed
    digest: str

    @property
    def passed(self) -> bool:
        """True if nothing was found."""
        return not self.findings


def run(configuration: Configuration) -> Report:
    """Let it happen, and judge it."""
    simulation = Simulation(configuration)
    try:
        simulation.run()
    except Exception:  # whatever it is, it replays with the seed
        simulation.findings.append("the simulation broke off: " + traceback.format_exc())
    return simulation.report()


class _Began(NamedTuple):
    """The moment at which an operation began."""

    clock_us: int  # of its client
    jumps: int  # of all clocks, ahead and back, so far


def _forgets(error: BaseException) -> bool:
    """True if an operation may end so because nodes have collected its versions meanwhile."""
    return isinstance(error, FateUnknown) or (
        isinstance(error, AdmissionRefused) and error.code == errno.ESTALE
    )


def _key_epochs(
    configuration: Configuration, correct: Sequence[NodeId], world: World
) -> KeyEpochs | None:
    if not configuration.files.epochs:
        return None
    clients = [f"client {number}" for number in range(len(configuration.clients))]
    return KeyEpochs(
        (_ADMINISTRATOR, *clients, *configuration.intruders, _AUDITOR),
        configuration.sizes.query_update,
        correct=correct,
        draw=Random(f"key epochs {configuration.seed}").randbytes,
        now=lambda: world.now_us,
    )


def _workload(configuration: Configuration, key_epochs: KeyEpochs | None) -> Workload:
    random, sizes = Random(f"workload {configuration.seed}"), configuration.sizes
    match configuration.kind:
        case "blocks":
            limit = configuration.client_bytes
            return BlockWorkload(random, sizes, configuration.blocks, client_bytes=limit)
        case "objects":
            collected = configuration.collection is not None
            objects = configuration.objects
            return ObjectWorkload(random, sizes, TYPES, objects, with_volume=collected)
        case "files":
            verification = configuration.verification
            most = None if verification is None else verification.client
            files = configuration.files
            return FileWorkload(random, sizes, TYPES, files, key_epochs, possible_versions=most)
        case unknown:
            raise ValueError(f"no workload is called {unknown}")


class _CorrectClient:
    """A correct client: it works on its share, and may crash and come back."""

    def __init__(self, simulation: Simulation, name: str, plan: ClientPlan) -> None:
        self._simulation = simulation
        self._plan = plan
        self.name = name
        self.crashes = 0
        self.pending: dict[int, tuple[Task, int]] = {}  # and since when
        self._host = simulation.deployment.client(name, skew_us=plan.skew_us)
        self._session: ClientSession = simulation.workload.session(self._host, name)
        self._life = 0

    def begin(self) -> None:
        """Go to work."""
        for _ in range(self._plan.width):
            self._next(self._life)
        self._crash_later()

    def _next(self, life: int) -> None:
        simulation = self._simulation
        if life == self._life and simulation.take_share():
            number = simulation.issued
            task = self._session.next_task()
            if not simulation.keeps(number):  # drawn nevertheless: so the others are the same
                simulation.ended += 1
                simulation.world.after(0, self._next, life)
                return
            self.pending[number] = task, simulation.world.now_us
            began = _Began(self._host.wall_clock_us(), simulation.deployment.jumps)
            ended = partial(self._ended, life, number, began)
            self._host.start(task.conversation(), ended)

    def _ended(
        self, life: int, number: int, began: _Began, _result: Any, error: BaseException | None
    ) -> None:
        simulation = self._simulation
        task, _ = self.pending.pop(number)
        simulation.ended += 1
        if error is not None and self._plan.sane and not simulation.may_end_so(task, began, error):
            simulation.findings.append(f"progress: {self.name} got no result: {error!r}")
        world = simulation.world
        pause_us = 0 if simulation.quiet else world.between(*self._plan.think_us)
        world.after(pause_us, self._next, life)

    def _crash_later(self) -> None:
        if self._plan.crash_every_us:
            world = self._simulation.world
            world.after(world.between(0, 2 * self._plan.crash_every_us), self._crash)

    def _crash(self) -> None:
        """Crash in mid-operation, and start anew with the same identity and no memory."""
        simulation = self._simulation
        if simulation.quiet:
            return
        self.crashes += 1
        self._life += 1
        self._host.crash()
        simulation.ended += len(self.pending)
        self.pending.clear()
        self._session = simulation.workload.session(self._host, self.name)
        self.begin()


class _ByzantineClient:
    """A Byzantine client: it misbehaves until the quiet phase."""

    def __init__(self, simulation: Simulation, name: str, adversary: str) -> None:
        self.name = name
        self._simulation = simulation
        grants = GRANTS.get(adversary, (Grant(),))
        grant = simulation.world.random.choice(grants)
        self.host = simulation.deployment.client(name, grant=grant)
        self._adversary = CLIENTS[simulation.configuration.kind][adversary](
            ClientPosition(
                name,
                self.host.client,
                simulation.configuration.sizes,
                simulation.workload.random,
                simulation.workload,
                lambda: simulation.world.now_us,
                simulation.allies,
            )
        )
        self._pause_us = simulation.world.random.choice((500, 20_000, 500_000))
        self._acts_left = simulation.configuration.operations // 2

    def begin(self) -> None:
        """Go to work."""
        self._acts_left -= 1
        if not self._simulation.quiet and self._acts_left >= 0:
            self.host.start(self._adversary.act(), self._again)

    def _again(self, _result: Any, error: BaseException | None) -> None:
        if error is not None:
            raise error
        world = self._simulation.world
        world.after(world.between(0, 2 * self._pause_us), self.begin)


class Simulation:
    """The state of one run."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.findings: list[str] = []
        byzantine = [node for node, _ in configuration.byzantine_nodes]
        self._correct = [
            NodeId(node) for node in range(configuration.sizes.n) if node not in byzantine
        ]
        self._record = CandidateRecord()
        # Correct nodes that make a candidate established, with whatever the others say.
        self._established = configuration.sizes.query_update.q - len(byzantine)
        self._bounds = BoundsRecord(
            configuration.sizes.query_update.r,
            configuration.sizes.query_update.b + 1,
            len(configuration.byzantine_nodes),
        )
        self.barriers = BarriersRecord(healing=configuration.verification is not None)
        self._accounts = AccountsRecord()
        # By how much the fastest clock of a correct node is ahead.
        skews_us = configuration.node_skews_us
        self._fastest_us = max((skews_us[node] for node in self._correct if skews_us), default=0)
        self.world = World(configuration.seed)
        self.network = SimulatedNetwork(self.world, NetworkFaults())
        quota = configuration.client_bytes
        # Correct nodes that, with the Byzantine ones, make others believe something.
        believed = configuration.sizes.read_write.b + 1 - len(byzantine)
        self.volumes = None if quota is None else VolumesRecord(quota, believed)
        # Where the limits of one client are small enough to be reached:
        self.possible: PossibleVersionsRecord | None = None
        self.incomplete: IncompleteRecord | None = None
        verification, most_objects = configuration.verification, configuration.possible_objects
        if verification and verification.client < limits.POSSIBLE_VERSIONS_OF_CLIENT:
            self.possible = PossibleVersionsRecord(verification, believed)
        if verification and most_objects is not None:
            self.incomplete = IncompleteRecord(self._record, most_objects, believed)
        key_epochs = _key_epochs(configuration, self._correct, self.world)
        self.workload = _workload(configuration, key_epochs)
        plan = configuration.collection
        self.retention = None if plan is None else self._retention(plan)
        self.deployment = Deployment(
            self.world,
            self.network,
            configuration.sizes,
            types=TYPES,
            skews_us=configuration.node_skews_us,
            commit_us=configuration.commit_us,
            on_commit=self._committed,
            on_notice=None if self.possible is None else self._noticed,
            on_loss=self._lost,
            verification=configuration.verification,
            collection=plan,
            volume=self.workload.volume,
            possible_objects=configuration.possible_objects,
            client_bytes=configuration.client_bytes,
            compares_clocks=configuration.faults.jump_every_us > 0,
            key_epochs=key_epochs,
        )
        self.faults = FaultInjector(self.deployment, configuration.faults)
        self.participants = [
            _CorrectClient(self, f"client {number}", plan)
            for number, plan in enumerate(configuration.clients)
        ]
        self.allies = tuple(
            NodePosition(
                node,
                self.deployment.servers(node, begins_runs=False),
                self.deployment.keys(node),
                configuration.sizes,
                Random(f"adversary {configuration.seed} {node}"),
            )
            for node, _ in configuration.byzantine_nodes
        )
        self._initiatives = [
            (node, self._initiative(node, name)) for node, name in configuration.initiatives
        ]
        for ally, (node, names) in zip(self.allies, configuration.byzantine_nodes, strict=True):
            self.deployment.nodes[node].become(partial(self._taken_over, ally, names))
        self.intruders = [
            _ByzantineClient(self, *each)
            for each in zip(configuration.intruders, configuration.byzantine_clients, strict=True)
        ]
        self.faults.revocable = [(each.host.endpoint, each.name) for each in self.intruders]
        self.faults.on_cut_off = self.workload.cut_off.add
        kept = configuration.kept
        self._kept = None if kept is None else frozenset(kept)
        self.issued = 0
        self.ended = 0
        self.quiet = False

    def _retention(self, plan: CollectionPlan) -> RetentionRecord:
        """What nodes may collect; the workload is told since when they keep everything."""
        self.workload.kept_since_us = self._kept_since_us
        return RetentionRecord(
            self._record,
            established=self._established,
            window_us=plan.window_us,
            roomy=frozenset(plan.roomy),
        )

    def _taken_over(self, ally: NodePosition, names: Sequence[str]) -> Servers:
        """What a Byzantine node serves, and starts itself."""
        initiatives = (each for node, each in self._initiatives if node == ally.node)
        return with_initiative(corrupted(ally, names), *initiatives)

    def _initiative(self, node: NodeId, name: str) -> Initiative:
        configuration = self.configuration
        random = Random(f"initiative {configuration.seed} {node}")
        adversary = INITIATIVES[configuration.kind][name](
            ClientPosition(
                f"node {node}",
                client_named(f"node {node}"),
                configuration.sizes,
                random,
                self.workload,
                lambda: self.world.now_us,
                self.allies,
            )
        )
        every_us = random.choice((500, 20_000, 500_000))
        return Initiative(adversary, every_us=every_us, acts=configuration.operations // 2)

    def take_share(self) -> bool:
        """True if there is another operation to do; the caller then begins it."""
        if self.issued >= self.configuration.operations:
            return False
        self.issued += 1
        return True

    def keeps(self, number: int) -> bool:
        """True if operation `number` takes place; false if shrinking has dropped it."""
        return self._kept is None or number in self._kept

    def may_end_so(self, task: Task, began: _Began, error: BaseException) -> bool:
        """True if the faults of this run may keep a correct client from a result.

        One that saves what its mount has written may be told that nodes have collected it: no
        update of the inode has covered it within the window. That no version that is covered is
        among it, `checkers.retention` sees to. Or that its times are wrong: all clocks have jumped
        twice meanwhile. What is told so counts as not saved.
        """
        if task.saves and isinstance(error, NoLongerKept):
            return self.may_be_forgotten(error.at_us)
        if task.saves and isinstance(error, AdmissionRefused) and error.code == errno.ETIME:
            return self.deployment.jumps - began.jumps >= 2
        return _forgets(error) and self.may_be_forgotten(began.clock_us)

    def may_be_forgotten(self, since_us: int) -> bool:
        """True if nodes may have collected the versions of an operation that began at that time.

        Then nobody can tell its client what became of it, once others have changed the same object:
        it took place once, or not at all. And a file that it reads may have been deleted. Real
        windows are days [design §8]; where they are seconds as here, partitions hold operations up
        for longer.
        """
        return self.configuration.collection is not None and since_us < self._kept_since_us()

    # --- the three parts ---------------------------------------------------------------------

    def run(self) -> None:
        """The whole run."""
        self._prepare()
        self._run_faulty_phase()
        self._run_quiet_phase()
        self._await_healing()
        if self.configuration.collection is not None:
            self._go_on(self.configuration.collection.rest_us)
        if not self.findings:
            self._audit()
        for judged in (self._bounds, self.barriers, self._accounts):
            self.findings += judged.findings
        for record in (self.retention, self.possible, self.incomplete, self.volumes):
            if record is not None:
                self.findings += record.findings
        self.findings += self.workload.findings()
        disks = {node: self.deployment.nodes[node].disk for node in self._correct}
        self.findings += check_accounts(disks)
        self.findings += self.workload.findings_on_disks(
            CorrectNodes(
                disks,
                self._record,
                len(self.configuration.byzantine_nodes),
                self.retention,
            )
        )

    def _kept_since_us(self) -> int:
        """The first moment that all correct nodes have to keep, by the clocks of all of them."""
        assert self.configuration.collection is not None
        fastest_us = START_US + self.world.now_us + self._fastest_us
        return fastest_us - self.configuration.collection.window_us

    def _note_clock(self, clock_us: int) -> None:
        """All clocks jump in this run: how far ahead do nodes let objects go?"""
        ahead_us = clock_us - START_US
        borne_us = clock_us + ahead_us // 2 + limits.BORNE_BEYOND_US
        borne_us += SECOND_US  # its clock was that early, within a batch
        self._bounds.borne_us = max(self._bounds.borne_us, borne_us)
        self.barriers.borne_us = self._bounds.borne_us

    def _committed(self, node: NodeId, writes: Sequence[Write]) -> None:
        if node in self._correct:
            host = self.deployment.nodes[node]
            clock_us, dispatcher = host.wall_clock_us(), host.dispatcher
            if dispatcher.parked:
                self._bounds.parked(node, dispatcher.parked_bytes())
            lives, jumps = host.crashes + 1, self.deployment.jumps
            if self.possible is not None:
                self.possible.committed(node, clock_us, writes, lives=lives)
            if not writes:  # most batches: what is judged below is what was written
                return
            if self.configuration.faults.jump_every_us:
                self._note_clock(clock_us)
            acceptances = self._record.take_down(node, writes)
            self._bounds.accepted(node, clock_us, acceptances)
            self.barriers.accepted(node, clock_us, acceptances, lives=lives, jumps=jumps)
            self._accounts.committed(node, host.disk, writes)
            self._bounds.hosted(node, clock_us, writes)
            if self.retention is not None:
                self.retention.committed(node, clock_us, writes)
            if self.volumes is not None:
                self.volumes.committed(node, host.disk, writes)
            if self.incomplete is not None:
                self.incomplete.accepted(node, acceptances, lives=lives)

    def _noticed(self, node: NodeId, notice: Notice) -> None:
        if node in self._correct and self.possible is not None:
            self.possible.noticed(notice)

    def _lost(self, node: NodeId) -> None:
        """`node` has lost its disk, or has got an older one back."""
        self._record.forget(node, established=self._established)
        self._accounts.forget(node, self.deployment.nodes[node].disk)

    def _prepare(self) -> None:
        host = self.deployment.client(_ADMINISTRATOR)
        self._perform(host, self.workload.session(host, _ADMINISTRATOR).prepare())

    def _run_faulty_phase(self) -> None:
        enough = int(self.configuration.faulty_share * self.configuration.operations)
        longest_us = self.world.now_us + self.configuration.faults.longest_us
        self.faults.begin()
        if self.configuration.collection is not None:
            self._hurry_healing(self.configuration.collection.window_us)
        for participant in self.participants:
            participant.begin()
        for intruder in self.intruders:
            intruder.begin()
        self._let(longest_us, lambda: self.ended >= enough)
        self.quiet = True
        self.faults.end(stay_down=self.configuration.down_when_quiet)

    def _run_quiet_phase(self) -> None:
        operations, began_us = self.configuration.operations, self.world.now_us
        left, before = operations - self.ended, self._requests()
        goes_on = True
        while goes_on and self.ended < operations:
            begun_us = min(
                (since_us for each in self.participants for _, since_us in each.pending.values()),
                default=began_us,
            )
            deadline_us = max(began_us, begun_us) + QUIET_US
            goes_on = self.world.now_us < deadline_us and self._let(
                deadline_us, lambda: self.ended >= operations
            )
        by_clients, by_nodes = (
            after - made for made, after in zip(before, self._requests(), strict=True)
        )
        most = REQUESTS_WHEN_QUIET + REQUESTS_PER_OPERATION * left
        for made, whose, bound in (
            (by_clients, "clients", most),
            (by_nodes, "nodes", most + REQUESTS_OF_NODES),
        ):
            if made > bound:
                self.findings.append(
                    f"progress: {made} requests of {whose} in the quiet phase, "
                    f"for {left} operations that were left"
                )
        for participant in self.participants:
            for task, since_us in participant.pending.values():
                waited_us = self.world.now_us - max(since_us, began_us)
                self.findings.append(
                    f"progress: {participant.name} still waits for {task.name} after "
                    f"{waited_us // SECOND_US} s without faults"
                )

    def _requests(self) -> tuple[int, int]:
        """The requests that clients have made, and those that correct nodes have made."""
        by_nodes = {node.node: node.requests for node in self.deployment.nodes}
        by_clients = self.network.traffic.requests - sum(by_nodes.values())
        return by_clients, sum(by_nodes[node] for node in self._correct)

    def _await_healing(self) -> None:
        """Nodes that have lost their disks must have rebuilt all that they host."""
        losers = self.configuration.faults.losers
        recoveries = [self.deployment.recoveries[node] for node in losers]
        self._go_on(QUIET_US, until=lambda: all(each.is_whole for each in recoveries))
        # Servers finish what clients have left behind; those that have heard nothing of it heal
        # again.
        self._go_on(SETTLING_US)
        hurried_us = {node: self.deployment.nodes[node].wall_clock_us() for node in losers}
        disks = {node: self.deployment.nodes[node].disk for node in self._correct}
        sizes = self.configuration.sizes
        complete = {
            node: complete_at(
                (disk for other, disk in disks.items() if other != node),
                objects=sizes.query_update,
                blocks=sizes.read_write,
            )
            for node in losers
        }
        again = [
            (healer, healer.tally.passes, hurried_us[node])
            for node in losers
            for healer in self.deployment.healers[node]
        ]
        for healer, _, _ in again:
            healer.throttle.hurry()
        self._go_on(
            QUIET_US,
            until=lambda: all(
                healer.tally.began_us >= since_us and healer.tally.passes > passes
                for healer, passes, since_us in again
            ),
        )
        self._go_on(SECOND_US)  # what was rebuilt last is stored by then
        for node, recovery in zip(losers, recoveries, strict=True):
            if not recovery.is_whole:
                self.findings.append(f"healing: node {node} still rebuilds its store")
            else:
                self.findings += check_redundancy(
                    node,
                    disks,
                    complete[node],
                    blocks=sizes.read_write,
                    is_required=partial(
                        self._is_required,
                        latest_us=hurried_us[node] + limits.CLOCK_SKEW_US,
                        clock_us=self.deployment.nodes[node].wall_clock_us(),
                    ),
                )

    def _hurry_healing(self, window_us: int) -> None:
        """Nodes compare themselves with their peers much more often than the window is long."""
        for healers in self.deployment.healers.values():
            for healer in healers:
                healer.throttle.hurry()
        self.world.after(window_us // HEALS_PER_WINDOW, self._hurry_healing, window_us)

    def _is_required(self, key: bytes, *, latest_us: int, clock_us: int) -> bool:
        """True if a node with this clock has to host a complete version of a block.

        What is later than `latest_us` was too far ahead of it when it looked. [design §4]
        """
        retention = self.retention
        return block_time_of(key) <= latest_us and (
            retention is None or retention.is_required(key, clock_us - retention.window_us)
        )

    def _go_on(self, longest_us: int, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, until something is so."""
        deadline_us = self.world.now_us + longest_us
        self.world.after(longest_us, lambda: None)
        self._let(deadline_us, until)

    def _let(self, deadline_us: int, until: Callable[[], bool]) -> bool:
        """Let things happen until something is so; false if that is not going to be."""
        most_events = EVENTS_PER_OPERATION * max(100, self.configuration.operations)
        return self.world.run(until=until, most_events=most_events, deadline_us=deadline_us)

    def _audit(self) -> None:
        self.faults.only_down(self.configuration.down_in_audit)
        host = self.deployment.client(_AUDITOR)
        self._perform(host, self.workload.session(host, _AUDITOR).audit())

    def _perform(self, host: SimulatedClient, tasks: Iterator[Task]) -> None:
        """One task after the other, without faults, by a client alone."""
        deadline_us = self.world.now_us + QUIET_US
        over = False
        task: Task | None = None

        def go_on(_result: Any, error: BaseException | None) -> None:
            nonlocal over, task
            if error is not None:
                assert task is not None
                self.findings.append(f"durability: no result of {task.name}: {error!r}")
            task = next(tasks, None)
            if task is None:
                over = True
            else:
                # Through the agenda: a conversation may not start another from within its end.
                self.world.after(0, lambda: host.start(task.conversation(), go_on))

        go_on(None, None)
        self._let(deadline_us, lambda: over)
        if not over:
            assert task is not None
            self.findings.append(f"durability: still waiting for {task.name}")

    # --- the report --------------------------------------------------------------------------

    def report(self) -> Report:
        """The outcome."""
        return Report(
            configuration=self.configuration,
            findings=tuple(self.findings),
            operations=self.workload.operations,
            events=self.world.events,
            traffic=self.network.traffic,
            fault_counts=self.faults.counts,
            node_crashes=sum(node.crashes for node in self.deployment.nodes),
            client_crashes=sum(participant.crashes for participant in self.participants),
            virtual_us=self.world.now_us,
            collected=0 if self.retention is None else self.retention.collected,
            digest=self._digest(),
        )

    def _digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for line in self.workload.digested():
            state.update(line.encode())
        state.update(repr((self.world.now_us, self.world.events, self.network.traffic)).encode())
        return state.hexdigest()
