"""Lazy verification by real node processes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from bftfs.envelope import HealthRequest
from bftfs.identifiers import BlockId, NodeId
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.simulation.byzantine.registry import CLIENTS
from bftfs.simulation.deployment import Sizes
from tests.integration.counting import ask
from tests.integration.deployment import PATIENCE_S, Deployment, await_that
from tests.integration.test_node import metric, page
from tests.integration.test_protocols import Client, block, items


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    yield deployment
    deployment.close()


def configure(deployment: Deployment, text: str) -> None:
    for node in deployment.nodes:
        deployment.node(node).configuration.write_text(text)


def total(deployment: Deployment, name: str) -> float:
    return sum(metric(deployment, name, node) for node in deployment.processes)


@pytest.mark.parametrize("policy", ["lazy", "lazy+cooperative"])
def test_nodes_verify_what_was_written_and_readers_need_not(
    deployment: Deployment, policy: str
) -> None:
    configure(deployment, f'verification = "{policy}"\n')
    deployment.start()
    # Before that a node may miss what others take.
    await_that(lambda: total(deployment, "bftfs_clock_confirmed") == 6)
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


class Prey:
    """What there is to attack, as the adversaries of the simulator are told."""

    def __init__(self) -> None:
        self.blocks = tuple(map(block, range(4)))
        self.items: set[bytes] = set()

    def attempted(self, name: str, block: BlockId, at: float) -> bytes:
        item = os.urandom(100)
        self.items.add(item)
        return item


def test_writers_that_attack_at_full_speed_hurt_themselves_only(deployment: Deployment) -> None:
    """With limits that are soon reached, and a node that lies of what it has verified."""
    configure(deployment, "client_possible_versions = 40\nblock_possible_versions = 10\n")
    deployment.start(range(5))
    deployment.start([5], program=("tests.lying_node", "false-verifier"))
    honest, attacker = Client(deployment), Client(deployment, 1)
    prey, over = Prey(), threading.Event()
    position = ClientPosition(
        "attacker",
        attacker.blocks._session.client,
        Sizes(deployment.description.query_update, deployment.description.read_write),
        Random(1),
        prey,
        time.time,
    )
    adversaries = [
        CLIENTS["blocks"][name](position)
        for name in ("poisonous-writer", "partial-writer", "stutterer")
    ]

    def attack() -> None:
        while not over.is_set():
            for adversary in adversaries:
                attacker.network.perform(adversary.act())

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        for turn in range(25):
            written = {number: b"%d of turn %d" % (number, turn) for number in range(4)}
            honest.write_all(written)
            for number, item in honest.read_all(written).items():
                assert item == written[number] or item in prey.items
            for node in range(5):
                # Of both clients, and a version for each second that the attack may have lasted.
                assert metric(deployment, "bftfs_possible_versions", node) <= 2 * 40 + 60
        await_that(lambda: metric(deployment, "bftfs_verification_demands", 0) > 0)
    finally:
        over.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    after = dict.fromkeys(range(4), b"after")
    honest.write_all(after)
    await_that(
        lambda: all(metric(deployment, "bftfs_possible_versions", node) == 0 for node in range(5))
    )
    assert Client(deployment).read_all(after) == after
    honest.network.close()
    attacker.network.close()
