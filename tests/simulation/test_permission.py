"""A stranger's bytes show only where he was let in; if nodes do not ask, the checker finds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bftfs.filesystem import inode
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.scenario import Simulation
from bftfs.simulation.workloads.files import FileMix, FileWorkload
from tests.simulation.mutants import attacked, believe_claims_of_groups, hunt

SHUT = FileMix(names=2, contents=0.7, directories=0.1, private=0.0)
DOORS = replace(SHUT, doors=0.2, guests=0.3)


def attacks(mix: FileMix, seeds: range = range(7, 13)) -> Iterator[Configuration]:
    for seed in seeds:
        yield attacked(
            seed,
            kind="files",
            node="accomplice",
            client="overwriter",
            files=mix,
            operations=150,
            verification=VerificationSettings(),
        )


def about_permission(finding: str) -> bool:
    return finding.startswith("permission:")


@pytest.mark.parametrize("mix", [SHUT, DOORS])
def test_strangers_write_where_they_are_let_in(mix: FileMix) -> None:
    seen = 0
    for configuration in attacks(mix):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        workload = simulation.workload
        assert isinstance(workload, FileWorkload)
        assert workload.strange
        seen += sum(1 for _ in workload._shown())
    assert bool(seen) == bool(mix.doors)


@pytest.mark.parametrize("mix", [SHUT, DOORS])
def test_must_fail_nodes_that_do_not_ask(mix: FileMix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inode, "may_write", lambda *_: True)
    assert hunt(attacks(mix), about_permission)


def test_must_fail_nodes_that_believe_claims_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    believe_claims_of_groups(monkeypatch)
    assert hunt(attacks(SHUT, range(12)), about_permission)
