"""Real node processes for a scenario, and a client of them without a mount.

The nodes are those of `bftfs up`, in a temporary directory, and end with the scenario.  What they
cost is read from /proc before and after a phase.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

import lmdb

from benchmarks.errors import BenchmarkError, WorkloadError
from benchmarks.measurement import Measure
from benchmarks.processes import ProcessWatch, WatchedProcess
from benchmarks.session import Phase, Place, Session
from bftfs.addresses import UnixAddress, parse_address
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cli.local_cluster import create_cluster, local_addresses, smallest_cluster
from bftfs.cluster import ClusterDescription, Durability
from bftfs.conversation import Conversation, Receive, Send
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory
from bftfs.envelope import REPLIES, HealthReply, HealthRequest
from bftfs.errors import BftfsError
from bftfs.filesystem import object_types
from bftfs.identifiers import NodeId
from bftfs.query_update.client import QueryUpdateClient
from bftfs.read_write.client import ReadWriteClient
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.storage import Table

ROOT = Credentials(uid=0, gid=0)

PROJECT = Path(__file__).resolve().parent.parent
_START_PATIENCE_S = 60.0
_STOP_PATIENCE_S = 30.0
_SILENCE_US = 60_000_000  # after which an operation has failed
_HEALTH_PATIENCE_US = 5_000_000

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class System:
    """How many faults are tolerated, and how many of those may be lies."""

    t: int
    b: int

    @classmethod
    def parse(cls, text: str) -> "System":
        """From `T` (all of them may be lies) or `T,B`."""
        t, separator, b = text.partition(",")
        numbers = (t, b) if separator else (t, t)
        if not all(number.isdecimal() for number in numbers):
            raise BenchmarkError(f"--faults {text}: expected T or T,B, for example 1 or 2,1")
        system = cls(*map(int, numbers))
        if system.b > system.t:
            raise BenchmarkError(f"--faults {text}: of {t} faults, {b} cannot be lies")
        return system

    @property
    def n(self) -> int:
        """The fewest nodes that both protocols need."""
        return smallest_cluster(t=self.t, b=self.b)

    def __str__(self) -> str:
        return f"t={self.t} b={self.b} n={self.n}"


class Deployment:
    """The nodes of one cluster, each a process."""

    def __init__(
        self,
        path: Path,
        system: System,
        durability: Durability,
        clients: Mapping[str, Grant] | None = None,
        configuration: str = "",
    ) -> None:
        """`configuration` is the text of every node's `node.toml`."""
        self.system = system
        self.directory = DataDirectory(path)
        self.description: ClusterDescription = create_cluster(
            self.directory,
            local_addresses(self.directory, system.n),
            t=system.t,
            b=system.b,
            durability=durability,
            clients=clients,
        )
        for member in self.description.members:
            self.directory.node(member.node).configuration.write_text(configuration)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._programs: Mapping[int, Sequence[str]] = {}

    def start(self, programs: Mapping[int, Sequence[str]]) -> None:
        """Start all nodes, and wait until they listen.

        `programs` names those that are not run by `python -m nodes`: what stands behind `python`
        and before the options.
        """
        self._programs = programs
        self._processes = [self._launched(each.node) for each in self.description.members]
        deadline = time.monotonic() + _START_PATIENCE_S
        for number in range(self.description.n):
            self._await(number, deadline)

    def _launched(self, number: NodeId) -> subprocess.Popen[bytes]:
        node = self.directory.node(number)
        with node.log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    *self._programs.get(number, ("-m", "nodes")),
                    *("--data", str(node.path), "--cluster", str(self.directory.description)),
                ],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, number: int) -> None:
        """SIGKILL one node."""
        self._processes[number].kill()
        self._processes[number].wait()

    def restart(self, number: int) -> None:
        """Start one again that was killed, and wait until it listens."""
        self._processes[number] = self._launched(NodeId(number))
        self._await(number, time.monotonic() + _START_PATIENCE_S)

    def _await(self, number: int, deadline: float) -> None:
        address = parse_address(self.description.members[number].address)
        assert isinstance(address, UnixAddress)
        while True:
            with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
                probe.connect(address.path)
                return
            if self._processes[number].poll() is not None or time.monotonic() > deadline:
                log = self.directory.node(NodeId(number)).log.read_text(errors="replace")
                raise BenchmarkError(f"node {number} did not start: {log[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and wait for the ends."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def stored_bytes(self) -> int:
        """The bytes that all nodes together have stored, to a page.

        They are stopped for it, which brings everything from their journals to their stores, and
        started again: clients have to connect anew.
        """
        self.stop()
        stored = sum(
            _occupied_bytes(self.directory.node(member.node).store)
            for member in self.description.members
        )
        self.start(self._programs)
        return stored

    @property
    def pids(self) -> list[int]:
        """The processes, in the order of the nodes."""
        return [process.pid for process in self._processes]

    @contextmanager
    def operations(
        self,
        session: Session,
        place: Place,
        name: str,
        measure: Measure,
        *,
        count: int,
        asked: int,
        client: int | None = None,
    ) -> Iterator[Phase]:
        """A phase of `count` operations, each served by `asked` nodes, and what one costs.

        `client` is the process of the client, by default this one.
        """
        watched = [WatchedProcess.parse(f"node={pid}") for pid in self.pids]
        watched.append(WatchedProcess.parse(f"client={client or os.getpid()}"))
        with session.phase(place, name, measure, amount=count) as phase:
            watch = ProcessWatch(watched)
            yield phase
            *nodes, asking = watch.finish()
            if not all(node.alive for node in nodes):
                raise WorkloadError("a node has ended")
            servers_us = sum(node.cpu_s for node in nodes) / count * 1e6
            phase.details |= {
                "client_cpu_us": round(asking.cpu_s / count * 1e6, 1),
                "client_system_us": round(asking.system_s / count * 1e6, 1),
                "server_cpu_us": round(servers_us / asked, 1),
                "server_system_us": round(
                    sum(node.system_s for node in nodes) / asked / count * 1e6, 1
                ),
                "all_servers_cpu_us": round(servers_us, 1),
                "largest_node_mib": round(max(node.resident_kib for node in nodes) / 1024, 1),
            }


@contextmanager
def deployed(
    system: System,
    durability: Durability,
    *,
    below: Path | None = None,
    programs: Mapping[int, Sequence[str]] | None = None,
    clients: Mapping[str, Grant] | None = None,
    configuration: str = "",
) -> Iterator[Deployment]:
    """Nodes that run as long as the body does, with their data in a directory that then goes."""
    # A socket's path is short: the directory's name has to be.
    with tempfile.TemporaryDirectory(prefix="nodes-", dir=below) as directory:
        deployment = Deployment(Path(directory), system, durability, clients, configuration)
        try:
            deployment.start(programs or {})
            yield deployment
        finally:
            deployment.stop()


class Client:
    """A client of both protocols; what it knows of objects and blocks is its own."""

    def __init__(self, deployment: Deployment) -> None:
        description = deployment.description
        identity = read_identity(deployment.directory.client_key(DEFAULT_CLIENT))
        name = client_id_of(public_key=identity.public_key)
        self.description = description
        self._network = BlockingNetwork(description, identity, decode=REPLIES.decode)
        peers = Peers(ThresholdQuorums(description.query_update))
        self.objects = QueryUpdateClient(name, peers, object_types(), patience_total_us=_SILENCE_US)
        self.blocks = ReadWriteClient(
            name, description.read_write, peers, patience_total_us=_SILENCE_US
        )

    def perform(
        self,
        operations: Iterable[Callable[[], Conversation[Result]]],
        *,
        in_flight: int = 1,
        latencies_ns: list[int] | None = None,
    ) -> list[Result]:
        """Their results, in order; how long each took, from its own start on, in `latencies_ns`."""
        taken = [] if latencies_ns is None else latencies_ns
        try:
            return self._network.perform_many(
                (_timed(operation, taken) for operation in operations), in_flight=in_flight
            )
        except BftfsError as error:
            raise WorkloadError(str(error)) from error

    def used_bytes(self) -> list[int]:
        """How much each node has stored, as it says itself."""
        return self.perform(partial(_used_bytes, m.node) for m in self.description.members)

    def close(self) -> None:
        """End all connections."""
        self._network.close()


@contextmanager
def client_of(deployment: Deployment) -> Iterator[Client]:
    """A client with open connections, for the body."""
    client = Client(deployment)
    try:
        client.used_bytes()
        yield client
    finally:
        client.close()


def note_shared_machine(session: Session) -> None:
    """For figures that stand beside those of a source with many machines."""
    session.note(
        f"All nodes and clients share the {len(os.sched_getaffinity(0))} processors of one machine;"
        " in the source each had a machine of its own."
    )


def _occupied_bytes(store: Path) -> int:
    """The pages of a store's tables; those that LMDB keeps for later are none."""
    with lmdb.open(str(store), max_dbs=len(Table), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            names = [bytes(key) for key, _ in transaction.cursor()]
        databases = [environment.open_db(name, create=False) for name in names]
        with environment.begin() as transaction:
            found = [transaction.stat(database) for database in databases]
    return sum(
        (each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"]) * each["psize"]
        for each in found
    )


async def _timed(operation: Callable[[], Any], latencies_ns: list[int]) -> Any:
    started = perf_counter_ns()
    result = await operation()
    latencies_ns.append(perf_counter_ns() - started)
    return result


async def _used_bytes(node: NodeId) -> int:
    await Send(node, HealthRequest())
    delivery = await Receive(_HEALTH_PATIENCE_US)
    if delivery is None or not isinstance(delivery.message, HealthReply):
        raise BftfsError(f"node {node} does not say how it is")
    return delivery.message.used_bytes
