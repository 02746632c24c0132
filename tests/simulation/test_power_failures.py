"""A node that loses its last second unawares counts as one that lies: b are borne, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bftfs.identifiers import NodeId
from bftfs.simulation.configuration import KINDS, Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.scenario import run
from tests.simulation.mutants import ENOUGH, attacked, hunt


def failing(
    kind: str, seeds: range, *nodes: int, sizes: Sizes = ENOUGH, operations: int = 150
) -> Iterator[Configuration]:
    """The machines of these nodes lose power now and then, and up to a second each time."""
    for seed in seeds:
        configuration = attacked(seed, kind=kind, sizes=sizes, operations=operations)
        rewound = tuple((NodeId(node), ("rewound",)) for node in nodes)
        yield replace(configuration, byzantine_nodes=rewound)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_power_failures_of_b_nodes(kind: str) -> None:
    for configuration in failing(kind, range(3), 2):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)


@pytest.mark.parametrize(
    ("kind", "nodes", "sizes", "sign"),
    [
        ("objects", (1,), Sizes.smallest(t=1, b=0), "was established, and is not on the chain"),
        ("blocks", (1, 2, 3), ENOUGH, "was acknowledged, but what is there is"),
    ],
)
def test_must_fail_where_more_nodes_than_b_lose_power(
    kind: str, nodes: tuple[int, ...], sizes: Sizes, sign: str
) -> None:
    configurations = failing(kind, range(6), *nodes, sizes=sizes, operations=100)
    assert hunt(configurations, lambda finding: sign in finding)
