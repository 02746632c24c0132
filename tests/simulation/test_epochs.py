"""Clients are revoked, and open nothing that is written once nodes know; everybody else reads it.

Contents are sealed, and each revocation begins a key epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bftfs.cluster import ClusterDescription
from bftfs.filesystem.epochs import EpochFollower
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.configuration import ClientPlan, Configuration, draw
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.workloads.files import FileMix, FileWorkload
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import attacked, hunt
from tests.unit.filesystem.test_spreading_epochs import one_by_one

MIX = FileMix(names=2, contents=0.7, directories=0.1, private=0.0, epochs=True)
CLIENT = ClientPlan(width=2, think_us=(0, SECOND_US))


def epochs(node: str, seeds: range) -> Iterator[Configuration]:
    """Two clients that gather fragments are revoked soon; old answers are told, or fragments."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind="files",
            node=node,
            client="snooper",
            files=MIX,
            operations=120,
            verification=VerificationSettings(),
        )
        faults = replace(configuration.faults, revoke_every_us=SECOND_US, hear_us=(0, SECOND_US))
        yield replace(configuration, faults=faults, clients=(CLIENT, CLIENT))


def spreading(seeds: range) -> Iterator[Configuration]:
    """Ten clients are revoked, half a second apart; nodes hear of each within four seconds."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind="files",
            node="replayer",
            client="snooper",
            files=MIX,
            operations=150,
            network=NetworkFaults(loss=0.0, delay_us=(50, 60_000)),
        )
        yield replace(
            configuration,
            byzantine_clients=("snooper",) * 10,
            clients=(CLIENT,) * 4,
            faults=replace(
                configuration.faults,
                revoke_every_us=SECOND_US // 2,
                hear_us=(0, 4 * SECOND_US),
            ),
        )


def about_secrecy(finding: str) -> bool:
    return finding.startswith("secrecy:")


@pytest.mark.parametrize("node", ["tattler", "replayer"])
def test_revoked_clients_open_nothing_that_is_written_later(node: str) -> None:
    judged = 0
    for configuration in epochs(node, range(3)):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        workload = simulation.workload
        assert isinstance(workload, FileWorkload)
        begun, thieves = workload._begun(), workload._thieves()
        assert len(thieves) == 2
        judged += sum(
            begun[each.content] > thief.since
            for each in workload.sealed
            for thief in thieves.values()
        )
    assert judged > 10


def test_they_open_nothing_either_while_several_revocations_spread() -> None:
    for configuration in spreading(range(5008, 5015)):
        assert not run(configuration).findings


def test_must_fail_where_later_epochs_are_awaited_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EpochFollower, "_has_read", one_by_one)
    assert hunt(spreading(range(5008, 5015)), about_secrecy)


def test_must_fail_where_mounts_stay_in_their_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpochFollower, "_choose", lambda *_: True)
    assert hunt(epochs("tattler", range(3)), about_secrecy)


def test_must_fail_where_revoked_clients_get_the_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(self: ClusterDescription, _name: str, *, at_s: int) -> ClusterDescription:
        del at_s
        return replace(self, serial=self.serial + 1)

    monkeypatch.setattr(ClusterDescription, "without_client", kept)
    assert hunt(epochs("tattler", range(3)), about_secrecy)


def test_must_fail_where_readers_do_not_ask_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def seek(_self: EpochFollower, _epoch: bytes) -> bool:
        return False

    monkeypatch.setattr(EpochFollower, "seek", seek)
    assert hunt(epochs("tattler", range(3)), about_secrecy)


def test_epochs_are_drawn() -> None:
    drawn = [draw(seed, operations=10) for seed in range(300)]
    sealing = [each for each in drawn if each.files.epochs]
    assert len(sealing) > 5
    assert all(each.faults.revoke_every_us and each.kind == "files" for each in sealing)
