"""How long does a node that lost its store take to heal while people work, and what do they notice?

In a mount of a local cluster: files are written, so that a node has something to lose; the Andrew
benchmark runs once with all nodes well; then node 0 is stopped, its store is deleted, it is started
again, and Andrew runs beside its healing.  The node heals when it says that it has rebuilt its
store: every object and every fragment that its peers list.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import exposition
from benchmarks.charts import Lines
from benchmarks.deployment import PROJECT
from benchmarks.descriptors import write_all
from benchmarks.errors import BenchmarkError, PhaseError, WorkloadError
from benchmarks.measurement import Measure, Sample
from benchmarks.scenarios import andrew
from benchmarks.session import Session
from benchmarks.workspace import Target, interleaved, require_space
from bftfs.cli.processes import pid_in
from bftfs.data_directory import DataDirectory, NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId

NAME = "healing"
WELL, HEALING = "all nodes well", "node 0 heals"

_NODE = NodeId(0)
_THREADS = 4  # that write the files
_IN_A_DIRECTORY = 500
_STOP_PATIENCE_S = 60.0
_HEAL_PATIENCE_S = 3600.0
_LOOK_EVERY_S = 0.25
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Parameters:
    """`files` of `size` bytes in all are there when the node is lost; `jobs` as of make -j."""

    files: int
    size: int
    jobs: int


def node_of(data: Path) -> NodeDirectory:
    """The node that will lose its store. `BenchmarkError` if it does not run."""
    try:
        node = DataDirectory.existing(data.absolute()).node(_NODE)
    except UsageError as error:
        raise BenchmarkError(error.message) from None
    if pid_in(node.pid) is None:
        raise BenchmarkError(
            f"{data}: node {_NODE} does not run; start the cluster with `bftfs up --data {data}`"
        )
    return node


def run(
    session: Session, directory: Path, data: Path, tree: Path, parameters: Parameters
) -> dict[str, int]:
    """Measure; gives the dimensions of the tree."""
    node = node_of(data)
    well, healing = (Target(name, directory, disturbed=False) for name in (WELL, HEALING))
    require_space(well, parameters.size)
    dimensions: dict[str, int] = {}
    work = andrew.Parameters(1, parameters.jobs, cold=False)

    def measured(_target: Target, _number: int, files: Path) -> None:
        _fill(session, well, files, parameters)
        dimensions.update(andrew.run(session, [well], tree, work))
        watch = _Watch(node)
        with suppress(PhaseError):
            _lose(session, healing, node, data, watch)
            andrew.run(session, [healing], tree, work)
            _report(session, healing, watch)

    interleaved(session, [well], 1, measured)
    return dimensions


def _fill(session: Session, target: Target, directory: Path, parameters: Parameters) -> None:
    size = parameters.size // parameters.files
    content = os.urandom(size)

    def write(number: int) -> None:
        path = directory / str(number // _IN_A_DIRECTORY) / str(number)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        try:
            write_all(descriptor, content)
        finally:
            os.close(descriptor)

    with session.phase(
        target.place(0), "fill", Measure.OPERATIONS_PER_SECOND, amount=parameters.files
    ):
        for number in range(0, parameters.files, _IN_A_DIRECTORY):
            (directory / str(number // _IN_A_DIRECTORY)).mkdir()
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(write, range(parameters.files)):
                pass


def _lose(
    session: Session, target: Target, node: NodeDirectory, data: Path, watch: "_Watch"
) -> None:
    """The node is stopped, its store deleted, and it is started again."""
    with session.phase(target.place(0), "restart", Measure.SECONDS):
        pid = pid_in(node.pid)
        if pid is None:
            raise WorkloadError(f"node {_NODE} has ended: {node.log}")
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_PATIENCE_S
        while pid_in(node.pid) is not None:
            if time.monotonic() > deadline:
                raise WorkloadError(f"node {_NODE} does not stop: {node.log}")
            time.sleep(0.05)
        shutil.rmtree(node.store)
        watch.start()
        done = subprocess.run(
            [sys.executable, "-m", "bftfs", "up", "--data", str(data)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WorkloadError(f"node {_NODE} was not started: {done.stderr.strip()[-500:]}")


class _Watch:
    """How far the node's healing has come, by time."""

    def __init__(self, node: NodeDirectory) -> None:
        self._node = node
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._started = 0.0
        self.seconds: float | None = None  # that it took
        self.page: dict[str, float] = {}
        self.curve: list[tuple[float, float]] = []  # seconds, and MiB rebuilt by then

    def start(self) -> None:
        """From now on the node is to heal."""
        self._started = time.monotonic()
        self._thread.start()

    def finish(self) -> None:
        """Wait until it has."""
        self._thread.join(_HEAL_PATIENCE_S)

    def _look(self) -> None:
        deadline = self._started + _HEAL_PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(WorkloadError):  # it does not run yet
                page = self.page = exposition.figures(self._node)
                seconds = time.monotonic() - self._started
                rebuilt = page["bftfs_heal_blocks_bytes"] / _MIB
                if not self.curve or rebuilt > self.curve[-1][1] or not page["bftfs_recovering"]:
                    self.curve.append((round(seconds, 2), round(rebuilt, 3)))
                if not page["bftfs_recovering"]:
                    self.seconds = seconds
                    return
            time.sleep(_LOOK_EVERY_S)


def _report(session: Session, target: Target, watch: _Watch) -> None:
    beside_s = time.monotonic()
    watch.finish()
    beside_s -= time.monotonic()
    if watch.seconds is None:
        session.fail(target.place(0), "heal", f"not done after {_HEAL_PATIENCE_S:.0f} s")
        return
    page, mib = watch.page, watch.curve[-1][1]
    session.add(
        Sample(
            target=target.name,
            variant="",
            phase="heal",
            round=0,
            measure=Measure.SECONDS,
            seconds=watch.seconds,
            amount=1,
            started_s=0.0,
            details={
                "objects": page["bftfs_heal_objects_rebuilt"],
                "fragments": page["bftfs_heal_blocks_rebuilt"],
                "mib": round(mib, 1),
                "mib_per_second": round(mib / watch.seconds, 2),
                "seconds_after_andrew": round(-beside_s, 1),
                "curve": " ".join(f"{second:g}:{done:g}" for second, done in watch.curve),
            },
        )
    )


_TITLE = "A node that lost its store gets it back, while Andrew runs"


def charts(samples: Sequence[Sample]) -> list[Lines]:
    """The versions and objects rebuilt, over time."""
    curves = {
        sample.target: {
            float(second): float(done)
            for second, done in (point.split(":") for point in str(sample.details["curve"]).split())
        }
        for sample in samples
        if sample.phase == "heal"
    }
    x, y = "seconds since the node was back", "MiB of fragments rebuilt"
    return [Lines(_TITLE, x, y, curves, {})]
