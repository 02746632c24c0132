"""Two trees' programs run in turns, and each round's pair makes one ratio."""

import os
from collections.abc import Callable
from pathlib import Path

import click.testing

from benchmarks import result
from benchmarks.deployment import PROJECT

Benchmark = Callable[..., click.testing.Result]
COUNTER = ("counter", "--faults", "0", "--in-flight", "1", "--operations", "1")


def test_each_round_measures_both_trees(benchmark: Benchmark, tmp_path: Path) -> None:
    other, written = tmp_path / "other", tmp_path / "result.json"
    other.mkdir()
    for name in ("benchmarks", "bftfs", "nodes"):
        os.symlink(PROJECT / name, other / name)
    done = benchmark("turns", "--rounds", "2", "--json", written, other, *COUNTER)
    assert done.exit_code == 0, done.output
    assert "time ratio" in done.output
    updates = [s for s in result.read(written).samples if s.phase == "update"]
    assert [(sample.round, sample.target) for sample in updates] == [
        (0, "this program"),
        (0, "the other"),
        (1, "the other"),
        (1, "this program"),
    ]


def test_a_scenario_that_fails_ends_the_turns(benchmark: Benchmark) -> None:
    done = benchmark("turns", Path(__file__).parent, *COUNTER)
    assert done.exit_code == 1
    assert "no checkout of bftfs there" in done.output


def test_a_tree_is_not_compared_with_itself(benchmark: Benchmark) -> None:
    done = benchmark("turns", PROJECT, *COUNTER)
    assert done.exit_code == 1
    assert "another commit" in done.output
