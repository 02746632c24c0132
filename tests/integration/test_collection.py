"""Real nodes with small history pools: they collect, use the freed space again, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bftfs.credentials import Credentials
from bftfs.crypto.keys import write_volume_key
from bftfs.envelope import REPLIES
from bftfs.errors import AdmissionRefused, NoLongerKept, QuorumUnavailable
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.limits import CLOCK_SKEW_US, MIB, SECOND_US
from bftfs.runtime import clock
from bftfs.runtime.blocking import BlockingNetwork
from mount.access import file_system
from mount.options import MountOptions
from tests.chaos.clock import Clock, build
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric

ROOT = Credentials(0, 0)
BLOCK = MIB
POOL_BYTES = 16 * MIB


class Mounted:
    """A client's file system, without a kernel."""

    def __init__(self, deployment: Deployment, number: int = 0, *, patience_s: float = 5.0) -> None:
        identity, description = deployment.clients[number], deployment.description
        self.network = BlockingNetwork(description, identity, decode=REPLIES.decode)
        self.files: FileSystem
        self.history: History
        self.files, self.history = file_system(
            deployment.directory, description, identity, MountOptions(patience_s=patience_s)
        )
        self.root = description.root

    def write(self, name: bytes, contents: bytes) -> None:
        """Replace what is at the beginning of a file, which may have to be made."""

        async def written() -> None:
            _, file = await self.files.create(self.root, name, 0o600, ROOT)
            self.files.write(file, 0, contents, now_ns=clock.now_us() * 1000)
            try:
                await self.files.flush(file)
            finally:
                await self.files.release(file)

        self.network.perform(written())

    def read(self, name: bytes, at_us: int | None = None) -> bytes:
        """The contents of a file, now or at a time."""
        files = self.files if at_us is None else self.history.at(at_us)

        async def contents() -> bytes:
            found = await files.lookup(self.root, name, ROOT)
            file = await files.open(found.identifier, os.O_RDONLY, ROOT)
            return bytes(await files.read(file, 0, BLOCK))

        return self.network.perform(contents())


@pytest.fixture
def time_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The wall clock of the nodes that are started from now on."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to set clocks: apt-get install build-essential")
    machine = Clock(build(tmp_path), tmp_path / "offset")
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    return machine


@pytest.fixture
def deployment(tmp_path: Path, time_machine: Clock) -> Iterator[Deployment]:
    """Six nodes with pools of 16 MiB each, and no more window than what clocks may differ by."""
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    deployment.describe(replace(deployment.description, window_us=0))
    write_volume_key(deployment.directory.volume_key, bytes(32))
    for number in deployment.nodes:
        deployment.node(number).configuration.write_text(f"pool_bytes = {POOL_BYTES}\n")
    deployment.start()
    yield deployment
    deployment.close()


def taken(deployment: Deployment, node: int = 0) -> float:
    """How much of a node's pool is taken."""
    return metric(deployment, "bftfs_pool_bytes", node) / POOL_BYTES


def collected(deployment: Deployment) -> list[bool]:
    """Which nodes have collected most of what was written."""
    return [metric(deployment, "bftfs_collected_blocks", each) > 30 for each in range(6)]


def test_a_full_pool_refuses_the_greedy_and_recovers(
    deployment: Deployment, time_machine: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, modest = Mounted(deployment), Mounted(deployment, 1)
    greedy.network.perform(greedy.files.format(ROOT, block_bytes=BLOCK))
    modest.write(b"mine", b"one")
    greedy.write(b"file", b"as it was")
    moment_us = clock.now_us()
    written = 0

    def flood() -> None:
        nonlocal written
        while written < 60:  # of which a pool holds about 45
            greedy.write(b"file", b"%d" % written + bytes(BLOCK - 9))
            written += 1

    with pytest.raises((AdmissionRefused, QuorumUnavailable)):  # refused; or slowed for too long
        flood()
    assert written > 35
    assert 0.88 < taken(deployment) < 1.0
    modest.write(b"mine", b"two")  # who is not greedy goes on
    assert modest.read(b"mine") == b"two"
    assert modest.read(b"file", moment_us) == b"as it was"  # the window still has it
    assert metric(deployment, "bftfs_collected_blocks") == 0

    ahead_us = CLOCK_SKEW_US + 100 * SECOND_US
    time_machine.step(ahead_us)
    real = clock.now_us
    monkeypatch.setattr(clock, "now_us", lambda: real() + ahead_us)
    # A node outside of the preferred quorum may not know the volume before it heals: it waits.
    await_that(lambda: sum(collected(deployment)) >= 5)
    await_that(lambda: sum(taken(deployment, each) < 0.85 for each in range(6)) >= 5)
    later = Mounted(deployment)
    later.write(b"file", b"written again")
    assert later.read(b"file").startswith(b"written again")
    assert later.read(b"mine") == b"two"
    with pytest.raises(NoLongerKept):
        later.read(b"file", moment_us)
    for each in (greedy, modest, later):
        each.network.close()
