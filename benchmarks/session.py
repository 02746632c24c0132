"""One run of one scenario: phases are measured here, and failures are recorded here.

Concurrency: a session belongs to the thread that runs the scenario; only `Phase.advance` may be
called from threads of the workload.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.disturbance import Disturbance, DisturbanceRun, PhaseDisturber
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.exposition import TrafficWatch
from benchmarks.measurement import Latencies, Measure, Sample
from benchmarks.processes import ProcessWatch, WatchedProcess
from bftfs.data_directory import NodeDirectory


@dataclass(frozen=True, slots=True)
class Place:
    """Where a phase runs: in which round, on which target, in which variant of the workload."""

    target: str
    round: int
    variant: str = ""
    disturbed: bool = False  # the disturbances of the session apply here


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that went wrong with the file system under measurement."""

    target: str
    round: int
    phase: str
    message: str


class Phase:
    """A phase while it runs; the workload reports to it."""

    def __init__(self, disturber: PhaseDisturber | None) -> None:
        self._disturber = disturber
        self.details: dict[str, float | str] = {}
        self.latencies_ns: list[int] = []

    def advance(self, amount: float = 1) -> None:
        """`amount` more of the work is done."""
        if self._disturber is not None:
            self._disturber.advance(amount)


class Session:
    """Collects what one run of a scenario gives."""

    def __init__(
        self,
        *,
        watched: Sequence[WatchedProcess] = (),
        nodes: Sequence[NodeDirectory] = (),
        disturbances: Sequence[Disturbance] = (),
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._watched = watched
        self._nodes = nodes  # whose traffic is counted
        self._disturbances = disturbances
        self.announce = announce
        self._started = time.perf_counter()
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self.disturbance_runs: list[DisturbanceRun] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Remember, once, what a reader of the figures has to know."""
        if text not in self.notes:
            self.notes.append(text)

    def fail(self, place: Place, phase: str, message: str) -> None:
        """Record that the file system did not do what it should."""
        self.announce(f"{place.target}: {phase} FAILED: {message}")
        self.failures.append(Failure(place.target, place.round, phase, message))

    @contextmanager
    def phase(
        self, place: Place, name: str, measure: Measure, *, amount: float = 1, work: float = 1
    ) -> Iterator[Phase]:
        """Measure the body.  `amount` is what the figure is about (operations, bytes); `work` is
        the total of what the body reports by `advance`.

        An error of the operating system and `WorkloadError` are recorded as a failure, and the
        caller gets `PhaseError`.
        """
        traffic = TrafficWatch(self._nodes)
        watch = ProcessWatch(self._watched)
        disturber = self._disturber(place, name, work)
        phase = Phase(disturber)
        error: OSError | WorkloadError | None = None
        started = time.perf_counter()
        try:
            yield phase
        except (OSError, WorkloadError) as caught:
            error = caught
        finally:
            seconds = time.perf_counter() - started
            processes = watch.finish()
            if disturber is not None:
                self._finish(disturber, place, name)
        if error is not None:
            self.fail(place, name, str(error))
            raise PhaseError(str(error)) from error
        if self._nodes:
            phase.details |= traffic.finish(amount)
        sample = Sample(
            target=place.target,
            variant=place.variant,
            phase=name,
            round=place.round,
            measure=measure,
            seconds=seconds,
            amount=amount,
            started_s=started - self._started,
            latencies=Latencies.of(phase.latencies_ns) if phase.latencies_ns else None,
            processes=processes,
            details=phase.details,
        )
        self.add(sample)

    def add(self, sample: Sample) -> None:
        """Record a sample."""
        self.samples.append(sample)
        variant = f" ({sample.variant})" if sample.variant else ""
        self.announce(
            f"round {sample.round}  {sample.target}  {sample.phase}{variant}:"
            f" {sample.value:,.5g} {sample.measure}"
        )

    def cite(
        self,
        source: str,
        place: Place,
        phase: str,
        measure: Measure,
        *,
        seconds: float = 1,
        amount: float = 1,
    ) -> None:
        """Put a source's figure, `amount` in `seconds`, beside the last sample."""
        self.samples.append(
            Sample(
                target=source,
                variant=place.variant,
                phase=phase,
                round=place.round,
                measure=measure,
                seconds=seconds,
                amount=amount,
                started_s=self.samples[-1].started_s,
            )
        )

    def _disturber(self, place: Place, phase: str, work: float) -> PhaseDisturber | None:
        if not place.disturbed or not self._disturbances:
            return None
        return PhaseDisturber(self._disturbances, phase=phase, round_number=place.round, work=work)

    def _finish(self, disturber: PhaseDisturber, place: Place, phase: str) -> None:
        for run in disturber.finish():
            self.disturbance_runs.append(run)
            if run.complaint is not None:
                self.fail(place, phase, run.complaint)
