"""More nodes than may fail lose their last second in a power failure: the volume is not locked.

`tests/seams/test_power.py` tries it with every set of nodes. Here nodes and mounts are processes:
nodes are killed, and start again with what they had stored a moment before, on machines that have
ended meanwhile.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from bftfs.cluster import Durability
from bftfs.crypto.keys import write_identity, write_volume_key
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.watchdog import Watchdog
from tests.integration.deployment import PATIENCE_S, Deployment
from tests.integration.test_collection import Mounted
from tests.integration.test_protocols import ROOT

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

BACK = (2, 3, 4, 5)  # more than t; two know what was made last
LIAR = 1  # one of these two
LYING = ("tests.lying_node", "sync-liar,history-forger,lives-liar")
KEPT = "what was there before"


def copy_of(deployment: Deployment, node: int, target: Path) -> None:
    """What a node has stored, as it is at some moment."""
    process = deployment.processes[node]
    process.send_signal(signal.SIGSTOP)
    try:
        shutil.copytree(deployment.node(node).store, target)
    finally:
        process.send_signal(signal.SIGCONT)


def lose_power(deployment: Deployment, copies: dict[int, Path], liars: tuple[int, ...]) -> None:
    """All machines end, and start again; these nodes have lost what is not in their copies."""
    for node in deployment.nodes:
        deployment.kill(node)
        deployment.node(node).unsynced.write_text("an earlier run of the machine\n")
    for node, copy in copies.items():
        shutil.rmtree(deployment.node(node).store)
        copy.rename(deployment.node(node).store)
    deployment.start([node for node in deployment.nodes if node not in liars])
    deployment.start(liars, program=LYING)


@pytest.mark.parametrize("liars", [(), (LIAR,)])
def test_the_volume_goes_on_after_a_power_failure(
    mounting: None, playground: Path, watchdog: Watchdog, guarded: None, liars: tuple[int, ...]
) -> None:
    """Also beside one of the two that know what was made last, if it lies from then on."""
    playground = playground / f"power-{len(liars)}"
    playground.mkdir()
    cluster = Cluster(playground / "cluster")
    deployment = Deployment(cluster.data, module="nodes", durability=Durability.INTERVAL)
    write_volume_key(deployment.directory.volume_key, bytes(32))
    deployment.directory.client_key("any").parent.mkdir()
    for number, identity in enumerate(deployment.clients):
        write_identity(deployment.directory.client_key(f"client{number}"), identity)
    copies = {node: playground / f"copy-{node}" for node in BACK}
    try:
        deployment.start()
        with cluster.mount(playground / "mount", "client=client0") as mount:
            (mount / "kept").write_text(KEPT)
            for node, copy in copies.items():
                copy_of(deployment, node, copy)
            for number in range(3):
                (mount / f"directory-{number}").mkdir()
            lose_power(deployment, copies, liars)
            other = Mounted(deployment, 1, patience_s=PATIENCE_S)
            with other.network:
                other.network.perform(other.files.make_directory(other.root, b"new", 0o700, ROOT))
            (mount / "newer").mkdir()
            assert {"new", "newer", "kept"} <= {path.name for path in mount.iterdir()}
            assert (mount / "kept").read_text() == KEPT
    finally:
        deployment.close()
