"""Real nodes whose folder was copied back say that they have forgotten, and become whole again."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric, page
from tests.integration.test_protocols import Client, items

COPIED, OTHER = 2, 4
COUNTERS = [0, 1, 2, 3, 4, 5]


def copy(deployment: Deployment, to: Path) -> Path:
    """The node's folder, but for what it has only while it runs, or writes for people."""
    files = shutil.ignore_patterns("*socket", "pid", "log")
    return Path(shutil.copytree(deployment.node(COPIED).path, to, ignore=files))


def backup(deployment: Deployment, to: Path) -> Path:
    """A copy of the folder, at some moment while the node runs."""
    process = deployment.processes[COPIED]
    process.send_signal(signal.SIGSTOP)
    try:
        return copy(deployment, to)
    finally:
        process.send_signal(signal.SIGCONT)


def put_back(deployment: Deployment, folder: Path) -> None:
    """The node starts in a copy of the folder."""
    shutil.rmtree(deployment.node(COPIED).path)
    shutil.copytree(folder, deployment.node(COPIED).path)
    deployment.start([COPIED])


def forgotten(deployment: Deployment) -> list[str]:
    """Why the node says that it has forgotten something, if it does."""
    lines = map(json.loads, deployment.node(COPIED).log.read_text().splitlines())
    return [line["reason"] for line in lines if line["event"] == "forgotten"]


def becomes_whole(deployment: Deployment) -> str:
    """The node says that it has forgotten something, and compares; why it has."""
    await_that(lambda: bool(forgotten(deployment)))
    remarks = json.loads(page(deployment, "/health", COPIED)[1])["reasons"]
    is_whole = metric(deployment, "bftfs_recovering", COPIED) == 0
    assert is_whole or any("has forgotten something" in remark for remark in remarks)
    await_that(lambda: metric(deployment, "bftfs_recovering", COPIED) == 0)
    assert deployment.node(COPIED).recovery.read_text().split()[-1] == "rebuilt"
    (reason,) = forgotten(deployment)
    return reason


def test_a_folder_that_was_copied_back(deployment: Deployment, tmp_path: Path) -> None:
    client, written = Client(deployment), items(10)
    client.write_all(dict(list(written.items())[:5]))
    assert client.increment_all(COUNTERS) == [1] * 6
    older = backup(deployment, tmp_path / "older")
    deployment.kill(OTHER)  # so that the node is needed, and knows what follows
    client.write_all(written)
    assert client.increment_all(COUNTERS) == [2] * 6
    deployment.start([OTHER])
    deployment.kill(COPIED)
    put_back(deployment, older)
    assert "copied from somewhere else" in becomes_whole(deployment)

    # What a node has that was stopped can be moved; until it was started somewhere.
    assert deployment.stop(COPIED) == 0
    stopped = copy(deployment, tmp_path / "stopped")
    put_back(deployment, stopped)
    deployment.kill(OTHER)
    assert client.increment_all(COUNTERS) == [3] * 6
    assert client.read_all(written) == written
    assert not forgotten(deployment)
    deployment.start([OTHER])
    deployment.kill(COPIED)
    put_back(deployment, stopped)
    assert "a later run" in becomes_whole(deployment)

    # As the administrator's machine keeps it.
    deployment.kill(COPIED)
    shutil.rmtree(stopped / "store")
    for name in ("store.lock", "recovery"):
        (stopped / name).unlink()
    put_back(deployment, stopped)
    assert "a later run" in becomes_whole(deployment)
    deployment.kill(OTHER)
    assert client.increment_all(COUNTERS) == [4] * 6
    assert client.read_all(written) == written
    client.network.close()
