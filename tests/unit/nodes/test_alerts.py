"""The alert rules: every metric and label that they name is told, and they have a rule's form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.unit.nodes.test_dashboard import gauges, misnamed, told

__all__ = ["gauges", "told"]  # fixtures

ALERTS = (Path(__file__).parents[3] / "docs" / "prometheus-alerts.yml").read_text()
QUOTED = r"'((?:[^']|'')*)'"
RULE = re.compile(
    r"      - alert: (Bftfs[A-Za-z]+)\n"
    rf"        expr: {QUOTED}\n"
    r"        for: (\d+[mh])\n"
    r"        labels: \{severity: (critical|warning)\}\n"
    r"        annotations:\n"
    rf"          summary: {QUOTED}\n"
    rf"          description: {QUOTED}\n"
)
RULES = [match.groups() for match in RULE.finditer(ALERTS)]


def test_all_of_the_file_are_rules() -> None:
    assert RULE.sub("", ALERTS).endswith("groups:\n  - name: bftfs\n    rules:\n")
    names = [rule[0] for rule in RULES]
    assert len(set(names)) == len(names) > 10


def test_they_name_what_nodes_tell(told: dict[str, set[str]]) -> None:
    panels: list[dict[str, Any]] = [
        {"targets": [{"expr": expression, "legendFormat": ""}]} for _, expression, *_ in RULES
    ]
    assert list(misnamed({"panels": panels}, told)) == []


def test_labels_in_sentences_are_left_by_the_expressions(
    told: dict[str, set[str]],
) -> None:
    for name, expression, _, _, summary, description in RULES:
        labels = set(re.findall(r"\$labels\.(\w+)", summary + description))
        metrics = re.findall(r"\bbftfs_[a-z_]+", expression)
        kept = {"instance", "job"}.union(*(told[each] for each in metrics))
        if " by (job)" in expression or "absent(" in expression:
            kept = {"job"}
        assert labels <= kept, name
