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
from bftfs.simulation.configuration import Configuration, from_json
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.objects import ObjectMix
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import (
    attacked,
    end_attempts_by_refusals,
    hold_older_versions_against_attempts,
    hunt,
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
    for configuration in repeated((*range(6), 8, 24)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        assert report.fault_counts.jumps > 5


def test_must_fail_clients_that_take_refusals_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    end_attempts_by_refusals(monkeypatch)
    assert hunt(repeated((5, 8, 24)), lambda finding: "took place twice" in finding)


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
