"""Principals that start repairs, in the simulator: whatever they do, nobody sees anything false."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bftfs.identifiers import NodeId
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.simulation.byzantine.registry import CLIENTS, corrupted
from bftfs.simulation.byzantine.repairing import (
    ClockedBarrier,
    ForgedBarrier,
    Initiative,
    LateFinisher,
    Meddler,
    RacingBarrier,
    with_initiative,
)
from bftfs.simulation.scenario import Simulation
from tests.simulation.mutants import attacked

OF_OBJECTS: dict[str, Any] = {
    "clocked-barrier": ClockedBarrier,
    "racing-barrier": RacingBarrier,
    "forged-barrier": ForgedBarrier,
    "meddler": Meddler,
}
OF_BLOCKS: dict[str, Any] = {"late-finisher": LateFinisher}
CASES = [
    *((kind, name) for kind in ("objects", "files") for name in OF_OBJECTS),
    *(("blocks", name) for name in OF_BLOCKS),
]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("objects", "files"):
        for name, adversary in OF_OBJECTS.items():
            monkeypatch.setitem(CLIENTS[kind], name, adversary)  # type: ignore[arg-type]
    for name, adversary in OF_BLOCKS.items():
        monkeypatch.setitem(CLIENTS["blocks"], name, adversary)  # type: ignore[arg-type]


def ended(simulation: Simulation) -> list[str]:
    simulation.run()
    return simulation.findings


@pytest.mark.parametrize("node", [None, "wrong-answers"])
@pytest.mark.parametrize(("kind", "client"), CASES)
def test_clients_that_start_repairs(kind: str, client: str, node: str | None) -> None:
    """Alone, and in league with a node that lies besides: it has that node's keys."""
    case = attacked(3, kind=kind, client=client, node=node, operations=40)
    case = replace(case, verification=VerificationSettings())
    assert ended(Simulation(case)) == []


@pytest.mark.parametrize("name", sorted(OF_OBJECTS))
def test_a_node_that_starts_repairs(name: str) -> None:
    """The same, under the node's own name, and with its own keys."""
    case = attacked(5, kind="objects", node="wrong-answers", operations=40)
    simulation = Simulation(case)
    (ally,) = simulation.allies
    position = ClientPosition(
        f"node {ally.node}",
        simulation.deployment.nodes[ally.node].endpoint,  # type: ignore[arg-type]
        case.sizes,
        simulation.workload.random,
        simulation.workload,
        lambda: simulation.world.now_us,
        (ally,),
    )
    initiative = Initiative(OF_OBJECTS[name](position), every_us=5_000, acts=40)
    simulation.deployment.nodes[NodeId(ally.node)].become(
        lambda: with_initiative(corrupted(ally, ("wrong-answers",)), initiative)
    )
    assert ended(simulation) == []
