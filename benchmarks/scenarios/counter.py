"""How many updates and queries per second do Query/Update counters take, and what does one cost?

[Q/U §4.4] measures the same: increments and fetches of counters, for growing numbers of tolerated
faults.  Each operation in flight has a counter of its own, so that none waits for another.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.measurement import Measure
from benchmarks.session import Phase, Place, Session
from bftfs.cluster import Durability
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update.client import Answered
from bftfs.query_update.counter import Fetch, Increment


@dataclass(frozen=True, slots=True)
class Parameters:
    """`operations` of each kind are done with each number `in_flight`."""

    repeat: int
    systems: tuple[System, ...]
    in_flight: tuple[int, ...]
    operations: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    for system in parameters.systems:
        with (
            deployed(system, parameters.durability, below=below) as deployment,
            client_of(deployment) as client,
            suppress(PhaseError),
        ):
            counters = _Counters(session, deployment, client)
            counters.warm_up(max(parameters.in_flight))
            for number in range(parameters.repeat):
                for in_flight in parameters.in_flight:
                    place = Place(target, number, f"{system}, {in_flight} in flight")
                    counters.measure(place, in_flight, parameters.operations)


class _Counters:
    """The counters of one cluster, and what they should have counted."""

    def __init__(self, session: Session, deployment: Deployment, client: Client) -> None:
        self._session = session
        self._deployment = deployment
        self._client = client
        self._expected: dict[int, int] = {}

    def warm_up(self, count: int) -> None:
        """Make the counters, and the paths to them."""
        self._increment(range(count), in_flight=count, latencies_ns=[])

    def measure(self, place: Place, in_flight: int, operations: int) -> None:
        """Increments, then fetches."""
        chosen = [number % in_flight for number in range(operations)]
        with self._phase(place, "update", operations) as phase:
            self._increment(chosen, in_flight=in_flight, latencies_ns=phase.latencies_ns)
        with self._phase(place, "query", operations) as phase:
            answers = self._client.perform(
                (partial(self._fetch, number) for number in chosen),
                in_flight=in_flight,
                latencies_ns=phase.latencies_ns,
            )
            found = {n: answered.answer.value for n, answered in zip(chosen, answers, strict=True)}
            expected = {number: self._expected[number] for number in found}
            if found != expected:
                raise WorkloadError(f"the counters are {found} and should be {expected}")

    def _phase(self, place: Place, name: str, operations: int) -> AbstractContextManager[Phase]:
        return self._deployment.operations(
            self._session,
            place,
            name,
            Measure.OPERATIONS_PER_SECOND,
            count=operations,
            asked=self._deployment.description.query_update.q,
        )

    def _increment(self, chosen: Sequence[int], *, in_flight: int, latencies_ns: list[int]) -> None:
        for number in chosen:
            self._expected[number] = self._expected.get(number, 0) + 1
        self._client.perform(
            (
                partial(
                    self._client.objects.update,
                    (_counter(number),),
                    "counter.increment",
                    Increment(),
                    ROOT,
                )
                for number in chosen
            ),
            in_flight=in_flight,
            latencies_ns=latencies_ns,
        )

    async def _fetch(self, number: int) -> Answered:
        return await self._client.objects.query((_counter(number),), "counter.fetch", Fetch(), ROOT)


def _counter(number: int) -> ObjectId:
    """Neighbouring counters have different preferred quorums."""
    return object_id(ObjectKind.COUNTER, placement=number % 256, unique=number.to_bytes(14, "big"))
