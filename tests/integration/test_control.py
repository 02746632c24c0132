"""`bftfs scrub` and `bftfs heal` with real nodes, and who may control them."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from bftfs import description_files
from bftfs.asking.refusal import Refused
from bftfs.cli.main import program
from bftfs.crypto.keys import write_identity
from bftfs.data_directory import DataDirectory
from bftfs.envelope import REPLIES, UpkeepRequest
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.query_update.messages import Query
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.storage import Table, Write
from nodes.control import ControlFailed, send_request
from nodes.store import Store
from tests.integration.counting import ask
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric, page
from tests.integration.test_protocols import Client, items
from tests.unit.nodes.test_dashboard import DASHBOARD, misnamed


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("control") / "cluster", module="nodes")
    deployment.start()
    client = Client(deployment)
    client.write_all(items(30))
    client.increment_all([0, 1, 2, 3, 4, 5])
    client.network.close()
    yield deployment
    deployment.close()


def bftfs(deployment: Deployment, *words: str) -> Result:
    return CliRunner().invoke(
        program,
        [*words[:2], "--data", str(deployment.directory.path), *words[2:]],
        standalone_mode=False,
    )


def told(deployment: Deployment, *words: str) -> list[dict[str, Any]]:
    result = bftfs(deployment, *words, "--json")
    assert result.exception is None, result.output
    report: list[dict[str, Any]] = json.loads(result.stdout)
    return report


def test_the_dashboard_shows_what_a_running_node_exposes(deployment: Deployment) -> None:
    _, text = page(deployment, "/metrics")
    exposed: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        # A counter with labels has no samples before it has counted something.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exposed[name] = set().union(*(sample.labels for sample in family.samples))
    assert exposed["bftfs_requests_total"] == {"message"}
    assert exposed["bftfs_refused_total"] <= {"error"}
    exposed["bftfs_refused_total"] = {"error"}
    assert list(misnamed(DASHBOARD, exposed)) == []
    del exposed["bftfs_pool_bytes"]
    assert list(misnamed(DASHBOARD, exposed))  # must fail


def test_a_scrub_of_all_nodes_from_the_command_line(deployment: Deployment) -> None:
    told(deployment, "heal", "start", "--wait")  # all have all that there is
    report = told(deployment, "scrub", "start", "--wait")
    assert [said["node"] for said in report] == list(deployment.nodes)
    for said in report:
        assert said["state"] == "idle"
        assert said["progress"] == 1.0
        assert said["figures"]["passes"] >= 1
        assert said["figures"]["rows checked"] >= 30
        assert said["figures"]["damaged"] == 0
    shown = bftfs(deployment, "scrub", "status").stdout
    assert "idle" in shown
    assert "at most 16.0" in shown


def test_what_a_scrub_finds_damaged_is_healed(deployment: Deployment) -> None:
    told(deployment, "heal", "start", "--wait")  # all have all that there is
    assert deployment.stop(3) == 0
    store = Store.open(
        deployment.node(3).store, cluster=deployment.description.cluster_id, node=NodeId(3)
    )
    with store.batch() as batch:
        key, row = next(batch.scan(Table.STATE, b"", b"\xff" * 40))
        batch.apply([Write(Table.STATE, bytes(key), bytes(row[:-1]) + b"?")])
        batch.commit()
    store.close()
    deployment.start([3])
    [said] = told(deployment, "scrub", "start", "--wait", "--node", "3")
    assert said["figures"]["damaged"] == 1
    await_that(lambda: metric(deployment, "bftfs_heal_objects_rebuilt", 3) >= 1)
    [said] = told(deployment, "heal", "start", "--wait", "--node", "3")
    assert said["figures"]["damaged objects"] == 0
    [said] = told(deployment, "scrub", "start", "--wait", "--node", "3")
    assert said["figures"]["damaged"] == 0


def test_pause_throttle_and_resume_outlive_the_process(deployment: Deployment) -> None:
    [said] = told(deployment, "scrub", "throttle", "--node", "2", "1.5M")
    assert said["limit_bytes_per_second"] == 1.5 * MIB
    [said] = told(deployment, "scrub", "pause", "--node", "2")
    assert said["state"] == "paused"
    passes = said["figures"]["passes"]
    assert deployment.stop(2) == 0
    deployment.start([2])
    await_that(lambda: told(deployment, "scrub", "status", "--node", "2")[0]["state"] == "paused")
    [said] = told(deployment, "scrub", "status", "--node", "2")
    assert said["limit_bytes_per_second"] == 1.5 * MIB
    [said] = told(deployment, "heal", "status", "--node", "2")
    assert said["state"] != "paused"
    [said] = told(deployment, "scrub", "resume", "--node", "2")
    assert said["state"] == "idle"
    assert said["figures"]["passes"] <= passes


def test_a_node_that_does_not_run_is_named(deployment: Deployment) -> None:
    deployment.kill(5)
    try:
        result = bftfs(deployment, "heal", "status")
        assert result.return_value == 1
        assert "node 5 does not run on this machine" in result.stderr
        assert "idle" in result.stdout
        report = json.loads(bftfs(deployment, "heal", "status", "--json").stdout)
        assert report[5] == {"node": 5, "error": "does not run on this machine"}
    finally:
        deployment.start([5])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("scrub", "status", "--node", "6"), "there is no node 6: the cluster has nodes 0 to 5"),
        (("scrub", "throttle", "fast"), "'fast' is not a rate: write bytes per second"),
        (("scrub", "throttle", "5", "--node", "0"), "at least 1024 bytes per second"),
    ],
)
def test_mistakes_are_named(deployment: Deployment, words: tuple[str, ...], sentence: str) -> None:
    result = bftfs(deployment, *words)
    assert sentence in f"{result.output}{result.exception}"


def test_only_the_owner_steers_a_node(deployment: Deployment) -> None:
    path = deployment.node(0).control
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(ControlFailed, match="no work called 'everything'"):
        send_request(path, UpkeepRequest("start", "everything"))
    if os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            try:
                send_request(path, UpkeepRequest("pause", "scrub"))
            except ControlFailed:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("sent", [b"", b"\n", b"pause\n", b"{}" * 4000, b"\x91\x55"])
def test_what_is_no_command_is_refused(deployment: Deployment, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(deployment.node(0).control))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert b"this is not a command" in connection.recv(4096)
    assert told(deployment, "scrub", "status", "--node", "0")


# --- the administrator, on another machine ------------------------------------------------------


@pytest.fixture
def office(deployment: Deployment, tmp_path: Path) -> DataDirectory:
    """The administrator's machine: the description and the key, and nothing of any node."""
    office = DataDirectory(tmp_path / "office")
    office.path.mkdir()
    description_files.store(office.description, deployment.description, deployment.administrator)
    write_identity(office.administrator_key, deployment.administrator)
    return office


