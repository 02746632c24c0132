"""Memory and CPU time of processes under observation, from /proc."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from bftfs.cli.processes import mount_processes, pid_in
from bftfs.data_directory import DataDirectory, NodeDirectory

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MEMORY_FIELDS = ("VmRSS", "RssAnon", "RssFile", "VmHWM")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """The CPU time that one process used in a phase, and its memory at the end."""

    name: str
    pid: int
    alive: bool
    user_s: float = 0.0
    system_s: float = 0.0
    resident_kib: int = 0
    anonymous_kib: int = 0
    file_backed_kib: int = 0
    peak_resident_kib: int = 0  # since the process started

    @property
    def cpu_s(self) -> float:
        """CPU time in user and kernel mode."""
        return self.user_s + self.system_s


@dataclass(frozen=True, slots=True)
class WatchedProcess:
    """A process to observe.  Its start time tells it from a later process with the same pid."""

    name: str
    pid: int
    start_ticks: int

    @classmethod
    def parse(cls, text: str) -> "WatchedProcess":
        """From `NAME=PID`."""
        name, separator, number = text.rpartition("=")
        if not separator or not name or not number.isdecimal():
            raise BenchmarkError(f"--pid {text}: expected NAME=PID, for example --pid node0=4711")
        stat = _read_stat(int(number))
        if stat is None:
            raise BenchmarkError(f"--pid {text}: there is no process {number}")
        return cls(name, int(number), stat.start_ticks)


def nodes_of(data: Path) -> tuple[NodeDirectory, ...]:
    """The nodes of the local cluster in the directory `data`, running or not."""
    nodes = map(DataDirectory(data.absolute()).node, itertools.count())
    return tuple(itertools.takewhile(lambda node: node.path.is_dir(), nodes))


def processes_of(data: Path) -> tuple[WatchedProcess, ...]:
    """The nodes and the mounts of the local cluster in the directory `data`."""
    directory = DataDirectory(data.absolute())
    found = []
    for number, node in enumerate(nodes_of(data)):
        pid = pid_in(node.pid)
        if pid is not None:
            found.append(WatchedProcess.parse(f"node{number}={pid}"))
    mounts = sorted(mount_processes(directory))
    found += [WatchedProcess.parse(f"mount{i}={mount.pid}") for i, mount in enumerate(mounts)]
    if not found:
        raise BenchmarkError(f"--cluster {data}: no node and no mount of a cluster there runs")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Stat:
    start_ticks: int
    user_ticks: int
    system_ticks: int


class ProcessWatch:
    """Measures what the watched processes use between `__init__` and `finish`."""

    def __init__(self, watched: Sequence[WatchedProcess]) -> None:
        self._watched = watched
        self._before = [_stat_of(process) for process in watched]

    def finish(self) -> tuple[ProcessUse, ...]:
        """The use of each process since this watch began."""
        return tuple(
            _use(process, before)
            for process, before in zip(self._watched, self._before, strict=True)
        )


def _use(process: WatchedProcess, before: _Stat | None) -> ProcessUse:
    memory = _read_memory(process.pid)
    after = _stat_of(process)
    if before is None or after is None or not memory:
        return ProcessUse(process.name, process.pid, alive=False)
    return ProcessUse(
        process.name,
        process.pid,
        alive=True,
        user_s=(after.user_ticks - before.user_ticks) / _TICKS_PER_SECOND,
        system_s=(after.system_ticks - before.system_ticks) / _TICKS_PER_SECOND,
        resident_kib=memory["VmRSS"],
        anonymous_kib=memory["RssAnon"],
        file_backed_kib=memory["RssFile"],
        peak_resident_kib=memory["VmHWM"],
    )


def _stat_of(process: WatchedProcess) -> _Stat | None:
    stat = _read_stat(process.pid)
    return stat if stat is not None and stat.start_ticks == process.start_ticks else None


def resident_mib(pid: int) -> float:
    """The memory of a process now; 0 if it has ended."""
    return _read_memory(pid).get("VmRSS", 0) / 1024


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the command name, field 2, may contain anything, also parentheses and spaces.
    fields = text.rpartition(")")[2].split()
    return _Stat(
        start_ticks=int(fields[19]), user_ticks=int(fields[11]), system_ticks=int(fields[12])
    )


def _read_memory(pid: int) -> dict[str, int]:
    """The memory fields in KiB; empty for a process that is gone or a zombie."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    values = dict(line.split(":", 1) for line in lines)
    if any(field not in values for field in _MEMORY_FIELDS):
        return {}
    return {field: int(values[field].split()[0]) for field in _MEMORY_FIELDS}
