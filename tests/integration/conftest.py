"""Clusters of node processes for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bftfs.runtime.blocking import BlockingNetwork
from tests.integration.counting import REPLIES
from tests.integration.deployment import Deployment

HERE = Path(__file__).parent
TEST_TIMEOUT_S = 150


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test here waits for ever for a process."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Deployment]:
    """Six nodes that only count, none of them started."""
    deployment = Deployment(tmp_path / "cluster", module="tests.integration.counting_node")
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Six real nodes that run; files that need others have a fixture of their own."""
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    deployment.start()
    yield deployment
    deployment.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., BlockingNetwork]]:
    """Makes networks of a deployment's clients, closed at the end."""
    networks: list[BlockingNetwork] = []

    def connected(deployment: Deployment, client: int = 0) -> BlockingNetwork:
        network = BlockingNetwork(
            deployment.description, deployment.clients[client], decode=REPLIES.decode
        )
        networks.append(network)
        return network

    yield connected
    for network in networks:
        network.close()
