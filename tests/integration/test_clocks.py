"""Node processes, of which one has a wrong clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bftfs.cli.status import node_states
from bftfs.crypto.keys import write_identity
from tests.integration.deployment import Deployment, await_that
from tests.integration.test_node import metric
from tests.integration.test_protocols import Client

WRONG = 0


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="nodes")
    yield deployment
    deployment.close()


def test_a_node_whose_clock_is_set_wrong_says_so_until_it_is_right(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Its peers and the clients go on."""
    skew = tmp_path / "skew"

    def put_clock(wrong_s: int) -> None:
        (tmp_path / "new").write_text(str(wrong_s))
        (tmp_path / "new").rename(skew)

    put_clock(0)
    deployment.start([node for node in deployment.nodes if node != WRONG])
    deployment.start([WRONG], program=("tests.integration.skewed_node", str(skew)))
    client = Client(deployment)
    key = deployment.directory.client_key("client0")
    key.parent.mkdir()
    write_identity(key, deployment.clients[0])

    def is_distrusted() -> bool:
        client.increment_all(list(range(6)))
        return metric(deployment, "bftfs_clock_distrusted", WRONG) == 1

    def reasons() -> str:
        states = node_states(deployment.directory, deployment.description, client="client0")
        assert [state["node"] for state in states if not state["healthy"]] in ([WRONG], [])
        return " ".join(states[WRONG]["reasons"])

    await_that(lambda: metric(deployment, "bftfs_clock_confirmed", WRONG) == 1)
    assert not is_distrusted()
    for wrong_s in (1_000, -1_000_000):
        put_clock(wrong_s)
        await_that(is_distrusted)
        await_that(lambda: "its clock differs from other nodes', node 1's by" in reasons())
        put_clock(0)
        await_that(lambda: not is_distrusted())
        assert "clock" not in reasons()
    assert len(set(client.increment_all(list(range(6))))) == 1
    assert "clock distrusted" in deployment.node(WRONG).log.read_text()
