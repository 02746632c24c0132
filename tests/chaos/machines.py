"""A cluster and its mounts on machines of their own, as processes that can be made to suffer."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bftfs import description_files
from bftfs.cli.local_cluster import with_new_client
from bftfs.credentials import Grant
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DataDirectory, NodeDirectory
from tests.chaos.clock import Clock
from tests.chaos.network import Network
from tests.chaos.wire import address
from tests.end_to_end import linux
from tests.end_to_end.cluster import bftfs
from tests.end_to_end.watchdog import PROJECT, mounts_below

PORT = 7411
START_PATIENCE_S = 40.0
DISK_BYTES = 1 << 29
_RESTART_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """A node's process that ended by itself."""

    node: int
    code: int  # negative: the signal
    log: str  # what it had logged in that life

    @property
    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.strip().splitlines()
        return lines[-1] if lines else ""

    def __str__(self) -> str:
        how = f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"node {self.node} ended by itself ({how}): {self.last_words}"


class NodeMachine:
    """One node: its network, its disk, its clock, its process."""

    def __init__(self, number: int, network: Network, data: Path, clock: Clock) -> None:
        self.number = number
        self.directory = NodeDirectory(data / "nodes" / str(number))
        self.clock = clock
        self.endings: list[Ending] = []
        self.lies: tuple[str, ...] = ()  # of the adversaries that take it over at its next start
        self._network = network
        self._description = data / "cluster.toml"
        self._log = self.directory.log  # where `bftfs up` has it: on the disk that fills
        self._process: subprocess.Popen[bytes] | None = None
        self._born_at = 0  # where its present life begins in the log
        self._restart_at = 0.0

    def mount_disk(self) -> None:
        """Give the node a small disk of its own; what is in its directory goes there."""
        key = self.directory.key.read_bytes()
        subprocess.run(
            [
                *("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700"),
                *("disk", str(self.directory.path)),
            ],
            check=True,
            timeout=30,
        )
        self.directory.key.write_bytes(key)
        self.directory.key.chmod(0o600)

    def start(self) -> None:
        """Start its process."""
        self._restart_at = 0.0
        program = ["tests.lying_node", ",".join(self.lies)] if self.lies else ["nodes"]
        self._born_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(*self._network.inside(self.number), sys.executable, "-m", *program),
                    *("--data", str(self.directory.path), "--cluster", str(self._description)),
                ],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.clock.environment},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether its process lives and serves."""
        return self.running and '"event": "ready"' in self.log

    @property
    def refuses(self) -> bool:
        """Whether it refused to start with the store that it found."""
        return not self.running and "store cannot be used" in self.log

    def settle(self) -> bool:
        """Wait until its present process serves or has ended; whether it serves."""
        deadline = time.monotonic() + START_PATIENCE_S
        while self.running and not self.ready and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.ready

    @property
    def log(self) -> str:
        """What its present process has logged."""
        with self._log.open("rb") as file:
            file.seek(self._born_at)
            return file.read().decode(errors="replace")

    @property
    def whole_log(self) -> str:
        """What all of its processes have logged."""
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send its process a signal, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def supervise(self) -> None:
        """Restart it if it ended by itself, as the supervisor of a machine does."""
        process = self._process
        if process is None or process.poll() is None:
            return
        if not self._restart_at:
            self.endings.append(Ending(self.number, process.returncode, self.log))
            self._restart_at = time.monotonic() + _RESTART_EVERY_S
        elif time.monotonic() > self._restart_at:
            self._restart_at = 0.0
            self.start()


class MountMachine:
    """One mount: its network, its mountpoint, its process."""

    def __init__(
        self,
        machine: int,
        network: Network,
        data: Path,
        root: Path,
        clock: Clock,
        *,
        name: str,
        strict: bool,
    ) -> None:
        self.clock = clock
        self.machine = machine
        self.name = name
        self.strict = strict
        self.point = root / name
        self._network = network
        self._data = data
        self._log = root / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.point.mkdir()
        self._log.touch()

    def start(self) -> None:
        """Mount; returns once it is usable."""
        begun = len(self.log)
        consistency = "strict" if self.strict else "close-to-open"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(*self._network.inside(self.machine), sys.executable, "-P", "-m", "mount"),
                    *("--data", str(self._data), str(self.point), "--foreground"),
                    *("-o", f"{consistency},client={self.name}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.clock.environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_PATIENCE_S
        while ": mounted" not in self.log[begun:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not mount: {self._log.read_text()}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9; what uses the mount gets errors from then on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, patience_s: float) -> bool:
        """Unmount, with dirty data written; whether that came to an end."""
        process, self._process = self._process, None
        if process is None:
            return True
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None


class Machines:
    """All of them."""

    _numbers = itertools.count(1)

    def __init__(
        self, root: Path, library: Path, *, t: int, b: int, mounts: Sequence[bool], seed: int
    ) -> None:
        """`mounts` says of each mount whether it is strict."""
        self.root = root
        self.data = root / "data"
        self.t, self.b = t, b
        self._library = library
        nodes = 3 * t + 2 * b + 1
        self.network = Network(
            f"chaos{os.getpid() % 100_000}-{next(self._numbers)}-",
            nodes + len(mounts) + 1,
            seed=seed,
        )
        self.nodes = [
            NodeMachine(
                number,
                self.network,
                self.data,
                Clock(library, root / f"clock-{number}"),
            )
            for number in range(nodes)
        ]
        self.mounts = [
            self._mount(nodes + place, f"mount-{place}", strict=strict)
            for place, strict in enumerate(mounts)
        ]
        self.auditor = self._mount(nodes + len(mounts), "auditor", strict=True)

    def _mount(self, machine: int, name: str, *, strict: bool) -> MountMachine:
        clock = Clock(self._library, self.root / f"clock-{name}")
        return MountMachine(
            machine, self.network, self.data, self.root, clock, name=name, strict=strict
        )

    def start(self) -> None:
        """Connect the machines, make a cluster, start its nodes, and mount it."""
        self.network.build()
        addresses = [("--node", f"tcp:{address(node.number)}:{PORT}") for node in self.nodes]
        bftfs(
            *("cluster", "init", "--data", self.data, "--b", str(self.b), "--t", str(self.t)),
            *itertools.chain.from_iterable(addresses),
        )
        self._admit_mounts()
        for node in self.nodes:
            node.mount_disk()
            node.start()
        deadline = time.monotonic() + START_PATIENCE_S
        while not all(node.ready for node in self.nodes):
            assert time.monotonic() < deadline, "the nodes do not start"
            time.sleep(0.05)
        for mount in self.mounts:
            mount.start()

    def _admit_mounts(self) -> None:
        """Give each mount a key, as `bftfs cluster add-client --any-uid` does.

        That command tells the nodes, and no node runs yet: it would wait for them for seconds.
        """
        directory = DataDirectory(self.data)
        description = description_files.load(directory.description)
        for mount in (*self.mounts, self.auditor):
            description = with_new_client(directory, description, mount.name, Grant(), None)
        administrator = read_identity(directory.administrator_key)
        description_files.store(directory.description, description, administrator)

    def supervise(self) -> None:
        """Restart the nodes that ended by themselves."""
        for node in self.nodes:
            node.supervise()

    def status(self) -> dict[str, Any]:
        """`bftfs status`, asked from the auditor's machine."""
        finished = subprocess.run(
            [
                *(*self.network.inside(self.auditor.machine), sys.executable, "-m", "bftfs"),
                *("status", "--data", str(self.data), "--client", self.auditor.name, "--json"),
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode in (0, 1), finished.stderr
        status: dict[str, Any] = json.loads(finished.stdout)
        return status

    def tear_down(self) -> None:
        """End and unmount everything."""
        for mount in (*self.mounts, self.auditor):
            mount.kill()
        for node in self.nodes:
            node.kill()
            if node.directory.log.exists():
                shutil.copy(node.directory.log, self.root / f"node-{node.number}.log")
        for point in mounts_below(self.root):
            with contextlib.suppress(OSError):
                linux.unmount(point, linux.MNT_FORCE | linux.UMOUNT_NOFOLLOW | linux.MNT_DETACH)
        self.network.tear_down()
        shutil.rmtree(self.data, ignore_errors=True)
