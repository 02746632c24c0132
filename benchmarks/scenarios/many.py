"""What becomes of rates and memory when a volume gets many files, and stays in use?

Own nodes and one mount, for a given time:

- *fill*: small files are made, in directories of 500, for a third of the time (or until there are
  enough);
- *churn*: files are written anew, made, removed and read at random, while nodes verify what is
  written;
- *churn, a node killed*: the same, without node 0; then it is started, and catches up beside it;
- *list*: all directories are listed, with the attributes of all files;
- *rebuild*: node 0 loses its store, and gets it back;
- *remove*: everything is removed again.

What every file should hold is known, and is compared whenever one is read.
"""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import exposition
from benchmarks.charts import Lines
from benchmarks.deployment import Deployment, System, client_of, deployed
from benchmarks.descriptors import create
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.kernel_cache import drop_dentries
from benchmarks.measurement import Measure, Sample
from benchmarks.mounting import Mount, mounted, require_mounts
from benchmarks.processes import resident_mib
from benchmarks.session import Phase, Place, Session
from bftfs.cluster import Durability
from bftfs.data_directory import NodeDirectory
from bftfs.identifiers import NodeId

NAME = "many"
NODES = "nodes"

_SYSTEM = System(t=1, b=1)
_KILLED = 0
_IN_A_DIRECTORY = 500
_FILL, _CHURN, _KILL = (
    0.35,
    0.1,
    0.1,
)  # shares of the time; listing and removing take what they take
_HEAL_PATIENCE_S = 3600.0
_LOOK_EVERY_S = 2.0
_MIB = 1 << 20
_MANY = 10_000_000
_RATE = Measure.OPERATIONS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Parameters:
    """For about so many `minutes`, at most so many `files` of `size` bytes, by `threads`."""

    repeat: int
    minutes: float
    files: int
    size: int
    threads: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    require_mounts()
    for number in range(parameters.repeat):
        with (
            deployed(_SYSTEM, parameters.durability, below=below) as deployment,
            mounted(deployment, below=below) as mount,
            suppress(PhaseError),
        ):
            _Run(session, Place(target, number), deployment, mount, parameters).run()


