"""What is made of the samples of the verification benchmark: comparisons and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import click.testing
import pytest

from benchmarks import charts, plot, result
from benchmarks.machine import Machine
from benchmarks.measurement import Measure, Sample
from benchmarks.result import Result
from benchmarks.scenarios import verification

Benchmark = Callable[..., click.testing.Result]


def sample(phase: str, value: float, round_number: int = 0, **details: float | str) -> Sample:
    rate = phase == "overwrite"
    return Sample(
        target="nodes",
        variant=" ".join(map(str, details.values())),
        phase=phase,
        round=round_number,
        measure=Measure.OPERATIONS_PER_SECOND if rate else Measure.MICROSECONDS_PER_OPERATION,
        seconds=1.0 if rate else value / 1e6,
        amount=value if rate else 1,
        started_s=0.0,
        details=details,
    )


def measured() -> tuple[Sample, ...]:
    latencies = [
        sample(phase, microseconds, b=b, policy=policy)
        for b in (1, 2)
        for phase, by_policy in (
            ("write", {"write-time": 4000, "read-time": 2000, "lazy+cooperative": 2200}),
            ("read", {"write-time": 1000, "read-time": 1500, "lazy+cooperative": 1100}),
        )
        for policy, microseconds in by_policy.items()
    ]
    counted = [
        sample("write", 2000, b=1, policy=policy, messages_per_version=messages)
        for policy, messages in (("lazy", 30), ("lazy+cooperative", 20))
    ]
    rates = [
        sample("overwrite", 100, policy="write-time", pool=0),
        sample("overwrite", 500, policy="read-time", pool=0),
        sample("overwrite", 200, policy="lazy", pool=1024),
        sample("overwrite", 300, 0, policy="lazy+cooperative", pool=1024),
        sample("overwrite", 400, 1, policy="lazy+cooperative", pool=1024),
        sample("overwrite", 500, 2, policy="lazy+cooperative", pool=1024),
    ]
    return (*latencies, *counted, *rates)


def test_ratios_stand_beside_those_of_the_source() -> None:
    lines = verification.comparison(measured())
    assert any("writes with think time, b = 2: lazy+cooperative takes 1.10" in one for one in lines)
    assert any("reads with think time, b = 2: lazy+cooperative takes 1.10" in one for one in lines)
    assert any("b = 1: 30 without cooperation, 20 with it" in line for line in lines)
    assert any("makes 4.0 times what write-time makes (source: 4)" in line for line in lines)
    assert any("0.80 of free verification (source: 0.91)" in line for line in lines)
    assert any("2.00 of lazy without cooperation, pool 1024" in line for line in lines)
    assert verification.comparison(()) == []


def test_each_policy_is_a_line_and_what_has_no_pool_a_level() -> None:
    writes, reads, throughput = verification.charts(measured())
    assert writes.lines["write-time"] == {1: 4.0, 2: 4.0}
    assert reads.lines["read-time"] == {1: 1.5, 2: 1.5}
    assert throughput.lines["lazy+cooperative"] == {1024: 400}
    assert throughput.levels == {"write-time": 100, "no verification at all": 500}


@pytest.mark.parametrize("phases", [{"write", "read"}, {"overwrite"}])
def test_what_was_not_measured_is_not_drawn(phases: set[str]) -> None:
    drawn = verification.charts([one for one in measured() if one.phase in phases])
    assert len(drawn) == len(phases)
    assert ElementTree.fromstring(plot.svg(drawn)) is not None


def test_lines_and_levels_are_named_in_the_picture() -> None:
    lines = {"one": {1: 0.0, 10: 50.0, 100: 100.0}}
    chart = charts.Lines("title <&>", "x", "y", lines, {"level": 25.0}, True)
    words = texts([chart, chart])
    assert words.count("title <&>") == 2
    assert {"x", "y", "one", "level", "1", "10", "100"} <= set(words)
    assert plot.svg([chart]) == plot.svg([chart])


def test_each_phase_is_drawn_for_each_target() -> None:
    bars = charts.Bars("title", "s", {"bftfs": {"copy": 3.0, "read": 0.4}, "ext4": {"copy": 0.08}})
    assert {"bftfs", "ext4", "copy", "read"} <= set(texts([bars]))


def texts(drawn: Sequence[charts.Chart]) -> list[str | None]:
    tree = ElementTree.fromstring(plot.svg(drawn))
    return [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_of_a_result_is_written(benchmark: Benchmark, tmp_path: Path) -> None:
    def written(scenario: str) -> Path:
        path = tmp_path / f"{scenario}.json"
        found = Result(
            result.SCHEMA, scenario, "", "", None, Machine.here(), {}, (), measured(), (), (), ()
        )
        result.write(found, path)
        return path

    picture = tmp_path / "picture.svg"
    assert benchmark("plot", written("verification"), picture).exit_code == 0
    ElementTree.parse(picture)
    refused = benchmark("plot", written("counter"), picture)
    assert refused.exit_code == 1
    assert "of the scenario counter, which has no charts; those that have are" in refused.output
