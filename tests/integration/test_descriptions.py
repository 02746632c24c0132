"""Node processes on several machines, one of which has old files."""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from bftfs import description_files
from bftfs.asking.refusal import Refused
from bftfs.cli.main import program
from bftfs.cli.status import descriptions, node_states
from bftfs.crypto.keys import write_identity, write_volume_key
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
    for name in (lambda path: path, description_files.signature_path):
        shutil.copy(name(source), name(target))


def fetched(deployment: Deployment, connect: Connect, client: int) -> Any:
    answer, _ = connect(deployment, client).perform(ask(OLD, Fetch(b"c")))
    return answer


def test_a_node_with_old_files_hears_from_its_peers_and_admits_nobody_again(
    counting: Deployment, connect: Connect, tmp_path: Path
) -> None:
    """Client 1 is revoked, and nobody brings the new files to the machine of node 3."""
    (tmp_path / "machine").mkdir()
    counting.description_files[OLD] = tmp_path / "machine" / "cluster.toml"
    bring(counting, counting.directory.description)
    (tmp_path / "backup").mkdir()
    backup = tmp_path / "backup" / "cluster.toml"
    for name in (lambda path: path, description_files.signature_path):
        shutil.copy(name(counting.directory.description), name(backup))
    for key, identity in (
        (counting.directory.client_key("client0"), counting.clients[0]),
        (counting.directory.administrator_key, counting.administrator),
    ):
        key.parent.mkdir(exist_ok=True)
        write_identity(key, identity)
    counting.describe(counting.description.without_client("client1", at_s=7))
    counting.start()
    network = connect(counting, 0)
    assert fetched(counting, connect, 1) == Counted(0), "it does not know better"

    deadline = time.monotonic() + PATIENCE_S
    while not isinstance(fetched(counting, connect, 1), Refused):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    refused = fetched(counting, connect, 1)
    assert isinstance(refused, Refused)
    assert refused.code == errno.EACCES
    states = node_states(counting.directory, counting.description, client="client0")
    assert descriptions(counting.description, states) == []

    # The old files come back: while it runs, and at its next start.
    bring(counting, backup)
    counting.processes[OLD].send_signal(signal.SIGHUP)
    assert isinstance(fetched(counting, connect, 1), Refused)
    counting.stop(OLD)
    counting.start([OLD])
    assert isinstance(fetched(counting, connect, 1), Refused)
    assert fetched(counting, connect, 0) == Counted(0)
    health, _ = network.perform(ask(OLD, HealthRequest()))
    assert isinstance(health, HealthReply)
    assert (health.healthy, health.description_serial) == (True, counting.description.serial)

    # From one command all nodes hear, node 3 among them, whose files are still old.
    counting.stop(5)
    data = ("--data", str(counting.directory.path))
    write_volume_key(counting.directory.volume_key, bytes(32))
    said = CliRunner().invoke(program, ["cluster", "revoke-client", "client0", *data])
    left = description_files.load(counting.directory.description).clients
    assert said.output == (
        f"Key epoch 1 begins: the clients that are left ({len(left)}) get its key from the nodes, "
        "and write with it from then on.\n"
        "Client client0 may not connect any more.\n"
        "Nodes 0, 1, 2, 3, 4 have cut it off.\n"
        "Node 5 does not run here, and reads it when started.\n"
    )
    assert said.exit_code == 0
    assert isinstance(fetched(counting, connect, 0), Refused)
    counting.start([5])
    again = CliRunner().invoke(program, ["cluster", "tell", *data])
    assert again.output == "Nodes 0, 1, 2, 3, 4, 5 have it.\n"
