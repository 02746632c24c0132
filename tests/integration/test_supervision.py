"""What a node tells whoever supervises it: a service manager, or a probe that asks its pages."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bftfs.cli.processes import running_nodes
from tests.integration.deployment import Deployment
from tests.integration.service_manager import WATCHDOG_US, ServiceManager
from tests.integration.test_node import page


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Deployment]:
    """Four nodes, of which one may crash; none of them is started."""
    deployment = Deployment(tmp_path / "cluster", module="nodes", nodes=4, b=0)
    yield deployment
    deployment.close()


def test_a_supervised_node_says_how_it_is(
    four: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(ServiceManager()) as manager:
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            monkeypatch.setenv(name, manager.environment[name])
        four.start([0], program=("bftfs", "node", "run"))
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            monkeypatch.delenv(name)
        assert manager.hears(within_s=10) == "READY=1"
        assert running_nodes(four.directory, four.description) == {0: four.processes[0].pid}
        assert page(four, "/live")[0] == 200
        assert page(four, "/ready")[0] == 503  # alone it serves nothing
        four.start([1, 2, 3])
        deadline = time.monotonic() + 20
        while page(four, "/ready")[0] != 200:
            assert time.monotonic() < deadline, page(four, "/health")
            time.sleep(0.05)

        assert manager.hears_until("WATCHDOG=1", within_s=WATCHDOG_US / 1e6)
        four.processes[0].send_signal(signal.SIGSTOP)
        try:
            while manager.hears(within_s=WATCHDOG_US / 1e6):
                pass  # what it had told before
        finally:
            four.processes[0].send_signal(signal.SIGCONT)
        manager.hears_until("WATCHDOG=1", within_s=10)
        assert four.stop(0) == 0
        manager.hears_until("STOPPING=1", within_s=10)
