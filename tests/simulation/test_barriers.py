"""Barriers of any kind stay within the rules at correct nodes; without a rule, it is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bftfs.query_update.accepting import Accepting
from bftfs.query_update.admission import BarrierBudget
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.scenario import Simulation
from tests.simulation.mutants import Trusting, attacked, hunt

SEEDS = range(3)


def attacks(client: str) -> Iterator[Configuration]:
    """Two clients, and a node that is in league with them, and does the same."""
    for seed in SEEDS:
        configuration = attacked(
            seed, kind="objects", client=client, node="wrong-answers", operations=100
        )
        ((node, _),) = configuration.byzantine_nodes
        yield replace(configuration, initiatives=((node, client),))


def beyond_the_budget(finding: str) -> bool:
    return "beyond the budget" in finding


def too_far(finding: str) -> bool:
    return "beyond the time that" in finding


@pytest.mark.parametrize("client", ["barrier-spammer", "racing-barrier", "forged-barrier"])
def test_barriers_stay_within_the_budget(client: str) -> None:
    """And there are many of them: else nothing is shown."""
    total = 0
    for configuration in attacks(client):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        total += simulation.barriers.total
    assert total > 40 * len(SEEDS)


@pytest.mark.parametrize("client", ["barrier-spammer", "racing-barrier"])
def test_must_fail_where_barriers_have_no_budget(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BarrierBudget, "take", lambda *_: True)
    assert hunt(attacks(client), beyond_the_budget)


def test_must_fail_where_barriers_of_other_servers_are_not_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BarrierBudget, "charge", lambda *_: None)
    assert hunt(attacks("barrier-spammer"), beyond_the_budget)


def test_must_fail_where_one_server_moves_an_objects_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BarrierBudget, "may_move", lambda *_: True)
    assert hunt(attacks("forged-barrier"), too_far)


def test_must_fail_where_barriers_of_one_server_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Accepting.__init__

    def credulous(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self._quorums = Trusting(self._quorums)

    monkeypatch.setattr(Accepting, "__init__", credulous)
    assert hunt(attacks("forged-barrier"), too_far)