def at_the_office(office: DataDirectory, *words: str) -> Result:
    return CliRunner().invoke(program, [*words, "--data", str(office.path)], standalone_mode=False)


def limit(deployment: Deployment, node: int) -> int:
    [said] = told(deployment, "scrub", "status", "--node", str(node))
    return int(said["limit_bytes_per_second"])


def test_the_administrator_does_upkeep_from_another_machine(
    deployment: Deployment, office: DataDirectory
) -> None:
    assert not (office.path / "nodes").exists()
    report = json.loads(at_the_office(office, "scrub", "start", "--wait", "--json").stdout)
    assert [said["node"] for said in report] == list(deployment.nodes)
    assert all(said["state"] == "idle" and said["figures"]["passes"] >= 1 for said in report)
    assert at_the_office(office, "scrub", "throttle", "3MiB", "--node", "1").return_value == 0
    assert limit(deployment, 1) == 3 * MIB
    assert at_the_office(office, "heal", "status").return_value == 0

    printed = at_the_office(office, "metrics", "1").stdout
    families = {family.name for family in text_string_to_metric_families(printed)}
    _, text = page(deployment, "/metrics", 1)
    assert families == {family.name for family in text_string_to_metric_families(text)}
    state = at_the_office(office, "status", "--json")
    assert state.return_value == 0
    assert all(each["up"] for each in json.loads(state.stdout)["nodes"])

    used = json.loads(at_the_office(office, "cluster", "clients", "--use", "--json").stdout)
    assert {each["name"]: each["seen_s"] is not None for each in used} == {
        "client0": True,
        "client1": False,
    }

    deployment.kill(5)
    try:
        result = at_the_office(office, "heal", "status")
        assert result.return_value == 1
        assert "node 5 does not run" in result.stderr
        assert "idle" in result.stdout, "the others are shown"
        assert at_the_office(office, "metrics", "5").exception is not None
    finally:
        deployment.start([5])


def test_nobody_but_the_administrator_does_upkeep(deployment: Deployment) -> None:
    before = limit(deployment, 0)
    request = UpkeepRequest("throttle", "scrub", 12_345)
    for identity in (deployment.clients[0], deployment.identities[1]):
        with BlockingNetwork(deployment.description, identity, decode=REPLIES.decode) as network:
            refused, _ = network.perform(ask(NodeId(0), request))
        assert isinstance(refused, Refused)
        assert refused.code == errno.EACCES
    assert limit(deployment, 0) == before


def test_the_administrators_key_opens_no_file(deployment: Deployment) -> None:
    description = deployment.description
    query = Query((description.root,), "lookup", b"", 0, 0, (), NodeId(0))
    administrator = deployment.administrator
    with BlockingNetwork(description, administrator, decode=REPLIES.decode) as network:
        refused, _ = network.perform(ask(NodeId(0), query))
    assert isinstance(refused, Refused)
    assert refused.code == errno.EACCES


def test_the_node_listens_for_its_owner_beside_its_store_only(deployment: Deployment) -> None:
    """Clients and the administrator reach a node at its address, and nobody at another one."""
    listed = Path("/proc/net/unix").read_text()
    pid = deployment.processes[0].pid
    here = [
        line.split()[-1]
        for line in listed.splitlines()
        if str(deployment.node(0).path) in line and " 00010000 " in line
    ]
    assert sorted(Path(path).name for path in here) == [
        "control.socket",
        "metrics.socket",
        "socket",
    ]
    listening = [
        line
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and _is_open(pid, line.split()[9])
    ]
    assert listening == []


def _is_open(pid: int, inode: str) -> bool:
    """Whether the process has the socket with this inode."""
    descriptors = Path(f"/proc/{pid}/fd")
    return any(
        os.readlink(each) == f"socket:[{inode}]" for each in descriptors.iterdir() if each.exists()
    )
