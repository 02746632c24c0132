"""Every metric that the dashboard and the documentation name is one that a node tells."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bftfs import cluster
from bftfs.crypto.keys import Identity
from bftfs.data_directory import NodeDirectory
from bftfs.envelope import REPLIES, Figure, HealthReply
from bftfs.identifiers import NodeId
from bftfs.recovery import Recovery
from bftfs.wire.codec import encode
from nodes.configuration import NodeConfiguration
from nodes.metrics import Gauge, NodeCollector, Tally
from nodes.protocols import HONEST

PROJECT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((PROJECT / "docs" / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\bbftfs_[a-z_]+")


@pytest.fixture(scope="module")
def gauges() -> tuple[Gauge, ...]:
    """What a node's background work tells."""
    made = cluster.create([f"unix:/nowhere/{node}" for node in range(6)], t=1, b=1, draw=os.urandom)
    configuration = NodeConfiguration.load(
        NodeDirectory(Path("/nowhere")).configuration,
        durability=made.description.durability,
        metrics="off",
    )
    identity: Identity = made.nodes[0]
    services = HONEST.services(made.description, identity, NodeId(0), configuration, Recovery())
    return services.gauges()


@pytest.fixture(scope="module")
def told(gauges: tuple[Gauge, ...]) -> set[str]:
    """The names of all that a node exposes."""
    health = HealthReply(1, 1, True, (), 1, 1, 1, 1)
    names = set()
    for metric in NodeCollector(Tally(), lambda: health, lambda: gauges).collect():
        names.add(f"{metric.name}_total" if metric.type == "counter" else metric.name)
    return names


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_the_dashboard_names_exists(expression: str, told: set[str]) -> None:
    named = set(NAME.findall(expression))
    assert named
    assert named <= told, named - told
    assert expression.count("(") == expression.count(")")


def test_a_metric_that_does_not_exist_is_found(told: set[str]) -> None:
    assert not set(NAME.findall("rate(bftfs_nothing_total[5m])")) <= told


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"


def test_every_gauge_of_background_work_is_documented(gauges: tuple[Gauge, ...]) -> None:
    page = (PROJECT / "docs" / "operations-nodes.md").read_text()
    described = set(NAME.findall(page))
    families = {name.rstrip("_") for name in re.findall(r"(bftfs_[a-z_]+_)…", page)}
    for gauge in gauges:
        assert gauge.name in described or any(
            gauge.name.startswith(family) for family in families
        ), gauge.name


def test_the_figures_fit_into_a_health_answer(gauges: tuple[Gauge, ...]) -> None:
    figures = tuple(Figure(gauge.name, float(gauge.value)) for gauge in gauges)
    health = HealthReply(1, 1, True, (), 1, 1, 1, 1, figures)

    assert REPLIES.decode(encode(health)) == health
