"""Lazy verification by real node processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bftfs.envelope import HealthRequest
from bftfs.identifiers import NodeId
from tests.integration.counting import ask
from tests.integration.deployment import Deployment
from tests.integration.test_node import metric, page
from tests.integration.test_protocols import Client, items

PATIENCE_S = 60.0


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    yield deployment
    deployment.close()


def configure(deployment: Deployment, text: str) -> None:
    for node in deployment.nodes:
        deployment.node(node).configuration.write_text(text)


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def total(deployment: Deployment, name: str) -> float:
    return sum(metric(deployment, name, node) for node in deployment.processes)


@pytest.mark.parametrize("policy", ["lazy", "lazy+cooperative"])
def test_nodes_verify_what_was_written_and_readers_need_not(
    deployment: Deployment, policy: str
) -> None:
    configure(deployment, f'verification = "{policy}"\n')
    deployment.start()
    writer, reader = Client(deployment), Client(deployment, 1)
    written = items(24)
    writer.write_all(written)
    await_that(lambda: total(deployment, "bftfs_possible_versions") == 0)
    assert total(deployment, "bftfs_settled_versions") == 6 * 24
    reply, _ = writer.network.perform(ask(NodeId(0), HealthRequest()))
    figures = {figure.name: figure.value for figure in reply.background}
    assert (figures["bftfs_possible_versions"], figures["bftfs_settled_versions"]) == (0, 24)
    _, health = page(deployment, "/health")
    assert json.loads(health)["background"]["bftfs_settled_versions"] == 24
    if policy == "lazy":
        assert total(deployment, "bftfs_notices") == 0
    else:
        assert total(deployment, "bftfs_convinced_blocks") > 0
    assert reader.read_all(written) == written
    assert len(reader.blocks._session.validated) == 0
    # After a crash of all, nothing is verified again.
    for node in deployment.nodes:
        deployment.kill(node)
    deployment.start()
    assert reader.read_all(written) == written
    assert total(deployment, "bftfs_verified_blocks") == 0
    writer.network.close()
    reader.network.close()


def test_a_limit_holds_while_clients_write_without_a_pause(deployment: Deployment) -> None:
    configure(deployment, 'verification = "lazy"\nclient_possible_versions = 40\n')
    deployment.start()
    writer = Client(deployment)
    turns = [
        {number: b"%d of turn %d" % (number, turn) for number in range(24)} for turn in range(10)
    ]
    writer.network.perform_many(
        (writer.write(number, item) for turn in turns for number, item in turn.items()),
        in_flight=8,
    )
    last = turns[-1]
    assert max(metric(deployment, "bftfs_possible_versions", node) for node in range(6)) <= 40
    assert total(deployment, "bftfs_verification_demands") > 0
    assert writer.read_all(last) == last
    writer.network.close()


def test_with_write_time_verification_nothing_is_left_to_verify(deployment: Deployment) -> None:
    configure(deployment, 'verification = "write-time"\n')
    deployment.start()
    writer, reader = Client(deployment), Client(deployment, 1)
    written = items(8)
    writer.write_all(written)
    assert reader.read_all(written) == written
    assert len(reader.blocks._session.validated) == 0
    writer.network.close()
    reader.network.close()


def test_a_silent_responsible_node_costs_the_others_only_time(deployment: Deployment) -> None:
    deployment.start([0, 1, 2, 4, 5])
    writer = Client(deployment)
    written = items(6)
    writer.write_all(written)
    await_that(lambda: total(deployment, "bftfs_possible_versions") == 0)
    assert writer.read_all(written) == written
    writer.network.close()
