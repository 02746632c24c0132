"""An update takes effect once, however often it is tried and its requests are repeated.

And its client is told the truth about it. No node is faulty where clocks jump: the network repeats
and delays messages, and nodes refuse times that they accept later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bftfs.identifiers import NodeId
from bftfs.simulation.configuration import ClientPlan, Configuration, from_json
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.objects import ObjectMix
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import (
    attacked,
    end_attempts_by_refusals,
    hold_older_versions_against_attempts,
    hunt,
    leave_requests_under_way,
)

DAYS_US = 10**12
REPEATED = NetworkFaults(loss=0.02, duplication=0.5, delay_us=(50, 5_000), straggling=0.1)
LEDGER = ObjectMix(counters=0, accounts=3, updates=0.9, ledger=1.0, several=0.3)
SAVED = Path(__file__).parent / "seeds"


def repeated(seeds: Iterable[int]) -> Iterator[Configuration]:
    """All clocks jump ahead and back, while copies of requests are under way."""
    for seed in seeds:
        configuration = attacked(
            seed, kind="objects", operations=60, network=REPEATED, objects=LEDGER
        )
        faults = replace(
            configuration.faults,
            jump_every_us=SECOND_US // 20,
            jumps_us=(DAYS_US,),
            jumped_us=(1_000, SECOND_US // 20),
        )
        yield replace(configuration, faults=faults)


def test_updates_whose_requests_are_repeated_take_effect_once() -> None:
    for configuration in repeated((5, 8, 24)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        assert report.fault_counts.jumps > 5


def test_must_fail_clients_that_take_refusals_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    end_attempts_by_refusals(monkeypatch)
    assert hunt(repeated((5, 8, 24, *range(30, 50))), lambda finding: "took place twice" in finding)


def beside_an_early_clock(seeds: Iterable[int]) -> Iterator[Configuration]:
    """The clock of one client is always ahead by as much as all jump: it gives its updates up."""
    for configuration in repeated(seeds):
        faults = replace(
            configuration.faults,
            network=replace(REPEATED, duplication=1.0, straggling=0.3),
            jump_every_us=SECOND_US,
            jumped_us=(SECOND_US // 20, 3 * SECOND_US // 10),
        )
        early = ClientPlan(width=4, skew_us=DAYS_US, sane=False)
        seldom = [replace(each, think_us=(0, 2 * SECOND_US)) for each in configuration.clients]
        yield replace(
            configuration,
            faults=faults,
            clients=(early, *seldom),
            objects=replace(LEDGER, accounts=6, updates=1.0, several=0.0),
        )


def test_what_clients_give_up_because_of_their_clocks_never_takes_effect() -> None:
    for configuration in beside_an_early_clock(range(2, 5)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)


def test_must_fail_clients_that_give_up_with_requests_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_requests_under_way(monkeypatch)
    assert hunt(
        beside_an_early_clock(range(2, 20)), lambda each: "was refused, and took place" in each
    )


def forgetful() -> Iterator[Configuration]:
    """A node that claims lives of others makes a client forget what these have reported."""
    for name in ("files-77079-200.json", "files-99012-150.json"):
        yield from_json((SAVED / name).read_bytes())
    configuration = from_json((SAVED / name).read_bytes())
    liar = ((NodeId(2), ("lives-liar",)),)
    alone = replace(configuration, kept=None, operations=40, byzantine_clients=())
    yield replace(alone, seed=1, byzantine_nodes=liar)


def test_must_fail_clients_that_go_by_versions_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hunt(forgetful()) is None
    hold_older_versions_against_attempts(monkeypatch)
    assert hunt(forgetful(), lambda finding: "was told that it did not" in finding)
