"""The dashboard: every metric and label that it names is told, and it has a dashboard's form.

Grafana itself is not asked: what is checked of the form is what its documentation says of the JSON
model; `tests/dashboard/` draws it with Grafana's components. What a running node exposes is
compared in `tests/integration/test_control.py`.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import pytest

from bftfs import cluster
from bftfs.crypto.keys import Identity
from bftfs.data_directory import NodeDirectory
from bftfs.envelope import REPLIES, HealthFigure, HealthReply
from bftfs.identifiers import NodeId
from bftfs.server import tally as tallies
from bftfs.server.recovery import Recovery
from bftfs.wire.codec import encode
from nodes.configuration import NodeConfiguration
from nodes.metrics import LoopTally, NodeCollector
from nodes.protocols import HONEST

PROJECT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((PROJECT / "docs" / "grafana-dashboard.json").read_text())
NAME = re.compile(r"\bbftfs_[a-z_]+")
OF_PROMETHEUS = {"ALERTS": {"alertname", "alertstate", "severity"}}  # a series that it makes itself
SCRAPED = frozenset(("instance", "job"))  # labels that Prometheus adds
AGGREGATION = re.compile(r"\b(?:sum|max|min|count|avg)\s*(?:by\s*\(([^)]*)\)\s*)?\(")
SELECTOR = re.compile(r"([a-z_]+)\s*(?:=|!=|=~|!~)\"")
COLUMNS = 24
LISTS = ("templating", "annotations")
FIELD_CONFIG = {"defaults", "overrides"}


def misnamed(dashboard: Mapping[str, Any], exposed: Mapping[str, Set[str]]) -> Iterator[str]:
    """What the dashboard asks for and nobody tells; `exposed` are the labels of each metric."""
    exposed = {**exposed, **OF_PROMETHEUS}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):  # a row has none
            expression, legend = target["expr"], target["legendFormat"]
            named = {name for name in OF_PROMETHEUS if name in expression}
            named.update(NAME.findall(expression))
            if not named:
                yield f"{expression}: no metric"
            for name in named - exposed.keys():
                yield f"{expression}: nobody tells {name}"
            labels = SCRAPED.union(*(exposed.get(name, frozenset()) for name in named))
            for label in set(SELECTOR.findall(expression)) - labels:
                yield f"{expression}: no label {label}"
            aggregation = AGGREGATION.match(expression)
            if aggregation is not None:
                kept = {each.strip() for each in (aggregation[1] or "").split(",")} - {""}
                for label in kept - labels:
                    yield f"{expression}: no label {label}"
                labels = frozenset(kept)
            for label in set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)) - labels:
                yield f"{legend}: no label {label} is left by {expression}"
            if expression.count("(") != expression.count(")"):
                yield f"{expression}: parentheses"


def malformed(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Where it departs from the JSON model of dashboards, as Grafana documents it."""
    fields: dict[str, type | tuple[type, ...]] = {
        "uid": str,
        "title": str,
        "tags": list,
        "timezone": str,
        "editable": bool,
        "panels": list,
        "time": dict,
        "templating": dict,
        "annotations": dict,
        "refresh": str,
        "schemaVersion": int,
        "version": int,
    }
    for field, kind in fields.items():
        if not isinstance(dashboard.get(field), kind):
            yield f"{field}: missing, or of another type"
            return
    if not 8 <= len(dashboard["uid"]) <= 40:
        yield "uid: 8 to 40 characters"
    if set(dashboard["time"]) != {"from", "to"}:
        yield "time: from, to"
    if not all(isinstance(dashboard[each].get("list"), list) for each in LISTS):
        yield "a list is missing"
    sources = {f"${{{each['name']}}}" for each in dashboard["templating"]["list"]}
    if len({panel["id"] for panel in dashboard["panels"]}) != len(dashboard["panels"]):
        yield "panels with one id"
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        title = panel["title"]
        at = panel["gridPos"]
        if not (at["x"] >= 0 and at["w"] >= 1 and at["x"] + at["w"] <= COLUMNS and at["h"] >= 1):
            yield f"{title}: outside of the grid"
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        if cells & taken:
            yield f"{title}: over another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        if panel["datasource"]["type"] != "prometheus" or panel["datasource"]["uid"] not in sources:
            yield f"{title}: no source"
        if panel["type"] not in ("stat", "table", "timeseries"):
            yield f"{title}: {panel['type']}"
        if not isinstance(panel["options"], dict) or set(panel["fieldConfig"]) != FIELD_CONFIG:
            yield f"{title}: options, fieldConfig"
        marks = [target["refId"] for target in panel["targets"]]
        if not marks or len(set(marks)) != len(marks):
            yield f"{title}: targets"


