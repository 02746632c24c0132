"""One run: a cluster, mounts, workers, faults; then a quiet phase, and judgement."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from random import Random

from tests.chaos import clock
from tests.chaos.faults import (
    KILLED_MOUNT,
    KINDS,
    MOUNT_KINDS,
    OF_MOUNTS,
    Fault,
    FullDisk,
    MountFault,
)
from tests.chaos.history import Event, read_history
from tests.chaos.judge import judge, judge_tree
from tests.chaos.machines import START_PATIENCE_S, Machines, MountMachine, NodeMachine
from tests.chaos.schedule import Injection, Round, draw_schedule, each_kind_once
from tests.chaos.workers import (
    BLOCK_BYTES,
    BLOCKS_PER_FILE,
    REGISTER_FILES,
    Names,
    Registers,
    Worker,
    read,
)
from tests.end_to_end.durability import Writer

MOUNTS = (True, True, False, False)  # strict?
ENDING_PATIENCE_S = 60.0  # for every operation to end, once nothing is disturbed any more
_TICK_S = 0.05
_SIGNAL = "Fatal Python error"
_FULL = "the disk is full; make room before the node is started"


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    seed: int
    findings: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0  # by the writers' mounts
    verified_files: int = 0
    nodes_out: list[str] = field(default_factory=list)  # how nodes ended by themselves
    longest_s: dict[str, float] = field(default_factory=dict)  # operation meanwhile, by fault

    def summary(self) -> str:
        """One paragraph."""
        total = self.operations.total() + self.acknowledged
        return (
            f"seed {self.seed}: {self.injected.total()} faults of {len(self.injected)} kinds, "
            f"{total} operations ({self.acknowledged} of them journalled writes, "
            f"{self.verified_files} files verified), {len(self.findings)} findings"
        )

    def table(self) -> str:
        """How often each fault was injected, and the longest operation meanwhile."""
        return "\n".join(
            f"{kind:22} {count:4} {self.longest_s.get(kind, 0.0):7.1f} s"
            for kind, count in sorted(self.injected.items())
        )

    def add(self, other: Report) -> None:
        """Count what another run did as well."""
        self.injected += other.injected
        self.operations += other.operations
        self.acknowledged += other.acknowledged
        self.verified_files += other.verified_files
        self.nodes_out += other.nodes_out
        self.findings += other.findings
        for kind, longest in other.longest_s.items():
            self.longest_s[kind] = max(longest, self.longest_s.get(kind, 0.0))


class Run:
    """One run, step by step."""

    def __init__(
        self,
        root: Path,
        *,
        seed: int,
        seconds: float | None,
        kinds: Sequence[str],
        t: int = 1,
        b: int = 1,
        mounts: Sequence[bool] = MOUNTS,
        say: Callable[[str], None] = print,
    ) -> None:
        """For so many seconds; None: until each kind of fault has had its turn."""
        self.report = Report(seed)
        self._say = say
        self._machines = Machines(root, clock.build(root), t=t, b=b, mounts=mounts, seed=seed)
        sizes = {"nodes": len(self._machines.nodes), "mounts": len(mounts), "t": t, "b": b}
        self._schedule = (
            each_kind_once(seed, kinds, **sizes)
            if seconds is None
            else draw_schedule(seed, seconds, kinds, **sizes)
        )
        self._root = root
        self._workers: list[Worker] = []
        self._writers: list[Writer] = []
        self._lost_writers: list[Writer] = []  # whose mounts were killed
        self._killed: set[str] = set()  # the workers whose mounts were killed
        self._suspects: set[int] = set()  # nodes that a Byzantine fault has hit
        self._disturbances: list[tuple[str, float, float]] = []  # kind, begin, end
        self._filled: set[int] = set()  # nodes whose disks were full for a while
        self._status_was_asked = False
        self._generation = 0
        self._started = time.monotonic()

    def perform(self) -> Report:
        """All of it. Findings are in the report; an exception is a failure of the run itself."""
        try:
            self._machines.start()
            point = self._machines.mounts[0].point
            Registers.prepare(point)
            Names.prepare(point)
            self._started = time.monotonic()
            for mount in self._machines.mounts:
                self._employ(mount)
            for turn in self._schedule:
                self._pause(turn.pause_s)
                self._disturb(turn)
            self._calm_down()
            self._judge()
        finally:
            for worker in self._workers:
                worker.stop()
            for writer in (*self._writers, *self._lost_writers):
                writer.tell_to_stop()
            self._machines.tear_down()
        return self.report

    # --- the faulty phase --------------------------------------------------------------------

    def _employ(self, mount: MountMachine) -> None:
        """Workers for a mount that has none."""
        self._generation += 1
        seed = self.report.seed * 1000 + self._generation
        for steps in (Registers, Names):
            name = f"{mount.name}-{steps.__name__.lower()}-{self._generation}"
            self._workers.append(
                Worker(
                    steps, mount.point, self._root / f"{name}.journal",
                    name=name, strict=mount.strict, seed=seed,
                )
            )  # fmt: skip
        name = f"{mount.name}-writer-{self._generation}"
        self._writers.append(
            Writer(mount.point / name, self._root / f"{name}.writer-journal", seed)
        )

    def _disturb(self, turn: Round) -> None:
        faults: list[Fault] = []
        mount_faults: list[MountFault] = []
        begun = time.monotonic()
        for injection in turn.injections:
            self.report.injected[injection.kind] += 1
            if injection.kind == KILLED_MOUNT:
                self._kill_mount(self._machines.mounts[injection.victim])
            elif injection.kind in OF_MOUNTS:
                mount_fault = self._mount_fault(injection)
                self._say(f"{self._now()} {mount_fault.mount.name} {mount_fault.inject()}")
                mount_faults.append(mount_fault)
            else:
                fault = self._fault(injection)
                self._say(f"{self._now()} node {injection.victim} {fault.inject()}")
                faults.append(fault)
        self._pause(turn.hold_s)
        for fault in faults:
            if fault.node.refuses and not self._status_was_asked:
                self._check_status(fault.node)
            fault.heal()
        for mount_fault in mount_faults:
            mount_fault.heal()
        for fault in faults:
            if fault.node.number not in self._suspects:
                self._wait_for(fault.node)
        self._say(f"{self._now()} healed")
        ended = time.monotonic()
        self._disturbances += [(each.kind, begun, ended) for each in turn.injections]

    def _check_status(self, node: NodeMachine) -> None:
        """`bftfs status` says which node is out, and why."""
        self._status_was_asked = True
        state = self._machines.status()["nodes"][node.number]
        if state["up"] or not any("store cannot be used" in reason for reason in state["reasons"]):
            self.report.findings.append(f"`bftfs status` does not say what is wrong: {state}")

    def _fault(self, injection: Injection) -> Fault:
        kind = KINDS[injection.kind]
        if kind is FullDisk:
            self._filled.add(injection.victim)
        if kind.byzantine:
            self._suspects.add(injection.victim)
        return kind(self._machines, self._machines.nodes[injection.victim], Random(injection.seed))

    def _mount_fault(self, injection: Injection) -> MountFault:
        mount = self._machines.mounts[injection.victim]
        return MOUNT_KINDS[injection.kind](self._machines, mount, Random(injection.seed))

    def _kill_mount(self, mount: MountMachine) -> None:
        """A client dies; its programs get errors, and others take their place."""
        self._say(f"{self._now()} {mount.name} killed")
        mount.kill()
        for worker in self._workers:
            if not worker.name.startswith(f"{mount.name}-"):
                continue
            self._killed.add(worker.name)
            if not worker.join(ENDING_PATIENCE_S):
                self.report.findings.append(f"{worker.name} does not notice that its mount died")
        for writer in [w for w in self._writers if w.directory.is_relative_to(mount.point)]:
            if not writer.join(ENDING_PATIENCE_S):
                self.report.findings.append(f"a writer of {mount.name} hangs on its dead mount")
            self._writers.remove(writer)
            self._lost_writers.append(writer)
        mount.start()
        self._employ(mount)

    def _wait_for(self, node: NodeMachine) -> None:
        """A correct node is back soon after its fault is gone."""
        deadline = time.monotonic() + START_PATIENCE_S
        while not node.ready:
            if time.monotonic() > deadline:
                self.report.findings.append(f"node {node.number} has not come back: {node.log}")
                return
            self._pause(_TICK_S)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._machines.supervise()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(_TICK_S, remaining))

    def _now(self) -> str:
        return f"{time.monotonic() - self._started:7.2f} s"

    # --- the quiet phase ---------------------------------------------------------------------

    def _calm_down(self) -> None:
        """Nothing is disturbed any more, but for nodes that are Byzantine: all operations end."""
        for node in self._machines.nodes:
            if node.number not in self._suspects:
                self._wait_for(node)
        self._pause(1.0)
        for worker in self._workers:
            worker.stop()
        for writer in self._writers:
            writer.tell_to_stop()
        deadline = time.monotonic() + ENDING_PATIENCE_S
        for worker in self._workers:
            if not worker.join(max(0.0, deadline - time.monotonic())):
                self.report.findings.append(f"{worker.name}: its operation does not end")
        for writer in self._writers:
            if not writer.join(max(0.0, deadline - time.monotonic())):
                self.report.findings.append(f"{writer.directory.name}: does not end")
            elif writer.failure() is not None:
                self.report.findings.append(f"{writer.directory.name}: {writer.failure()}")

    # --- judgement ---------------------------------------------------------------------------

    def _judge(self) -> None:
        report, machines = self.report, self._machines
        if any("not end" in finding for finding in report.findings):
            self._judge_nodes()
            return  # what hangs would hang us
        machines.auditor.start()
        audit = self._audit(machines.auditor.point)
        for writer in (*self._writers, *self._lost_writers):
            report.acknowledged += writer.acknowledged()
            try:
                report.verified_files += writer.verify(
                    machines.auditor.point / writer.directory.name
                )
            except (AssertionError, OSError) as loss:
                report.findings.append(f"lost or altered, {writer.directory.name}: {loss!r}")
        report.findings += judge_tree(machines.auditor.point)
        events = [
            event for file in sorted(self._root.glob("*.journal")) for event in read_history(file)
        ]
        report.operations.update(event.name for event in events)
        for kind, begun, ended in self._disturbances:
            longest = max(
                (
                    event.responded - event.invoked
                    for event in events
                    if event.invoked < ended and begun < event.responded < inf
                ),
                default=0.0,
            )
            report.longest_s[kind] = max(longest, report.longest_s.get(kind, 0.0))
        report.findings += judge([*events, *audit], killed=self._killed)
        self._judge_nodes()
        for mount in (*machines.mounts, machines.auditor):
            if not mount.running:
                report.findings.append(f"{mount.name} has ended by itself: {mount.log[-2000:]}")
            elif not mount.stop(ENDING_PATIENCE_S):
                report.findings.append(f"{mount.name} cannot be unmounted: {mount.log[-2000:]}")

    def _audit(self, point: Path) -> list[Event]:
        """A last look at every register, by somebody who has not cached anything."""
        events = []
        for file in range(REGISTER_FILES):
            for block in range(BLOCKS_PER_FILE):
                path = point / "registers" / f"file-{file}"
                begun = time.monotonic()
                value = read(path, block * BLOCK_BYTES)
                events.append(
                    Event(
                        "auditor", True, f"file-{file}/{block}", "read", (), value, begun,
                        time.monotonic(),
                    )
                )  # fmt: skip
        return events

    def _judge_nodes(self) -> None:
        """Correct nodes neither end by themselves nor meet faults; the others say what is wrong."""
        report = self.report
        for node in self._machines.nodes:
            for ending in node.endings:
                report.nodes_out.append(str(ending))
                if node.number not in self._suspects:
                    if _FULL not in ending.last_words or node.number not in self._filled:
                        report.findings.append(f"{ending}\n{ending.log[-3000:]}")
                elif "Traceback" in ending.log or (ending.code < 0 and _SIGNAL not in ending.log):
                    report.findings.append(
                        f"ended without a reason: {ending}\n{ending.log[-3000:]}"
                    )
            if node.number not in self._suspects and (
                "Traceback" in node.whole_log or '"level": "error"' in node.whole_log
            ):
                report.findings.append(f"node {node.number} met a fault: {node.whole_log[-3000:]}")
