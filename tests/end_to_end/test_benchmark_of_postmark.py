"""PostMark runs in a mount of nodes of its own, at size one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import result
from benchmarks.commands import main
from benchmarks.scenarios import postmark
from tests.end_to_end.expectations import program
from tests.end_to_end.watchdog import Watchdog, mounts_below


@pytest.mark.timeout(120)
def test_postmark(mounting: None, outside: Path, watchdog: Watchdog) -> None:
    program("postmark")
    written = outside / "postmark.json"
    words = ["--files", "20", "--transactions", "40", "--below", outside, "--json", written]
    with watchdog.guard(100, "postmark"):
        done = CliRunner().invoke(
            main, ["postmark", "--faults", "1", "--through", "mount", *map(str, words)]
        )
    assert done.exit_code == 0, done.output
    found = result.read(written)
    assert found.failures == ()
    own = [sample for sample in found.samples if sample.target != postmark.SOURCE]
    assert [(each.phase, each.amount) for each in own] == [
        ("create, mount", 20),
        ("transactions, mount", 40),
    ]
    assert all(float(each.details["all_servers_cpu_us"]) > 0 for each in own)
    assert "114" in done.output
    assert mounts_below(outside) == []
    assert list(outside.iterdir()) == [written]