class _Files:
    """The files that there should be, and what is in each."""

    def __init__(self, root: Path, size: int) -> None:
        self._root = root
        self._size = size
        self._numbers = count()
        self._lock = threading.Lock()
        self._versions: dict[int, int] = {}
        self._listed: list[int] = []  # for choosing one by chance

    def __len__(self) -> int:
        return len(self._versions)

    def path(self, number: int) -> Path:
        """Where the file of that number is."""
        return self._root / str(number // _IN_A_DIRECTORY) / str(number)

    def _content(self, number: int, version: int) -> bytes:
        line = b"%d of %d\n" % (version, number)
        return (line * (self._size // len(line) + 1))[: self._size]

    def make(self) -> None:
        """Make one more."""
        with self._lock:
            number = next(self._numbers)
            if not number % _IN_A_DIRECTORY:
                self.path(number).parent.mkdir()
        create(self.path(number), self._content(number, 0), synced=False)
        with self._lock:
            self._versions[number] = 0
            self._listed.append(number)

    @contextmanager
    def _chosen(self, draw: random.Random) -> Iterator[tuple[int, int]]:
        """One of them, which no other thread touches meanwhile, and its version."""
        with self._lock:
            place = draw.randrange(len(self._listed))
            number = self._listed[place]
            self._listed[place] = self._listed[-1]
            self._listed.pop()
        version = self._versions[number]
        yield number, version
        with self._lock:
            if number in self._versions:
                self._listed.append(number)

    def write(self, draw: random.Random) -> None:
        """Write one anew."""
        with self._chosen(draw) as (number, version):
            self.path(number).write_bytes(self._content(number, version + 1))
            self._versions[number] = version + 1

    def read(self, draw: random.Random) -> None:
        """Read one. `WorkloadError` if it does not hold what it should."""
        with self._chosen(draw) as (number, version):
            if self.path(number).read_bytes() != self._content(number, version):
                raise WorkloadError(f"{self.path(number)} does not hold what was written last")

    def remove(self, draw: random.Random) -> None:
        """Remove one."""
        with self._chosen(draw) as (number, _):
            self.path(number).unlink()
            del self._versions[number]

    def list_all(self) -> int:
        """Look at all of them; how many there are. `WorkloadError` if others are there."""
        found: set[int] = set()
        for directory in os.scandir(self._root):
            for entry in os.scandir(directory):
                if entry.stat(follow_symlinks=False).st_size != self._size:
                    raise WorkloadError(f"{entry.path} does not have {self._size} bytes")
                found.add(int(entry.name))
        if found != self._versions.keys():
            wrong = len(found ^ self._versions.keys())
            raise WorkloadError(f"{wrong} files are missing, or there and should not be")
        return len(found)

    def remove_all(self, threads: int) -> None:
        """Remove what is left."""

        def clear(directory: str) -> None:
            for entry in os.scandir(directory):
                os.unlink(entry.path)
            os.rmdir(directory)

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(clear, [each.path for each in os.scandir(self._root)]):
                pass
        self._versions.clear()
        if left := os.listdir(self._root):
            raise WorkloadError(f"{len(left)} directories are left")


class _Watch:
    """Notes, while a phase runs, how many files there are, and what the mount and nodes take."""

    def __init__(self, deployment: Deployment, mount: Mount, files: _Files) -> None:
        self._deployment = deployment
        self._mount = mount
        self._files = files
        self._ended = threading.Event()
        self._began_s = time.monotonic()
        self.points: list[tuple[float, int, float, float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In the body."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._note()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self._note()

    def _note(self) -> None:
        nodes = max(map(resident_mib, self._deployment.pids))
        mount = resident_mib(self._mount.pid)
        seconds = round(time.monotonic() - self._began_s, 1)
        self.points.append((seconds, len(self._files), round(mount, 1), round(nodes, 1)))

    @property
    def details(self) -> dict[str, float | str]:
        """For the sample of the phase; the curve has seconds, files, MiB of the mount and nodes."""
        _, _, mount, nodes = self.points[-1]
        curve = " ".join(":".join(map(str, point)) for point in self.points)
        return {"mount_mib": mount, "largest_node_mib": nodes, "curve": curve}


class _Run:
    """One run, phase by phase."""

    def __init__(
        self,
        session: Session,
        place: Place,
        deployment: Deployment,
        mount: Mount,
        parameters: Parameters,
    ) -> None:
        self._session = session
        self._place = place
        self._deployment = deployment
        self._mount = mount
        self._parameters = parameters
        self._files = _Files(mount.mountpoint, parameters.size)
        self._total_s = parameters.minutes * 60

    def run(self) -> None:
        """All of it."""
        self._repeated("fill", _FILL, lambda _: self._files.make(), most=self._parameters.files)
        filled = len(self._files)
        stored = self._stored_bytes()
        self._repeated("churn", _CHURN, self._churn)
        self._deployment.kill(_KILLED)
        self._repeated("churn, a node killed", _KILL, self._churn)
        self._healed("catch up", lambda: self._deployment.restart(_KILLED))
        self._list()
        rebuilt_s = self._healed("rebuild", self._lose)
        with self._phase("remove", _RATE, amount=len(self._files)):
            self._files.remove_all(self._parameters.threads)
        self._extrapolate(filled, stored, rebuilt_s)

    @contextmanager
    def _phase(self, name: str, measure: Measure, *, amount: float = 1) -> Iterator[Phase]:
        watch = _Watch(self._deployment, self._mount, self._files)
        with self._session.phase(self._place, name, measure, amount=amount) as phase:
            with watch.watching():
                yield phase
            phase.details |= watch.details

    def _repeated(
        self,
        name: str,
        share: float,
        operation: Callable[[random.Random], None],
        *,
        most: int = _MANY,
    ) -> None:
        """Threads repeat an operation for a share of the time, or until it was done so often."""
        watch = _Watch(self._deployment, self._mount, self._files)
        began_s = time.monotonic()
        until_s = began_s + share * self._total_s
        numbers = count()

        def work(seed: int) -> int:
            draw = random.Random(seed)
            done = 0
            while time.monotonic() < until_s and next(numbers) < most:
                operation(draw)
                done += 1
            return done

        threads = self._parameters.threads
        try:
            with watch.watching(), ThreadPoolExecutor(threads) as pool:
                done = sum(pool.map(work, range(threads)))
        except (OSError, WorkloadError) as error:
            self._session.fail(self._place, name, str(error))
            raise PhaseError(str(error)) from error
        self._add(name, _RATE, time.monotonic() - began_s, done, watch.details)

    def _add(
        self,
        name: str,
        measure: Measure,
        seconds: float,
        amount: float,
        details: dict[str, float | str],
    ) -> None:
        self._session.add(
            Sample(
                target=self._place.target,
                variant="",
                phase=name,
                round=self._place.round,
                measure=measure,
                seconds=seconds,
                amount=amount,
                started_s=0.0,
                details=details,
            )
        )

    def _churn(self, draw: random.Random) -> None:
        chosen = draw.random()
        if chosen < 0.4:
            self._files.write(draw)
        elif chosen < 0.6:
            self._files.make()
        elif chosen < 0.8:
            self._files.remove(draw)
        else:
            self._files.read(draw)

    def _list(self) -> None:
        if not drop_dentries():
            self._session.note("names and attributes stayed cached: only root may drop them")
        with self._phase("list", _RATE, amount=len(self._files)):
            self._files.list_all()

    def _lose(self) -> None:
        self._deployment.kill(_KILLED)
        shutil.rmtree(self._node.store)
        self._deployment.restart(_KILLED)

    @property
    def _node(self) -> NodeDirectory:
        return self._deployment.directory.node(NodeId(_KILLED))

    def _healed(self, name: str, begin: Callable[[], None]) -> float:
        """How long it takes until node 0 has compared all with its peers, and lacks nothing."""
        began_s = time.monotonic()
        with self._phase(name, Measure.SECONDS) as phase:
            begin()
            page: dict[str, float] = {}
            while not _is_whole(page):
                if time.monotonic() > began_s + _HEAL_PATIENCE_S:
                    raise WorkloadError(f"node {_KILLED} is not whole after {_HEAL_PATIENCE_S:g} s")
                time.sleep(0.1)
                with suppress(WorkloadError):  # it does not run yet
                    page = exposition.figures(self._node)
            for what in ("objects", "blocks"):
                phase.details[f"{what}_rebuilt"] = page[f"bftfs_heal_{what}_rebuilt"]
        return time.monotonic() - began_s

    def _stored_bytes(self) -> float:
        """What all nodes together have stored, as they say."""
        with client_of(self._deployment) as client:
            return sum(client.used_bytes())

    def _extrapolate(self, files: int, stored: float, rebuilt_s: float) -> None:
        """Say what ten million files would take at the rates and sizes of this run."""
        rates = {
            each.phase: each.value
            for each in self._session.samples
            if each.round == self._place.round
        }
        hours = {name: _MANY / rates[name] / 3600 for name in ("fill", "list", "remove")}
        hours["rebuild"] = _MANY / files * rebuilt_s / 3600
        told = ", ".join(f"{name} {each:.1f} h" for name, each in hours.items())
        gib = stored / _SYSTEM.n / files * _MANY / 2**30
        self._session.note(
            f"ten million files, if all goes on as with these {files:,}: {told}; "
            f"{gib:.0f} GiB at each node"
        )


def _is_whole(page: dict[str, float]) -> bool:
    return (
        not page.get("bftfs_recovering", 1)
        and page["bftfs_heal_objects_passes"] > 0
        and page["bftfs_heal_blocks_passes"] > 0
        and not page["bftfs_heal_objects_lacking"]
        and not page["bftfs_heal_blocks_lacking"]
    )


def charts(samples: Sequence[Sample]) -> list[Lines]:
    """The memory of the mount and of the largest node, by the number of files."""
    lines: dict[str, dict[float, float]] = {"mount": {}, "largest node": {}}
    for sample in samples:
        if sample.phase == "fill":
            for point in str(sample.details["curve"]).split():
                _, files, mount, node = map(float, point.split(":"))
                lines["mount"][files], lines["largest node"][files] = mount, node
    return [Lines("Memory while files are made", "files", "MiB", lines, {})]
