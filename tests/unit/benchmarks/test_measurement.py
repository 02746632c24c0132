"""What is computed from samples."""

import pytest

from benchmarks.measurement import Latencies, Measure, Sample, Spread, time_ratio
from benchmarks.result import summary


def sample(target: str, number: int, seconds: float, **fields: object) -> Sample:
    """A sample of the phase `copy`, unless told otherwise."""
    known: dict[str, object] = {
        "variant": "",
        "phase": "copy",
        "measure": Measure.SECONDS,
        "amount": 1,
        "started_s": 0.0,
    }
    return Sample(target=target, round=number, seconds=seconds, **(known | fields))  # type: ignore[arg-type]


def test_a_spread_is_median_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0, 3)
    assert Spread.of([1.0, 2.0]).median == 1.5


@pytest.mark.parametrize(
    ("measure", "amount", "value"),
    [
        (Measure.SECONDS, 1, 2.0),
        (Measure.OPERATIONS_PER_SECOND, 500, 250.0),
        (Measure.MEGABYTES_PER_SECOND, 4_000_000, 2.0),
        (Measure.MICROSECONDS_PER_OPERATION, 500, 4000.0),
    ],
)
def test_the_figure_of_a_sample(measure: Measure, amount: float, value: float) -> None:
    assert sample("A", 0, 2.0, measure=measure, amount=amount).value == value


def test_latencies_are_ranks() -> None:
    assert Latencies.of([n * 1000 for n in range(100, 0, -1)]) == Latencies(50, 90, 99, 100)
    assert Latencies.of([7000]) == Latencies(7, 7, 7, 7)


def test_a_ratio_pairs_rounds() -> None:
    # A slow machine in round 1 slows both sides: the ratio of that round is not disturbed.
    measured = [sample("A", 0, 2.0), sample("A", 1, 20.0), sample("A", 2, 9.0)]
    against = [sample("B", 0, 1.0), sample("B", 1, 10.0)]
    assert time_ratio(measured, against) == Spread(2.0, 2.0, 2.0, 2)


def test_a_ratio_is_per_unit_of_work() -> None:
    measured = [sample("A", 0, 2.0, amount=64)]
    against = [sample("B", 0, 1.0, amount=8)]
    assert time_ratio(measured, against) == Spread(0.25, 0.25, 0.25, 1)


def test_no_common_round_no_ratio() -> None:
    assert time_ratio([sample("A", 0, 1.0)], [sample("B", 1, 1.0)]) is None


def test_the_summary_keeps_the_order_of_phases_and_the_gaps() -> None:
    samples = [
        sample("A", 0, 1.0, phase="write"),
        sample("A", 0, 3.0, phase="read"),
        sample("B", 0, 2.0, phase="write"),
    ]
    write, read = summary(samples, ["A", "B"])
    assert (write.phase, read.phase) == ("write", "read")
    assert write.ratio == Spread(0.5, 0.5, 0.5, 1)
    assert read.spreads == (Spread(3.0, 3.0, 3.0, 1), None)
    assert read.ratio is None
