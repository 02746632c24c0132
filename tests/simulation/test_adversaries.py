"""Each adversary alone, against each kind of workload, is harmless; and it does reach its aims."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bftfs.identifiers import NodeId
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.byzantine.registry import CLIENTS, GRANTS, INITIATIVES, NODES
from bftfs.simulation.configuration import KINDS
from bftfs.simulation.scenario import Simulation, run
from tests.simulation.mutants import attacked, believe_claims_of_groups

SEEDS = (1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node", sorted(NODES))
def test_a_byzantine_node_is_harmless(kind: str, node: str) -> None:
    for seed in SEEDS:
        report = run(attacked(seed, kind=kind, node=node, operations=60))
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize(
    ("kind", "client"), [(kind, name) for kind in KINDS for name in sorted(CLIENTS[kind])]
)
def test_byzantine_clients_are_harmless(kind: str, client: str) -> None:
    for seed in SEEDS:
        report = run(attacked(seed, kind=kind, client=client, operations=60))
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in sorted(INITIATIVES[kind])]
)
def test_nodes_that_start_repairs_are_harmless(kind: str, name: str) -> None:
    """And the clients that do the same with the keys of such a node; nodes repair, too."""
    for seed in SEEDS:
        configuration = attacked(
            seed,
            kind=kind,
            node="wrong-answers",
            client=name,
            operations=60,
            verification=VerificationSettings(),
        )
        ((node, _),) = configuration.byzantine_nodes
        report = run(replace(configuration, initiatives=((node, name),)))
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize("client", ["poisonous-writer", "partial-writer", "stutterer"])
def test_nodes_that_verify_are_not_deceived(client: str) -> None:
    """[LazyVer §3.8] with limits that are soon reached, and false notices."""
    verification = VerificationSettings(node=16, client=4, block=2)
    for seed in SEEDS:
        report = run(
            attacked(
                seed,
                kind="blocks",
                node="false-verifier",
                client=client,
                operations=60,
                verification=verification,
            )
        )
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize("verifies", [False, True])
@pytest.mark.parametrize("node", sorted(set(NODES) - {"false-verifier"}))
def test_notices_are_no_surprise_to_other_adversaries(node: str, verifies: bool) -> None:
    """Whoever else has taken a node over is sent notices, and sends them to who expects none."""
    configuration = replace(
        attacked(1, kind="blocks", operations=30),
        byzantine_nodes=((NodeId(1), ("false-verifier", node)),),
        verification=VerificationSettings(node=16, client=4, block=2) if verifies else None,
    )
    report = run(configuration)
    assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize("client", ["partial-updater", "two-faced-updater", "half-multi-object"])
def test_updates_of_byzantine_clients_take_place(client: str) -> None:
    """They are operations like others, if anybody finishes them."""
    simulation = Simulation(attacked(1, kind="objects", client=client, operations=150))
    simulation.run()
    assert simulation.findings == []
    labels = {label for journal in simulation.workload.journals.values() for label in journal}
    intruders = {
        entry.client
        for entry in simulation.workload.history
        if entry.update and getattr(entry.arguments, "label", None) in labels
    }
    assert any(name.startswith("intruder") for name in intruders)


def test_items_of_byzantine_clients_are_read() -> None:
    simulation = Simulation(attacked(1, kind="blocks", client="partial-writer", operations=150))
    simulation.run()
    assert simulation.findings == []
    assert any(
        entry.kind == "read" and (entry.value or "").startswith("intruder")
        for entry in simulation.workload.history
    )


FORBIDDEN = ("never written", "was never made", "without the right")


def shows_what_was_forbidden(finding: str) -> bool:
    return any(sign in finding for sign in FORBIDDEN)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_forbidden_is_found_where_grants_are_not_checked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bftfs.simulation.scenario.GRANTS", {})
    report = run(attacked(1, kind=kind, client="trespasser", operations=60))
    assert any(map(shows_what_was_forbidden, report.findings))


@pytest.mark.parametrize("kind", KINDS)
def test_must_fail_nodes_that_believe_claims_of_groups(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims_a_group = GRANTS["trespasser"][-1:]
    monkeypatch.setattr("bftfs.simulation.scenario.GRANTS", {"trespasser": claims_a_group})
    attack = attacked(1, kind=kind, client="trespasser", operations=60)
    assert run(attack).passed
    believe_claims_of_groups(monkeypatch)
    assert any(map(shows_what_was_forbidden, run(attack).findings))
