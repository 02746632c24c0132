"""Clients are revoked while they are at work: what they attempt once all nodes know shows nowhere.

Nodes hear of it one after the other, and are offered older descriptions now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.configuration import Configuration, draw
from bftfs.simulation.descriptions import ClientLists
from bftfs.simulation.scenario import Simulation
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import attacked, hunt

PAIRS = [
    ("blocks", "partial-writer", "accomplice"),
    ("blocks", "late-finisher", "accomplice"),
    ("objects", "two-faced-updater", "wrong-answers"),
    ("objects", "conspirator", "confederate"),
    ("files", "overwriter", "accomplice"),
]


def revocations(kind: str, client: str, node: str, seeds: range) -> Iterator[Configuration]:
    """Both Byzantine clients are revoked soon; a node that lies goes on helping them."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind=kind,
            node=node,
            client=client,
            operations=100,
            verification=VerificationSettings(),
        )
        faults = replace(
            configuration.faults, revoke_every_us=SECOND_US // 10, hear_us=(0, SECOND_US // 10)
        )
        yield replace(configuration, faults=faults)


@pytest.mark.parametrize(("kind", "client", "node"), PAIRS)
def test_what_revoked_clients_attempt_shows_nowhere(kind: str, client: str, node: str) -> None:
    revoked = 0
    for configuration in revocations(kind, client, node, range(2)):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        revoked += len(simulation.workload.cut_off)
    assert revoked


def takes_any(descriptions: ClientLists, node: int, serial: int) -> None:
    """A node goes by whatever was brought last."""
    descriptions._serials[node] = serial  # type: ignore[index]


def admits_all(*_: object) -> bool:
    """A node serves whoever was a client once."""
    return True


@pytest.mark.parametrize("pair", PAIRS[:3])
@pytest.mark.parametrize(("name", "broken"), [("offer", takes_any), ("admits", admits_all)])
def test_must_fail_nodes_that_serve_revoked_clients(
    pair: tuple[str, str, str],
    name: str,
    broken: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ClientLists, name, broken)
    assert hunt(revocations(*pair, range(12)))


def test_revocations_are_drawn() -> None:
    drawn = [draw(seed, operations=10) for seed in range(100)]
    revoking = [each for each in drawn if each.faults.revoke_every_us]
    assert len(revoking) > 5
    assert all(each.byzantine_clients for each in revoking)
