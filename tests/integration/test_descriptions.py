"""Node processes on several machines, one of which has old files."""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bftfs import cluster
from bftfs.asking.refusal import Refused
from bftfs.cli.status import descriptions, node_states
from bftfs.crypto.keys import write_identity
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.runtime.blocking import BlockingNetwork
from tests.integration.counting import Counted, Fetch, ask
from tests.integration.deployment import Deployment

Connect = Callable[..., BlockingNetwork]
OLD = NodeId(3)  # the node whose files are old
PATIENCE_S = 30


def bring(deployment: Deployment, source: Path) -> None:
    """Copy a description and its signature to the machine of node 3."""
    target = deployment.description_files[OLD]
    for name in (lambda path: path, cluster.signature_path):
        shutil.copy(name(source), name(target))


def reasons(network: BlockingNetwork) -> str:
    health, _ = network.perform(ask(OLD, HealthRequest()))
    assert isinstance(health, HealthReply)
    return " ".join(health.reasons)


def reached(network: BlockingNetwork, told: Callable[[str], bool]) -> str:
    """What node 3 says of itself once that is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not told(said := reasons(network)):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    return said


def fetched(deployment: Deployment, connect: Connect, client: int) -> Any:
    answer, _ = connect(deployment, client).perform(ask(OLD, Fetch(b"c")))
    return answer


def test_a_node_with_old_files_says_so_and_admits_nobody_again(
    counting: Deployment, connect: Connect, tmp_path: Path
) -> None:
    """Client 1 is revoked, and the files are not copied to the machine of node 3 at first."""
    (tmp_path / "machine").mkdir()
    counting.description_files[OLD] = tmp_path / "machine" / "cluster.toml"
    bring(counting, counting.directory.description)
    (tmp_path / "backup").mkdir()
    backup = tmp_path / "backup" / "cluster.toml"
    for name in (lambda path: path, cluster.signature_path):
        shutil.copy(name(counting.directory.description), name(backup))
    client_key = counting.directory.client_key("client0")
    client_key.parent.mkdir()
    write_identity(client_key, counting.clients[0])
    counting.describe(counting.description.without_client("client1"))
    counting.start()
    network = connect(counting, 0)
    assert fetched(counting, connect, 1) == Counted(0), "it does not know better"

    # Its peers know: it says so of itself, and `status` says so of it.
    said = reached(network, lambda said: "older than its peers'" in said)
    assert "copy cluster.toml and cluster.toml.sig" in said
    states = node_states(counting.directory, counting.description, client="client0")
    assert any("node 3 has number 2" in line for line in descriptions(counting.description, states))

    bring(counting, counting.directory.description)
    counting.processes[OLD].send_signal(signal.SIGHUP)
    reached(network, lambda said: "older" not in said)
    states = node_states(counting.directory, counting.description, client="client0")
    assert descriptions(counting.description, states) == []
    refused = fetched(counting, connect, 1)
    assert isinstance(refused, Refused)
    assert refused.code == errno.EACCES

    # The old files come back: while it runs, and at its next start.
    bring(counting, backup)
    counting.processes[OLD].send_signal(signal.SIGHUP)
    reached(network, lambda said: "is not used" in said)
    assert isinstance(fetched(counting, connect, 1), Refused)
    counting.stop(OLD)
    counting.start([OLD])
    assert isinstance(fetched(counting, connect, 1), Refused)
    assert fetched(counting, connect, 0) == Counted(0)
    assert "is not used" in reached(network, lambda said: "not used" in said)
