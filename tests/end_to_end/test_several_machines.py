"""A cluster over several machines: each node and the client has a network namespace of its own.

What an administrator does by hand is done here: describe the cluster, copy to each machine what it
needs and no more, start the nodes, give a client a key, mount.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.cluster import bftfs, kill
from tests.end_to_end.expectations import assert_contents, payload, unavailable
from tests.end_to_end.watchdog import PROJECT, Watchdog, mounts_below

NODES = 6
PORT = 7411
_networks = itertools.count(1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@dataclass(slots=True)
class Machines:
    """One bridge, and behind it one namespace per node and one for the client."""

    prefix: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def client(self) -> str:
        return f"{self.prefix}client"

    def node(self, number: int) -> str:
        return f"{self.prefix}n{number}"

    @staticmethod
    def address(position: int) -> str:
        return f"10.77.0.{position + 1}"

    @property
    def names(self) -> list[str]:
        return [*(self.node(number) for number in range(NODES)), self.client]

    def build(self) -> None:
        bridge = f"{self.prefix}br"
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "hub", "type", "bridge")
        ip("-n", bridge, "link", "set", "hub", "up")
        for position, name in enumerate(self.names):
            ip("netns", "add", name)
            ip(
                *("-n", name, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", f"port{position}", "netns", bridge),
            )
            ip("-n", name, "addr", "add", f"{self.address(position)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", bridge, "link", "set", f"port{position}", "master", "hub", "up")

    def tear_down(self) -> None:
        kill(*(process.pid for process in self.started))
        for process in self.started:
            process.wait()
        for name in [*self.names, f"{self.prefix}br"]:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)

    def unplug(self, name: str) -> None:
        ip("-n", name, "link", "set", "eth0", "down")

    def command(self, name: str, *words: str | Path) -> list[str]:
        """`bftfs …` with that machine's network but our mounts, which `ip netns exec` hides."""
        return [
            *("nsenter", f"--net=/run/netns/{name}", "--"),
            *(sys.executable, "-m", "bftfs", *map(str, words)),
        ]

    def run(self, name: str, *words: str | Path) -> str:
        finished = subprocess.run(
            self.command(name, *words),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert finished.returncode == 0, f"{words}: {finished.stdout}{finished.stderr}"
        return finished.stdout

    def start(self, name: str, *words: str | Path, log: Path) -> None:
        with log.open("ab") as output:
            self.started.append(
                subprocess.Popen(
                    self.command(name, *words),
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )


@pytest.fixture
def machines(mounting: None) -> Iterator[Machines]:
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        unavailable("needs `ip` (Debian package iproute2) and `nsenter` (util-linux)")
    machines = Machines(f"bft{os.getpid() % 10000}-{next(_networks)}-")
    try:
        machines.build()
    except subprocess.CalledProcessError as error:
        machines.tear_down()
        unavailable(f"network namespaces cannot be made: {error.stderr.decode().strip()}")
    try:
        yield machines
    finally:
        machines.tear_down()


@pytest.mark.timeout(180, func_only=True)
def test_nodes_and_client_on_machines_of_their_own(
    machines: Machines, outside: Path, playground: Path, watchdog: Watchdog
) -> None:
    office = outside / "office"
    addresses = [f"tcp:{machines.address(number)}:{PORT}" for number in range(NODES)]
    bftfs(
        *("cluster", "init", "--data", office, "--b", "1"),
        *itertools.chain.from_iterable(("--node", address) for address in addresses),
    )
    # No node runs yet: so none hears of it.
    alice = ("--data", office, "alice", "--any-uid")
    bftfs("cluster", "add-client", *alice, allowed=(1,))

    # Each node's machine gets its own directory and the signed description, and nothing else.
    for number in range(NODES):
        machine = outside / f"machine{number}"
        shutil.copytree(office / "nodes" / str(number), machine / "node")
        for name in ("cluster.toml", "cluster.toml.sig"):
            shutil.copy2(office / name, machine / name)
        machines.start(
            machines.node(number),
            *("node", "run", "--data", machine / "node", "--cluster", machine / "cluster.toml"),
            log=machine / "log",
        )

    # The client's machine gets the description, its key and the volume key.
    laptop = outside / "laptop"
    (laptop / "clients").mkdir(parents=True)
    for name in ("cluster.toml", "cluster.toml.sig", "volume.key", "clients/alice.key"):
        shutil.copy2(office / name, laptop / name)
    _wait_for_nodes(machines, laptop)
    mountpoint = playground / "several-machines"
    mountpoint.mkdir()
    machines.run(
        machines.client, "mount", "--data", laptop, mountpoint, "-o", "client=alice,allow_other"
    )
    with watchdog.guard(150, "several machines"):
        try:
            (mountpoint / "file").write_bytes(payload(300_000))
            assert_contents(mountpoint / "file", payload(300_000))
            # One machine drops off the network: work goes on.
            machines.unplug(machines.node(2))
            (mountpoint / "directory").mkdir()
            (mountpoint / "directory" / "after").write_bytes(payload(200_000))
            assert_contents(mountpoint / "file", payload(300_000))
            assert_contents(mountpoint / "directory" / "after", payload(200_000))
        finally:
            if mountpoint in mounts_below(mountpoint):
                machines.run(machines.client, "unmount", mountpoint)


def _wait_for_nodes(machines: Machines, laptop: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        finished = subprocess.run(
            machines.command(
                machines.client, "status", "--data", laptop, "--client", "alice", "--json"
            ),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if finished.returncode == 0 and finished.stdout.count('"up": true') == NODES:
            return
        assert time.monotonic() < deadline, finished.stdout + finished.stderr
