"""What one client leaves behind runs into the limits, correct clients go on; else it is found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from bftfs.identifiers import ClientId
from bftfs.query_update.admission import IncompleteUpdates
from bftfs.server import room
from bftfs.server.block_verification import LazyVerifier, VerificationSettings
from bftfs.server.room import ClientQuota
from bftfs.simulation.configuration import Configuration, draw
from bftfs.simulation.scenario import Simulation
from bftfs.simulation.workloads.blocks import BlockWorkload
from bftfs.simulation.workloads.objects import ObjectMix
from bftfs.storage import StorageView, Table, Write
from tests.simulation.mutants import attacked, hunt

SEEDS = range(3)
MANY_COUNTERS = ObjectMix(counters=8, accounts=0)


def stutterers() -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed,
            kind="blocks",
            client="stutterer",
            verification=VerificationSettings(node=16, client=4, block=2),
        )


def partial_updaters() -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed,
            kind="objects",
            client="partial-updater",
            verification=VerificationSettings(),
            possible_objects=1,
            objects=MANY_COUNTERS,
        )


def flooding_clients() -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed, kind="blocks", client="two-faced-writer", operations=100, client_bytes=4_000
        )


def poisonous_writers() -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed, kind="blocks", client="poisonous-writer", verification=VerificationSettings()
        )


def beyond_a_limit(finding: str) -> bool:
    return finding.startswith("bounds:")


def test_possible_versions_of_one_client_are_bounded() -> None:
    for configuration in stutterers():
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        assert simulation.possible is not None
        assert simulation.possible.most >= 2


def test_incomplete_updates_of_one_client_are_bounded() -> None:
    waited = 0
    for configuration in partial_updaters():
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        assert simulation.incomplete is not None
        waited += simulation.incomplete.most
    assert waited


def test_a_client_over_its_quota_is_refused_alone() -> None:
    refused = most = 0
    for configuration in flooding_clients():
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        assert simulation.volumes is not None
        most = max(most, simulation.volumes.most)
        assert isinstance(simulation.workload, BlockWorkload)
        refused += simulation.workload.refused
    assert refused
    assert most > 2_000


def test_what_is_discarded_is_given_back() -> None:
    assert hunt(poisonous_writers()) is None


def test_limits_are_drawn() -> None:
    drawn = [draw(seed, operations=10) for seed in range(300)]
    assert sum(each.possible_objects is not None for each in drawn) > 20
    assert sum(each.client_bytes is not None for each in drawn) > 3


# --- must fail -------------------------------------------------------------------------------


def test_must_fail_a_node_that_takes_as_many_versions_as_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LazyVerifier, "before_write", lambda *_: None)
    assert hunt(stutterers(), beyond_a_limit)


def test_must_fail_a_server_that_takes_as_many_updates_as_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(IncompleteUpdates, "before_update", lambda *_: True)
    assert hunt(partial_updaters(), beyond_a_limit)


def test_must_fail_a_node_without_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClientQuota, "refusal", lambda *_: None)
    assert hunt(flooding_clients(), beyond_a_limit)


def test_must_fail_accounts_that_give_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found at the commit."""
    charged = room.charged

    def kept(view: StorageView, moves: Iterable[tuple[ClientId, int]]) -> list[Write]:
        return charged(view, [each for each in moves if each[1] > 0])

    monkeypatch.setattr(room, "charged", kept)
    assert hunt(poisonous_writers(), lambda finding: "at a commit" in finding)


def test_must_fail_quotas_that_let_one_client_pay_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def used_by_all(view: StorageView, _client: ClientId) -> int:
        rows = view.scan(Table.ADMISSION, b"", b"\xff" * 40)
        return sum(int.from_bytes(row, "big") for _, row in rows)

    monkeypatch.setattr(room, "used_bytes", used_by_all)
    assert hunt(flooding_clients(), lambda finding: "AdmissionRefused" in finding)


def test_must_fail_accounts_that_only_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    charged = room.charged
    monkeypatch.setattr(
        room, "charged", lambda view, moves: charged(view, [one for one in moves if one[1] > 0])
    )
    assert hunt(poisonous_writers(), lambda finding: finding.startswith("accounts:"))
