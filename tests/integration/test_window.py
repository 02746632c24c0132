"""History younger than the detection window, attacked in every way by a client with a valid key.

The nodes are real ones that collect all they may: their pools are full. One cluster for all ways.
In the end some of its nodes are started again as ones that know no window, on the same stores, and
the same check finds that history is gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bftfs import limits
from bftfs.crypto.keys import write_volume_key
from bftfs.errors import PastUnknown
from bftfs.limits import MIB, SECOND_US
from bftfs.retention import Policy
from bftfs.runtime import clock
from tests.chaos.clock import Clock, build
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_collection import ROOT, Mounted
from tests.integration.test_node import metric

MINUTE_US = 60 * SECOND_US
WINDOW_US = 240 * MINUTE_US
# In minutes since the cluster was made. What is superseded at first is behind the window in the
# end, and lies in the half of the past that goes first; so does the attack, but within the window.
AS_IT_WAS, ATTACK, END = 10, 30, 250
POOL_BYTES = 16 * MIB
BLOCK = MIB
FORGETFUL = range(4)  # more than a block can lose


class Times:
    """The wall clock of the nodes and of the clients in this process."""

    def __init__(self, nodes: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self._nodes = nodes
        self._real = clock.now_us
        self._ahead_us = 0
        self.skew_us = 0  # of the clients alone
        monkeypatch.setattr(clock, "now_us", self.now_us)

    def now_us(self) -> int:
        """By a client's clock."""
        return self._real() + self._ahead_us + self.skew_us

    def pass_to(self, minutes: int) -> None:
        """So many minutes have passed."""
        self._ahead_us = minutes * MINUTE_US
        self._nodes.step(self._ahead_us)


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Times:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to set clocks: apt-get install build-essential")
    machine = Clock(build(tmp_path), tmp_path / "offset")
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    return Times(machine, monkeypatch)


@pytest.fixture
def deployment(tmp_path: Path, times: Times) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    deployment.describe(replace(deployment.description, window_us=WINDOW_US))
    write_volume_key(deployment.directory.volume_key, bytes(32))
    for number in deployment.nodes:
        deployment.node(number).configuration.write_text(f"pool_bytes = {POOL_BYTES}\n")
    deployment.start()
    yield deployment
    deployment.close()


# --- the ways -----------------------------------------------------------------------------------


def overwriting(attacker: Mounted, name: bytes) -> None:
    attacker.write(name, b"garbage" * 300)


def deleting(attacker: Mounted, name: bytes) -> None:
    attacker.network.perform(attacker.files.unlink(attacker.root, name, ROOT))


def truncating(attacker: Mounted, name: bytes) -> None:
    async def truncated() -> None:
        found = await attacker.files.lookup(attacker.root, name, ROOT)
        await attacker.files.truncate(found.identifier, 0, ROOT)

    attacker.network.perform(truncated())


def renaming_over(attacker: Mounted, name: bytes) -> None:
    attacker.write(b"other", b"other")
    files, root = attacker.files, attacker.root
    attacker.network.perform(files.rename(root, b"other", root, name, ROOT))


def filling_the_pool(attacker: Mounted, name: bytes) -> None:
    for number in range(20):
        attacker.write(name, b"%d" % number * 2_000)


def asking_for_retention_0(attacker: Mounted, name: bytes) -> None:
    async def asked() -> None:
        found = await attacker.files.lookup(attacker.root, name, ROOT)
        for each in (found.identifier, attacker.root):
            await attacker.history.set_retention(each, Policy(()), ROOT)

    attacker.network.perform(asked())
    overwriting(attacker, name)
    deleting(attacker, name)


def dated(skew_us: int) -> Callable[[Mounted, bytes, Times], None]:
    def attack(attacker: Mounted, name: bytes, times: Times) -> None:
        times.skew_us = skew_us
        overwriting(attacker, name)
        times.skew_us = 0

    return attack


WAYS: dict[bytes, Callable[[Mounted, bytes], None]] = {
    b"deleting": deleting,
    b"overwriting": overwriting,
    b"truncating": truncating,
    b"renaming over": renaming_over,
    b"filling the pool": filling_the_pool,
    b"asking for retention 0": asking_for_retention_0,
}
CLOCKS = {
    b"a clock that is behind": dated(-limits.CLOCK_SKEW_US + 10 * SECOND_US),
    b"a clock that is ahead": dated(limits.CLOCK_SKEW_US - 10 * SECOND_US),
}
CONTENTS = {name: name * 200 for name in (*WAYS, *CLOCKS)}


def flood(deployment: Deployment, attacker: Mounted) -> None:
    """Write until the pools are so full that nodes let go of whatever they may."""
    for number in range(100):
        attacker.write(b"flood", b"%d" % number + bytes(BLOCK - 9))
        if number >= 30 and metric(deployment, "bftfs_pool_bytes") > 0.87 * POOL_BYTES:
            return
    pytest.fail("this client may write more than the pools can hold")


def kept(deployment: Deployment, moment_us: int) -> set[bytes]:
    """The files that are as they were at that moment, seen by a client that knows nothing yet."""
    reader = Mounted(deployment)
    found = set()
    for name, contents in CONTENTS.items():
        try:
            if reader.read(name, moment_us) == contents:
                found.add(name)
        except PastUnknown:
            pass
    reader.network.close()
    return found


def collecting(deployment: Deployment, nodes: Iterable[int], least: int) -> int:
    """How many nodes have gone through all they have for want of room, and let that many go."""
    return sum(
        metric(deployment, "bftfs_collect_passes", node) > 0
        and metric(deployment, "bftfs_collect_pressed", node) > 0
        and metric(deployment, "bftfs_collected_blocks", node) >= least
        for node in nodes
    )


def test_no_client_destroys_what_the_window_keeps(deployment: Deployment, times: Times) -> None:
    owner, attacker = Mounted(deployment), Mounted(deployment, 1)
    owner.network.perform(owner.files.format(ROOT, block_bytes=BLOCK))
    for name, contents in CONTENTS.items():
        owner.write(name, contents)
    for number in range(3):  # of which two versions may go in the end
        owner.write(b"old", b"%d" % number + bytes(BLOCK // 4))
    times.pass_to(AS_IT_WAS)
    moment_us = times.now_us()

    times.pass_to(ATTACK)
    for name, attack in WAYS.items():
        attack(attacker, name)
    for name, attack_by_clock in CLOCKS.items():
        attack_by_clock(attacker, name, times)
    times.pass_to(END)
    await_that(lambda: not any(metric(deployment, "bftfs_possible_versions", n) for n in range(5)))
    flood(deployment, attacker)
    # A node outside of the preferred quorum may not know the volume before it heals: it waits.
    await_that(lambda: collecting(deployment, deployment.nodes, 2) >= 5)
    assert kept(deployment, moment_us) == set(CONTENTS)
    owner.write(b"mine", b"the owner works on")
    assert owner.read(b"mine") == b"the owner works on"

    # Must fail: nodes that know no window lose all of it.
    for node in FORGETFUL:
        deployment.kill(node)
    deployment.start(list(FORGETFUL), program=("tests.integration.forgetful_node",))
    await_that(lambda: collecting(deployment, FORGETFUL, len(CONTENTS)) >= 3)
    assert not kept(deployment, moment_us)
    for each in (owner, attacker):
        each.network.close()
