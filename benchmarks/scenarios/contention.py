"""What does a client wait for a counter that others fetch or increment at the same time?

[Q/U §4.4.3, Table 4.2]: of five clients one increments a shared counter all the time.  The other
four either fetch or increment: some of them, the contending ones, that counter, and the isolated
ones a counter of their own.  Their mean response times are compared.  No client knows an object
history set when an operation begins.  Clients and nodes are processes of this machine.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client_processes import ClientProcess, working
from benchmarks.contender import FETCH, INCREMENT, ISOLATED, KINDS, SHARED, counter_of
from benchmarks.deployment import (
    ROOT,
    Deployment,
    System,
    client_of,
    deployed,
    note_shared_machine,
)
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.measurement import Latencies, Measure, Sample
from benchmarks.session import Place, Session
from benchmarks.victim import Work
from bftfs.cluster import Durability
from bftfs.credentials import Grant
from bftfs.data_directory import DEFAULT_CLIENT
from bftfs.query_update.counter import Fetch

NAME = "contention"
SOURCE = "source, Table 4.2"
SYSTEM = System(t=1, b=1)

_OTHERS = 4
_MEASURE = Measure.MICROSECONDS_PER_OPERATION
# Mean response times in µs, by the number of contending clients. [Q/U Table 4.2]
_SOURCE_US: Mapping[tuple[str, str], Mapping[int, int]] = {
    (FETCH, ISOLATED): {0: 320, 1: 331, 2: 329, 3: 326},
    (FETCH, SHARED): {1: 348, 2: 336, 3: 339, 4: 361},
    (INCREMENT, ISOLATED): {0: 693, 1: 709, 2: 700, 3: 692},
    (INCREMENT, SHARED): {1: 1210, 2: 2690, 3: 4930, 4: 11400},
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Each number of contending clients is measured for so many seconds."""

    repeat: int
    seconds: float
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    note_shared_machine(session)
    names = [f"client{number}" for number in range(_OTHERS + 1)]
    clients = dict.fromkeys((*names, DEFAULT_CLIENT), Grant())
    with (
        deployed(SYSTEM, parameters.durability, below=below, clients=clients) as deployment,
        suppress(PhaseError),
    ):
        processes = [
            ClientProcess(deployment, name, "benchmarks.contender", "--number", str(number))
            for number, name in enumerate(names)
        ]
        increments = 1  # by which the shared counter was made
        with working(processes):
            for number in range(parameters.repeat):
                for kind in KINDS:
                    for contending in range(_OTHERS + 1):
                        place = Place(target, number, f"{contending} contending")
                        works = _turn(processes, kind, contending, parameters.seconds)
                        _record(session, place, kind, works)
                        shared = 1 + (contending if kind == INCREMENT else 0)
                        increments += sum(len(work.latencies_us) for work in works[:shared])
                        _check(session, place, kind, deployment, increments)


def _turn(
    processes: Sequence[ClientProcess], kind: str, contending: int, seconds: float
) -> list[Work]:
    """Process 0 increments the shared counter, the next ones contend, the last are isolated."""
    for number, process in enumerate(processes):
        own = INCREMENT if number == 0 else kind
        process.begin(f"{own}:{SHARED if number <= contending else ISOLATED}", seconds)
    return [process.finish() for process in processes]


def _record(session: Session, place: Place, kind: str, works: Sequence[Work]) -> None:
    """The response times of the four, and the source's beside them."""
    failures = [error for work in works for error in work.failures]
    if failures:
        session.fail(place, kind, f"operations of correct clients failed: {failures}")
        raise PhaseError
    contending = int(place.variant.split()[0])
    groups = {SHARED: works[1 : contending + 1], ISOLATED: works[contending + 1 :]}
    for where, group in groups.items():
        latencies = [each for work in group for each in work.latencies_us]
        if not latencies:
            continue
        phase = f"{kind}, {where}"
        session.add(
            Sample(
                target=place.target,
                variant=place.variant,
                phase=phase,
                round=place.round,
                measure=_MEASURE,
                seconds=sum(latencies) / 1e6,
                amount=len(latencies),
                started_s=0,
                latencies=Latencies.of([1000 * each for each in latencies]),
                details={
                    "standard_deviation_us": round(statistics.pstdev(latencies)),
                    "client_cpu_us": round(
                        sum(work.processor_s for work in group) / len(latencies) * 1e6, 1
                    ),
                },
            )
        )
        source_us = _SOURCE_US[kind, where][contending]
        session.cite(SOURCE, place, phase, _MEASURE, seconds=source_us / 1e6)


def _check(
    session: Session, place: Place, kind: str, deployment: Deployment, increments: int
) -> None:
    """The shared counter holds what was counted."""
    with client_of(deployment) as client:
        try:
            query = client.objects.query((counter_of(0),), "counter.fetch", Fetch(), ROOT)
            [answered] = client.perform([lambda: query])
            if answered.answer.value != increments:
                raise WorkloadError(
                    f"the counter is {answered.answer.value} and should be {increments}"
                )
        except WorkloadError as error:
            session.fail(place, kind, str(error))
            raise PhaseError(str(error)) from error
