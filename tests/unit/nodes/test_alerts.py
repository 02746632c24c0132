"""The alert rules: they name what nodes tell, have a rule's form, and fire when they should.

When each fires, and when not, is asked of Prometheus' own `promtool`, where there is one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.nodes.test_dashboard import gauges, misnamed, told

__all__ = ["gauges", "told"]  # fixtures

RULE_FILE = Path(__file__).parents[3] / "docs" / "prometheus-alerts.yml"
ALERTS = RULE_FILE.read_text()
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


# --- when they fire ---------------------------------------------------------------------------

DAY_S = 86400
Samples = dict[str, str]

UP: Samples = {
    **{f"bftfs_healthy:{node}": "1" for node in range(6)},
    **{f"bftfs_recovering:{node}": "0" for node in range(6)},
    "bftfs_members:0": "6",
    "bftfs_members:1": "6",
    "bftfs_tolerated_faults:1": "1",
}


def away(*nodes: int, last: int = 5) -> Samples:
    """These nodes tell something for the first `last` minutes only."""
    names = (f"bftfs_{what}:{node}" for what in ("healthy", "recovering") for node in nodes)
    return UP | {name: f"{UP[name]}+0x{last} stale" for name in names}


def pool(taken: int, free: int, limit: int) -> Samples:
    return {
        "bftfs_pool_bytes:1": str(taken),
        "bftfs_free_bytes:1": str(free),
        "bftfs_pool_limit_bytes:1": str(limit),
    }


def closed(reason: str, values: str) -> Samples:
    return {f'bftfs_connections_closed_total:1:reason="{reason}"': values}


# Alert, what nodes tell (a value alone stays), a minute in which it does not fire, and one in which
# it does (none: never). The first minute is at the time 0.
CASES: list[tuple[str, Samples, int, int | None]] = [
    ("BftfsSilent", away(*range(6)), 7, 9),
    ("BftfsSilent", {}, 1, 3),
    ("BftfsSilent", away(0, 1, 2, 3, 4), 60, None),
    ("BftfsNoQuorum", away(2, 3), 6, 8),
    ("BftfsNoQuorum", UP | {"bftfs_recovering:2": "1", "bftfs_recovering:3": "1"}, 0, 2),
    ("BftfsNoQuorum", away(2), 60, None),
    ("BftfsNoReserve", away(2), 15, 17),
    ("BftfsNoReserve", UP | {"bftfs_recovering:2": "1"}, 9, 11),
    ("BftfsNoReserve", UP, 60, None),
    ("BftfsNodeAway", away(2), 20, 22),
    ("BftfsNodeAway", UP, 60, None),
    ("BftfsUnhealthy", UP | {"bftfs_healthy:2": "1+0x5 0+0x60"}, 10, 12),
    ("BftfsUnhealthy", UP | {"bftfs_healthy:2": "1 0 0 0 1+0x60"}, 60, None),
    ("BftfsClockDistrusted", {"bftfs_clock_distrusted:1": "1"}, 4, 6),
    ("BftfsClockDistrusted", {"bftfs_clock_distrusted:1": "0"}, 60, None),
    ("BftfsBug", {"bftfs_faults_total:1": "0 0 0 1+0x60"}, 2, 4),
    ("BftfsBug", {"bftfs_faults_total:1": "1"}, 60, None),
    ("BftfsDamage", {"bftfs_scrub_damaged:1": "0 0 0 1+0x60"}, 2, 4),
    ("BftfsDamage", {"bftfs_scrub_damaged:1": "0"}, 60, None),
    ("BftfsDamageStays", {"bftfs_damaged_objects:1": "3"}, 59, 61),
    ("BftfsDamageStays", {"bftfs_damaged_objects:1": "3+0x40 0+0x100"}, 120, None),
    (
        "BftfsHealingFails",
        {"bftfs_heal_blocks_failed:1": "0+1x200", "bftfs_heal_objects_failed:1": "0"},
        60,
        62,
    ),
    (
        "BftfsHealingFails",
        {"bftfs_heal_blocks_failed:1": "0 0 5+0x200", "bftfs_heal_objects_failed:1": "0"},
        180,
        None,
    ),
    ("BftfsScrubLate", {"bftfs_scrubbed_seconds:1": f"{-21 * DAY_S}"}, 59, 62),
    ("BftfsScrubLate", {"bftfs_scrubbed_seconds:1": f"{-14 * DAY_S}"}, 120, None),
    ("BftfsPoolFull", pool(91, 9, 100), 29, 31),
    ("BftfsPoolFull", pool(85, 15, 100), 60, None),
    ("BftfsDiskFull", pool(91, 9, 1000), 29, 31),
    ("BftfsDiskFull", pool(91, 9, 100), 60, None),  # that is the pool
    ("BftfsRulesBroken", closed("MalformedMessage", "0 0 0 9+0x60"), 2, 4),
    ("BftfsRulesBroken", closed("ProtocolViolation", "0 0 0 3+0x60"), 60, None),
    ("BftfsRulesBroken", closed("lost", "0 0 0 9+0x60"), 60, None),
    ("BftfsPoison", {"bftfs_poisonous_versions:1": "0 0 0 1+0x60"}, 2, 4),
    ("BftfsPoison", {"bftfs_poisonous_versions:1": "7"}, 60, None),
    (
        "BftfsWritersWait",
        {"bftfs_verification_demands:1": "0", "bftfs_repair_demands:1": "0+5x60"},
        15,
        17,
    ),
    (
        "BftfsWritersWait",
        {"bftfs_verification_demands:1": "0", "bftfs_repair_demands:1": "0 0 9+0x60"},
        60,
        None,
    ),
]


def test_each_rule_is_shown_to_fire_and_not_to_fire() -> None:
    names = {rule[0] for rule in RULES}
    assert {name for name, *_, fires in CASES if fires is not None} == names
    assert {name for name, *_, fires in CASES if fires is None} == names


def told_by_nodes(samples: Samples, minutes: int) -> list[dict[str, str]]:
    series = []
    for key, values in samples.items():
        metric, node, *label = key.split(":", 2)
        labels = ",".join(('job="c"', f'instance="{node}"', *label))
        lasting = values if " " in values or "x" in values else f"{values}+0x{minutes}"
        series.append({"series": f"{metric}{{{labels}}}", "values": lasting})
    return series


def firing(name: str, minute: int, count: int) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    samples = [{"labels": "{}", "value": count}] if count else []
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def test_they_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or shutil.which("promtool", path=f"{sys.prefix}/bin")
    if promtool is None:
        pytest.skip("there is no promtool")
    tests = []
    for name, samples, not_yet, fires in CASES:
        asked = [firing(name, not_yet, 0)]
        if fires is not None:
            asked.append(firing(name, fires, 1))
        told = told_by_nodes(samples, max(not_yet, fires or 0) + 1)
        tests.append({"interval": "1m", "input_series": told, "promql_expr_test": asked})
    page = tmp_path / "alerts-test.yml"  # JSON is YAML
    page.write_text(json.dumps({"rule_files": [str(RULE_FILE)], "tests": tests}))
    command = [promtool, "test", "rules", page]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