@pytest.fixture(scope="module")
def gauges() -> tuple[tallies.Figure, ...]:
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
def told(gauges: tuple[tallies.Figure, ...]) -> dict[str, set[str]]:
    """The labels of all that a node exposes, once everything has happened that it counts."""
    health = HealthReply(1, 1, True, (), 1, 1, 1, 1, 1, 1)
    tally = LoopTally()
    tally.requests[HealthReply] = tally.refused[errno.ENOSPC] = tally.closed["lost"] = 1
    exposed: dict[str, set[str]] = {}
    for metric in NodeCollector(tally, lambda: health, lambda: gauges).collect():
        for sample in metric.samples:
            exposed.setdefault(sample.name, set()).update(sample.labels)
    return exposed


def test_every_metric_and_label_that_the_dashboard_names_exists(told: dict[str, set[str]]) -> None:
    assert list(misnamed(DASHBOARD, told)) == []


def test_the_dashboard_has_the_form_of_one() -> None:
    assert list(malformed(DASHBOARD)) == []


@pytest.mark.parametrize(
    ("expression", "legend"),
    [
        ("rate(bftfs_nothing_total[5m])", ""),
        ("rate(bftfs_refused_total[5m])", "{{message}}"),
        ("sum(bftfs_heal_blocks_lacking)", "{{instance}}"),
        ("sum by (node) (bftfs_heal_blocks_lacking)", ""),
        ('bftfs_refused_total{message="x"}', ""),
        ("time()", ""),
    ],
)
def test_what_nobody_tells_is_found(
    expression: str, legend: str, told: dict[str, set[str]]
) -> None:
    panels = [{"targets": [{"expr": expression, "legendFormat": legend}]}]
    assert list(misnamed({"panels": panels}, told))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda dashboard: dashboard.pop("schemaVersion"),
        lambda dashboard: dashboard.update(uid="short"),
        lambda dashboard: dashboard.update(templating={"list": []}),
        lambda dashboard: dashboard["panels"][3].update(id=1),
        lambda dashboard: dashboard["panels"][0]["gridPos"].update(x=22),
        lambda dashboard: dashboard["panels"][1]["gridPos"].update(x=0),
        lambda dashboard: dashboard["panels"][2].update(type="graph"),
        lambda dashboard: dashboard["panels"][6]["targets"][0].update(refId="B"),
    ],
)
def test_another_form_is_found(break_it: Callable[[Any], Any]) -> None:
    broken = copy.deepcopy(DASHBOARD)
    break_it(broken)
    assert list(malformed(broken))


def test_every_gauge_of_background_work_is_documented(gauges: tuple[tallies.Figure, ...]) -> None:
    page = (PROJECT / "docs" / "operations-nodes.md").read_text()
    described = set(NAME.findall(page))
    families = {name.rstrip("_") for name in re.findall(r"(bftfs_[a-z_]+_)…", page)}
    for gauge in gauges:
        assert gauge.name in described or any(
            gauge.name.startswith(family) for family in families
        ), gauge.name


def test_the_figures_fit_into_a_health_answer(gauges: tuple[tallies.Figure, ...]) -> None:
    figures = tuple(HealthFigure(gauge.name, float(gauge.value)) for gauge in gauges)
    health = HealthReply(1, 1, True, (), 1, 1, 1, 1, 1, 1, figures)

    assert REPLIES.decode(encode(health)) == health
