"""Progress and durability are found to be lacking where they cannot be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bftfs.identifiers import NodeId
from bftfs.query_update.rounds import Rounds
from bftfs.simulation import scenario
from bftfs.simulation.configuration import KINDS, ClientPlan
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import attacked

TOO_MANY = (NodeId(1), NodeId(4))  # where t = 1


@pytest.mark.parametrize("kind", KINDS)
def test_operations_do_not_end_with_more_than_t_nodes_down(kind: str) -> None:
    report = run(attacked(1, kind=kind, operations=40, faulty_share=0.5, down_when_quiet=TOO_MANY))
    assert any(finding.startswith("progress:") for finding in report.findings)


@pytest.mark.parametrize("kind", KINDS)
def test_with_more_than_t_nodes_down_nothing_is_read(kind: str) -> None:
    report = run(attacked(1, kind=kind, operations=40, down_in_audit=TOO_MANY))
    assert any(finding.startswith("durability:") for finding in report.findings)


@pytest.mark.parametrize("kind", KINDS)
def test_both_can_be_had_with_t_nodes_down(kind: str) -> None:
    report = run(
        attacked(
            1,
            kind=kind,
            operations=40,
            faulty_share=0.5,
            down_when_quiet=TOO_MANY[:1],
            down_in_audit=TOO_MANY[1:],
        )
    )
    assert report.passed, report.findings


def test_many_operations_may_take_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose clock is wrong is told so each time, and tries for some seconds before."""
    monkeypatch.setattr(scenario, "QUIET_US", SECOND_US)
    configuration = replace(
        attacked(1, kind="objects", operations=120, faulty_share=0.2),
        clients=(ClientPlan(skew_us=3_600 * SECOND_US, width=1, sane=False),),
    )
    simulation = Simulation(configuration)
    simulation.run()
    assert simulation.findings == []
    assert simulation.world.now_us > 2 * scenario.QUIET_US


def test_must_fail_clients_that_ask_for_everything_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They get there as well, at a price that is found."""
    configuration = attacked(
        4, kind="objects", operations=40, faulty_share=0.5, down_when_quiet=TOO_MANY[:1]
    )
    ask = Rounds.run

    async def insist(self: Rounds, *arguments: Any, **more: Any) -> None:
        for _ in range(10):
            await ask(self, *arguments, **more)

    monkeypatch.setattr(scenario, "REQUESTS_WHEN_QUIET", 250)
    monkeypatch.setattr(scenario, "REQUESTS_PER_OPERATION", 25)
    assert run(configuration).passed
    monkeypatch.setattr(Rounds, "run", insist)
    report = run(configuration)
    assert any("requests of clients in the quiet phase" in finding for finding in report.findings)


def test_must_fail_nodes_that_ask_without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is down; the others wait for it, to finish what clients have left behind."""
    configuration = attacked(
        2, kind="objects", operations=40, faulty_share=0.5, down_when_quiet=TOO_MANY[:1]
    )
    monkeypatch.setattr(scenario, "REQUESTS_WHEN_QUIET", 250)
    monkeypatch.setattr(scenario, "REQUESTS_PER_OPERATION", 0)
    monkeypatch.setattr(scenario, "REQUESTS_OF_NODES", 0)
    assert run(configuration).passed
    monkeypatch.setattr("bftfs.asking.peers.PATIENCE_US", 3)
    monkeypatch.setattr("bftfs.asking.ask.PATIENCE_MAX_US", 3)
    report = run(configuration)
    assert any("requests of nodes in the quiet phase" in finding for finding in report.findings)
