"""A cluster and its mounts, as a user of the command line has them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.watchdog import PROJECT, mounts_below

COMMAND_TIMEOUT_S = 120


class CommandFailed(AssertionError):
    """A `bftfs` command ended with an error; says everything that it printed."""


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A line of `bftfs status`."""

    number: int
    pid: int
    address: str
    healthy: bool


def bftfs(*words: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    """Run `bftfs` with these words, to one of the allowed exit codes; what it printed."""
    command = [sys.executable, "-m", "bftfs", *map(str, words)]
    try:
        finished = subprocess.run(
            command,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(command[2:])}: no end after {error.timeout} s") from error
    if finished.returncode not in allowed:
        raise CommandFailed(
            f"{' '.join(command[2:])}: exit code {finished.returncode}\n"
            f"{finished.stdout}{finished.stderr}"
        )
    return finished.stdout


class Cluster:
    """`bftfs up`, `down`, `status`, `mount` and `unmount` for one data directory."""

    def __init__(self, root: Path) -> None:
        self.data = root / "data"
        self.mountpoint = root / "files"
        root.mkdir(mode=0o755)
        root.chmod(0o755)

    def up(self) -> None:
        """Start what is not running, and mount what is not mounted."""
        bftfs("up", "--data", self.data, "--mount", self.mountpoint, "-o", "allow_other")
        assert self.mountpoint in mounts_below(self.mountpoint), "`up` has mounted nothing"

    def down(self) -> None:
        """Unmount and stop everything, if anything was ever started."""
        if self.data.exists():
            bftfs("down", "--data", self.data)

    def nodes(self) -> list[NodeProcess]:
        """The nodes, and their processes; a node that does not run has pid 0."""
        return [
            NodeProcess(
                number=node["node"],
                pid=node["pid"] or 0,
                address=node["address"],
                healthy=node["healthy"],
            )
            for node in self._status()["nodes"]
        ]

    def mount_pids(self, mountpoint: Path | None = None) -> list[int]:
        """The processes behind the mounts; or behind this one."""
        return [
            mount["pid"]
            for mount in self._status()["mounts"]
            if mountpoint is None or Path(mount["mountpoint"]) == mountpoint
        ]

    def _status(self) -> dict[str, list[dict[str, Any]]]:
        status: dict[str, list[dict[str, Any]]]
        # 1 when more nodes are down than the cluster tolerates.
        status = json.loads(bftfs("status", "--data", self.data, "--json", allowed=(0, 1)))
        return status

    def is_alive(self) -> bool:
        """Whether the mount answers."""
        try:
            os.statvfs(self.mountpoint)
        except OSError:
            return False
        return self.mountpoint in mounts_below(self.mountpoint)

    @contextlib.contextmanager
    def mount(self, mountpoint: Path, options: str = "") -> Iterator[Path]:
        """A further mount of the cluster."""
        mountpoint.mkdir(mode=0o755, exist_ok=True)
        words = ["-o", f"allow_other,{options}" if options else "allow_other"]
        bftfs("mount", "--data", self.data, mountpoint, *words)
        try:
            yield mountpoint
        finally:
            if mountpoint in mounts_below(mountpoint):
                bftfs("unmount", mountpoint)


def kill(*pids: int) -> None:
    """kill -9, and wait until the processes are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some survive kill -9"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether the process can still do something; a zombie cannot."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
