"""A client and a node that know each other's keys are harmless; with one node too many, not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bftfs.identifiers import NodeId
from bftfs.server.block_verification import VerificationSettings
from bftfs.server.step import Ready
from bftfs.simulation.byzantine.pacts import Confederate
from bftfs.simulation.byzantine.positions import Asked
from bftfs.simulation.byzantine.registry import CONSPIRATORS
from bftfs.simulation.configuration import KINDS, ClientPlan, Configuration
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.blocks import BlockMix
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt

ONE_BLOCK = BlockMix(blocks=1, writes=0.2)
SHUT = FileMix(names=2, contents=0.7, directories=0.1, private=0.0)
BAD = NetworkFaults(loss=0.1, delay_us=(50, 2_000), straggling=0.2)


def pairs(
    kind: str, client: str, seeds: range, *nodes: int, operations: int = 100, verifies: bool = False
) -> Iterator[Configuration]:
    """Two clients that have a pact with each of these nodes."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind=kind,
            client=client,
            operations=operations,
            blocks=ONE_BLOCK,
            files=SHUT,
            verification=VerificationSettings() if verifies else None,
        )
        liars = tuple((NodeId(node), ("confederate",)) for node in nodes)
        configuration = replace(configuration, byzantine_nodes=liars)
        if kind == "blocks":  # readers who have to see what the client does, and not the same
            configuration = replace(
                configuration,
                clients=(ClientPlan(width=2, think_us=(0, 100_000)),) * 2,
                faults=FaultPlan(network=BAD),
            )
        yield configuration


@pytest.mark.parametrize("verifies", [False, True])
@pytest.mark.parametrize(
    ("kind", "client"), [(kind, name) for kind in KINDS for name in CONSPIRATORS[kind]]
)
def test_pairs_are_harmless(kind: str, client: str, verifies: bool) -> None:
    for configuration in pairs(kind, client, range(2), 2, verifies=verifies):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize("kind", ["objects", "blocks"])
def test_the_node_does_its_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked about what the client has begun, it knows its story."""
    asked = 0
    answer = Confederate.answer

    def watched(node: Confederate, about: Asked) -> Ready:
        nonlocal asked
        asked += bool(node.position.pact.told or node.position.pact.planted)
        return answer(node, about)

    monkeypatch.setattr(Confederate, "answer", watched)
    for configuration in pairs(kind, "conspirator", range(1), 2):
        assert run(configuration).passed
    assert asked > 20


@pytest.mark.parametrize(
    ("kind", "nodes", "first", "operations", "sign"),
    [
        ("objects", (2, 4), 13, 40, "is not on the chain"),
        ("blocks", (1, 2, 4), 3, 100, "was so at"),
    ],
)
def test_must_fail_with_pairs_of_more_nodes_than_may_lie(
    kind: str, nodes: tuple[int, ...], first: int, operations: int, sign: str
) -> None:
    """Few operations on objects, since in some seeds nothing comes to an end any more: such a seed
    takes 16 s, so the first is one that shows it at once."""
    seeds = range(first, first + 8)
    configurations = pairs(kind, "conspirator", seeds, *nodes, operations=operations)
    assert hunt(configurations, lambda finding: sign in finding)
