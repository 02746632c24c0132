"""A cluster of real node processes on Unix sockets, for tests and measurements."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bftfs import cluster, description_files
from bftfs.addresses import UnixAddress, parse_address
from bftfs.cluster import ClientEntry, ClusterDescription, Durability
from bftfs.crypto.keys import Identity, write_identity
from bftfs.data_directory import DataDirectory, NodeDirectory

PROJECT = Path(__file__).resolve().parents[2]
START_PATIENCE_S = 30.0
PATIENCE_S = 60.0  # with what happens in the background


def await_that(condition: Callable[[], bool]) -> None:
    """Wait until then. Fails after a long time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Deployment:
    """Six nodes (or as many as asked for), each a process, and the keys to talk to them."""

    def __init__(
        self,
        path: Path,
        *,
        module: str,
        nodes: int = 6,
        clients: int = 2,
        b: int = 1,
        durability: Durability = Durability.SYNC,
        addresses: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.directory = DataDirectory(path)
        self.clients = [Identity(os.urandom(32)) for _ in range(clients)]
        made = cluster.create(
            addresses or [f"unix:{self.directory.node(number).socket}" for number in range(nodes)],
            t=1,
            b=b,
            draw=os.urandom,
            durability=durability,
        )
        self.description: ClusterDescription = made.description
        for number, identity in enumerate(self.clients):
            self.description = self.description.with_client(
                ClientEntry(f"client{number}", identity.public_key)
            )
        self.administrator = made.administrator
        path.mkdir(exist_ok=True)
        self.describe(self.description)
        for number, identity in enumerate(made.nodes):
            self.node(number).path.mkdir(parents=True)
            write_identity(self.node(number).key, identity)
        self.identities = made.nodes
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.description_files: dict[int, Path] = {}  # of nodes that have their own

    def describe(self, description: ClusterDescription) -> None:
        """Sign another description of the cluster."""
        self.description = description
        description_files.store(self.directory.description, description, self.administrator)

    @property
    def nodes(self) -> range:
        """The numbers of the nodes."""
        return range(self.description.n)

    def node(self, number: int) -> NodeDirectory:
        """A node's files."""
        return self.directory.node(number)

    def start(self, numbers: Sequence[int] | None = None, *, program: Sequence[str] = ()) -> None:
        """Start nodes, all by default, and wait until they listen.

        `program` is a module and its first arguments, to be run instead of the usual one.
        """
        chosen = self.nodes if numbers is None else numbers
        for number in chosen:
            with self.node(number).log.open("ab") as log:
                self.processes[number] = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        *(program or (self.module,)),
                        "--data",
                        str(self.node(number).path),
                        "--cluster",
                        str(self.description_files.get(number, self.directory.description)),
                    ],
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        for number in chosen:
            self._await(number)

    def _await(self, number: int) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            if self._listens(self.description.members[number].address):
                return
            if self.processes[number].poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"node {number} did not start:\n{self.node(number).log.read_text()}"
                )
            time.sleep(0.01)

    @staticmethod
    def _listens(address: str) -> bool:
        where = parse_address(address)
        local = isinstance(where, UnixAddress)
        with socket.socket(socket.AF_UNIX if local else socket.AF_INET) as probe:
            try:
                probe.connect(where.path if local else (where.host, where.port))
            except OSError:
                return False
        return True

    def kill(self, number: int) -> None:
        """kill -9."""
        self.processes[number].send_signal(signal.SIGKILL)
        self.processes.pop(number).wait()

    def stop(self, number: int) -> int:
        """SIGTERM; the exit code."""
        process = self.processes.pop(number)
        process.terminate()
        return process.wait(timeout=30)

    def close(self) -> None:
        """Stop all nodes."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
