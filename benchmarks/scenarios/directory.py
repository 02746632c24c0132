"""Does a create cost more in a large directory than in a small one?

Directories are filled and measured by the Q/U client, one create after the other, as in `metadata`;
rounds change between the sizes, so that what disturbs the machine disturbs both. In the end, what
some more creates store in each is counted in pages of the nodes' tables.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.deployment import Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure
from benchmarks.scenarios.metadata import Namespace
from benchmarks.session import Phase, Place, Session
from bftfs.cluster import Durability
from bftfs.conversation import Conversation

SYSTEM = System(t=1, b=1)

_ANNOUNCED = 10_000  # entries filled in between two lines about it


@dataclass(frozen=True, slots=True)
class Parameters:
    """`creates` in each directory, in each round."""

    repeat: int
    entries: tuple[int, ...]
    creates: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    with (
        deployed(SYSTEM, parameters.durability, below=below) as deployment,
        client_of(deployment) as client,
        suppress(PhaseError),
    ):
        namespace = Namespace(client)
        directories = [
            _Directory(session, deployment, client, namespace, number, entries)
            for number, entries in enumerate(parameters.entries)
        ]
        for directory in directories:
            directory.fill(Place(target, 0))
        for number in range(parameters.repeat):
            for directory in directories:
                directory.measure(Place(target, number), parameters.creates)
        stored = deployment.stored_bytes()
        for directory in directories:
            client.used_bytes()  # connects anew
            phase = directory.measure(
                Place(target, 0), parameters.creates, "create and count bytes"
            )
            before, stored = stored, deployment.stored_bytes()
            phase.details["stored_bytes"] = round((stored - before) / parameters.creates)


class _Directory:
    """One directory of a given size."""

    def __init__(
        self,
        session: Session,
        deployment: Deployment,
        client: Client,
        namespace: Namespace,
        number: int,
        entries: int,
    ) -> None:
        self._session = session
        self._deployment = deployment
        self._client = client
        self._namespace = namespace
        self._entries = entries
        self._made = 0
        self._identifier = namespace.make_directory(number)

    def fill(self, place: Place) -> None:
        """Up to the number of entries."""
        if not self._entries:
            return
        variant = f"{self._entries} entries"
        place = Place(place.target, place.round, variant)
        before = self._client.used_bytes()
        with self._session.phase(
            place, "fill", Measure.MICROSECONDS_PER_OPERATION, amount=self._entries
        ) as phase:
            while self._made < self._entries:
                count = min(_ANNOUNCED, self._entries - self._made)
                self._client.perform(self._creations(count))
                self._session.announce(f"{self._made} of {self._entries} entries")
            # Over a whole directory: a store grows by steps, and uses its free pages first.
            grown = sum(self._client.used_bytes()) - sum(before)
            phase.details["node_bytes_per_create"] = round(grown / len(before) / self._entries, 1)

    def measure(self, place: Place, creates: int, name: str = "create") -> Phase:
        """Some more."""
        place = Place(place.target, place.round, f"{self._entries} entries")
        creations = self._creations(creates)
        with self._deployment.operations(
            self._session,
            place,
            name,
            Measure.MICROSECONDS_PER_OPERATION,
            count=creates,
            asked=self._deployment.description.query_update.q,
        ) as phase:
            self._client.perform(creations, latencies_ns=phase.latencies_ns)
        return phase

    def _creations(self, count: int) -> list[Callable[[], Conversation[Any]]]:
        namespace, directory = self._namespace, self._identifier
        numbers = range(self._made, self._made + count)
        self._made += count
        return [
            namespace.creation(directory, b"file%d" % i, namespace.new_identifier(directory))
            for i in numbers
        ]
