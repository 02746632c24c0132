"""Samples, and what is said about several of them: median, extremes, ratios with their spread."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.processes import ProcessUse


class Measure(StrEnum):
    """How the figure of a phase is expressed."""

    SECONDS = "s"
    OPERATIONS_PER_SECOND = "operations/s"
    MEGABYTES_PER_SECOND = "MB/s"
    MICROSECONDS_PER_OPERATION = "µs"


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long single operations took, in microseconds."""

    median: float
    p90: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> "Latencies":
        """Requires: at least one operation."""
        ordered = sorted(nanoseconds)

        def rank(fraction: float) -> float:
            """The smallest latency that `fraction` of the operations did not exceed."""
            return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] / 1000

        return cls(rank(0.5), rank(0.9), rank(0.99), rank(1.0))


@dataclass(frozen=True, slots=True)
class Sample:
    """One phase, measured once."""

    target: str
    variant: str  # what distinguishes runs of one phase in one round: "1000 files, 4 threads"
    phase: str
    round: int
    measure: Measure
    seconds: float
    amount: float  # of what was done in `seconds`: operations, or bytes
    started_s: float  # since the beginning of the run
    latencies: Latencies | None = None
    processes: tuple[ProcessUse, ...] = ()
    details: dict[str, float | str] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The figure of this sample, in the unit of its measure."""
        match self.measure:
            case Measure.SECONDS:
                return self.seconds
            case Measure.OPERATIONS_PER_SECOND:
                return self.amount / self.seconds
            case Measure.MEGABYTES_PER_SECOND:
                return self.amount / self.seconds / 1e6
            case Measure.MICROSECONDS_PER_OPERATION:
                return self.seconds / self.amount * 1e6


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and how far they lie apart."""

    median: float
    minimum: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Requires: at least one value."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def time_ratio(samples: Iterable[Sample], against: Iterable[Sample]) -> Spread | None:
    """How many times longer one unit of work took in `samples` than in `against`.

    The two sides of a round ran right after each other, so they are compared with each other, and
    what disturbs the machine for longer than a round disturbs no ratio.  None: no round has both.
    """
    by_round = {sample.round: sample for sample in against}
    ratios = [
        (sample.seconds / sample.amount) / (other.seconds / other.amount)
        for sample in samples
        if (other := by_round.get(sample.round)) is not None
    ]
    return Spread.of(ratios) if ratios else None
