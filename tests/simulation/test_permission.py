"""A stranger's bytes show only where he was let in; if nodes do not ask, the checker finds it.

And nobody is refused what is permitted, whatever nodes say that are behind or lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bftfs.filesystem import inode
from bftfs.identifiers import NodeId
from bftfs.read_write.client import ReadWriteClient
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.scenario import Simulation
from bftfs.simulation.workloads.files import FileMix, FileWorkload
from bftfs.simulation.world import SECOND_US
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


# --- readers without permission ------------------------------------------------------------------


def snooping(mix: FileMix, seeds: range = range(6)) -> Iterator[Configuration]:
    """Two strangers gather fragments; one node shows its own to whoever asks."""
    for seed in seeds:
        yield attacked(
            seed,
            kind="files",
            node="tattler",
            client="snooper",
            files=mix,
            operations=150,
            verification=VerificationSettings(),
        )


@pytest.mark.parametrize("mix", [SHUT, DOORS])
def test_strangers_read_where_they_are_let_in(mix: FileMix) -> None:
    seen = 0
    for configuration in snooping(mix):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        workload = simulation.workload
        assert isinstance(workload, FileWorkload)
        seen += sum(1 for _ in workload._exposed())
    assert bool(seen) == bool(mix.doors)


@pytest.mark.parametrize("mix", [SHUT, DOORS])
def test_must_fail_nodes_that_show_files_to_all(
    mix: FileMix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inode, "may_read", lambda *_: True)
    assert hunt(snooping(mix), about_permission)


def test_must_fail_nodes_that_show_files_to_who_claims_their_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    believe_claims_of_groups(monkeypatch)
    assert hunt(snooping(SHUT), about_permission)


def test_must_fail_where_as_many_nodes_lie_as_make_a_block() -> None:
    def more(configuration: Configuration) -> Configuration:
        liars = range(configuration.sizes.read_write.m)
        return replace(
            configuration,
            byzantine_nodes=tuple((NodeId(node), ("tattler",)) for node in liars),
        )

    assert hunt(map(more, snooping(SHUT)), about_permission)


# --- nodes that refuse what is permitted ---------------------------------------------------------


def refusals(seeds: range) -> Iterator[Configuration]:
    """Doors open and close while ways are cut, so that nodes are behind; another one refuses."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind="files",
            node="refuser",
            files=DOORS,
            operations=150,
            verification=VerificationSettings(),
        )
        faults = replace(
            configuration.faults, partition_every_us=2 * SECOND_US, sever_every_us=SECOND_US
        )
        yield replace(configuration, faults=faults)


def test_nobody_is_refused_what_is_permitted() -> None:
    refused = 0
    for configuration in refusals(range(18, 21)):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        workload = simulation.workload
        assert isinstance(workload, FileWorkload)
        refused += sum(map(len, workload.denied.values()))
    assert refused


def test_must_fail_where_nodes_have_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    write_many = ReadWriteClient.write_many

    async def unasked(*arguments: Any, permit: Any = None, **options: Any) -> Any:
        del permit
        return await write_many(*arguments, **options)

    monkeypatch.setattr(ReadWriteClient, "write_many", unasked)
    assert hunt(refusals(range(18, 24)), about_permission)
