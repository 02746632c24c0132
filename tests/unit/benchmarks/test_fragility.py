"""The fragility table's lines, from samples; which adversaries there are to be asked for."""

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.measurement import Latencies, Measure, Sample
from benchmarks.scenarios import fragility

ATTACKED = "nodes (interval)"


def sample(target: str, number: int, *, rate: float, longest_us: float, variant: str) -> Sample:
    latencies = Latencies(100, 200, 300, longest_us)
    return Sample(
        target, variant, "metadata", number, Measure.OPERATIONS_PER_SECOND, 1, rate, 0, latencies
    )


def line(variant: str, *, kept: float, longest_us: float = 1_000) -> fragility.Line:
    samples = []
    for number in range(2):
        for target, rate in ((fragility.FAULT_FREE, 1000.0), (ATTACKED, 1000 * kept)):
            samples.append(
                sample(target, number, rate=rate, longest_us=longest_us, variant=variant)
            )
    (found,) = fragility.lines(samples)
    return found


def test_ratios_are_to_the_fault_free_turn_of_the_same_round() -> None:
    found = line("node: mute", kept=0.6)
    assert found.throughput.median == pytest.approx(0.6)
    assert (found.median, found.p99, found.longest) == (1, 1, 1)


@pytest.mark.parametrize(
    ("variant", "kept", "short"),
    [
        ("node: mute", 0.49, True),
        ("node: mute", 0.51, False),
        ("1 of 4 clients: stutterer", 0.49, True),
        ("1 of 4 clients: stutterer", 0.51, False),
        ("3 of 10 clients: stutterer", 0.74, True),
        ("3 of 10 clients: stutterer", 0.76, False),
    ],
)
def test_less_than_the_aim_falls_short(variant: str, kept: float, short: bool) -> None:
    assert line(variant, kept=kept).falls_short is short


def test_a_long_wait_falls_short() -> None:
    assert line("node: mute", kept=1, longest_us=4_000_000).falls_short


def test_attacks_are_found_by_name() -> None:
    assert fragility.attacks_of(["mute"])[0].workloads == ("metadata", "blocks")
    alone, crowd = fragility.attacks_of(["stutterer"])
    assert alone.workloads == crowd.workloads == ("blocks",)
    assert alone.variant == "1 of 4 clients: stutterer"
    assert crowd.variant == "3 of 10 clients: stutterer"
    with pytest.raises(BenchmarkError, match="nobody"):
        fragility.attacks_of(["nobody"])
