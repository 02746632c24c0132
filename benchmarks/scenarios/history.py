"""What does it cost to keep the past, and to look at it?

A directory is given many versions in two ways: by creates, so that it is large in the end, and by
creates and unlinks in turn, so that its history is long and it is small. Then it is listed as it is
now, as it was at its last version, and as it was in the middle, in turns, by pages as a mount asks
for them. Creates elsewhere are timed alone, and while the large directory is listed all the time,
as it is and as it was.

A file of many blocks has single blocks overwritten, each with the update of the inode that covers
it; and its mode changed. What all this stores is counted in pages of the nodes' tables, and
compared with what a copy of the changed object (or file) for each version would take.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from types import MappingProxyType
from typing import Any

from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure
from benchmarks.scenarios.metadata import Namespace
from benchmarks.session import Phase, Place, Session
from bftfs import limits
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import NO_CHANGES, Changes
from bftfs.filesystem.directory import DirectoryPage, Listing, Name
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.metadata import PAGE_BYTES
from bftfs.identifiers import ObjectId, block_id
from bftfs.query_update.history import time_of
from bftfs.query_update.past_reading import PastReader

SYSTEM = System(t=1, b=1)

_BLOCK_BYTES = limits.BLOCK_BYTES_DEFAULT
_BATCH = 64
_LISTINGS = 20  # in a round
_ENTRY_BYTES = 62  # of a directory's state: two keys and values with a name of eight bytes
_INODE_COPY_BYTES = 4096  # a block of a disk, as where each version of an inode is a copy of it


@dataclass(frozen=True, slots=True)
class Parameters:
    """`versions` of each directory, `blocks` of the file, `operations` in each round."""

    repeat: int
    versions: int
    blocks: int
    operations: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    with (
        deployed(SYSTEM, parameters.durability, below=below) as deployment,
        client_of(deployment) as client,
        suppress(PhaseError),
    ):
        namespace = Namespace(client)
        history = _History(session, deployment, client, namespace, target)
        history.list_directories(parameters)
        file = history.write_a_file(parameters)
        history.create_beside_listings(parameters)
        history.change_a_file(file, parameters)


class _History:
    """The measurements."""

    def __init__(
        self,
        session: Session,
        deployment: Deployment,
        client: Client,
        namespace: Namespace,
        target: str,
    ) -> None:
        self._session = session
        self._deployment = deployment
        self._client = client
        self._namespace = namespace
        self._target = target
        self._reader = PastReader(client.objects)
        self._large: ObjectId

    # --- listings ----------------------------------------------------------------------------

    def list_directories(self, parameters: Parameters) -> None:
        """Of both kinds."""
        created = f"{parameters.versions} versions, created"
        self._large = self._namespace.make_directory(0)
        copies = self._deployment.description.n * _ENTRY_BYTES * (parameters.versions + 1) / 2
        before = self._stored_bytes()
        with self._filling(created, parameters) as phase:
            middle = self._fill(self._create, self._large, parameters)
        self._list_all(created, self._large, middle, parameters)
        after = self._stored_bytes()  # of listings, nothing is
        phase.details |= _compared((after - before) / parameters.versions, copies)

        churned = f"{parameters.versions} versions, created and unlinked"
        directory = self._namespace.make_directory(1)
        with self._filling(churned, parameters) as phase:
            middle = self._fill(self._churn, directory, parameters)
        self._list_all(churned, directory, middle, parameters)
        stored = (self._stored_bytes() - after) / parameters.versions
        phase.details["stored_bytes"] = round(stored)

    def _filling(self, variant: str, parameters: Parameters) -> AbstractContextManager[Phase]:
        place = Place(self._target, 0, variant)
        return self._session.phase(
            place, "fill", Measure.MICROSECONDS_PER_OPERATION, amount=parameters.versions
        )

    def _fill(
        self,
        fill: Callable[[ObjectId, int, int], None],
        directory: ObjectId,
        parameters: Parameters,
    ) -> int:
        """The time at which half of the versions were there."""
        half = parameters.versions // 2
        fill(directory, 0, half)
        middle = self._latest_us(directory)
        fill(directory, half, parameters.versions)
        return middle

    def _list_all(
        self, variant: str, directory: ObjectId, middle_us: int, parameters: Parameters
    ) -> None:
        last_us = self._latest_us(directory)
        for number in range(parameters.repeat):
            place = Place(self._target, number, variant)
            now_us = self._list(place, "list now", directory, None)
            self._list(place, "list at the last version", directory, last_us, now_us=now_us)
            self._list(place, "list in the middle", directory, middle_us, now_us=now_us)

    def _stored_bytes(self) -> int:
        stored = self._deployment.stored_bytes()
        self._client.used_bytes()  # connects anew
        return stored

    def create_beside_listings(self, parameters: Parameters) -> None:
        """Creates in one directory, while somebody lists the large one, or nobody does."""
        directory, elsewhere = self._large, self._namespace.make_directory(2)
        past_us = self._latest_us(directory)
        made = count()
        for number in range(parameters.repeat):
            place = Place(self._target, number, f"{parameters.versions} versions, created")
            for name, listing in (
                ("create", None),
                ("create beside a listing of now", partial(self._listing, directory, None)),
                ("create beside a listing of the past", partial(self._listing, directory, past_us)),
            ):
                creations = [
                    self._namespace.creation(
                        elsewhere, b"file%d" % next(made), self._namespace.new_identifier(elsewhere)
                    )
                    for _ in range(parameters.operations)
                ]
                with self._session.phase(
                    place, name, Measure.MICROSECONDS_PER_OPERATION, amount=parameters.operations
                ) as phase:
                    self._client.perform(
                        _interleaved(creations, listing, phase.latencies_ns),
                        in_flight=1 if listing is None else 2,
                    )

    def _latest_us(self, directory: ObjectId) -> int:
        (latest,) = self._client.perform([partial(self._reader.latest, directory, ROOT)])
        return time_of(latest)

    def _create(self, directory: ObjectId, start: int, stop: int) -> None:
        namespace = self._namespace
        self._client.perform(
            namespace.creation(directory, b"file%d" % number, namespace.new_identifier(directory))
            for number in range(start, stop)
        )

    def _churn(self, directory: ObjectId, start: int, stop: int) -> None:
        namespace = self._namespace
        operations: list[Callable[[], Conversation[Any]]] = []
        for number in range(start, stop, 2):
            child, name = namespace.new_identifier(directory), b"file%d" % number
            operations.append(namespace.creation(directory, name, child))
            if number + 1 < stop and number + 2 < stop:
                operations.append(namespace.update((directory, child), registry.UNLINK, Name(name)))
        self._client.perform(operations)

    def _list(
        self,
        place: Place,
        name: str,
        directory: ObjectId,
        at_us: int | None,
        *,
        now_us: float = 0,
    ) -> float:
        """The median. `now_us` is that of the same directory now, in the same round."""
        with self._deployment.operations(
            self._session,
            place,
            name,
            Measure.MICROSECONDS_PER_OPERATION,
            count=_LISTINGS,
            asked=self._deployment.description.query_update.q,
        ) as phase:
            entries = self._client.perform(
                [partial(self._listing, directory, at_us)] * _LISTINGS,
                latencies_ns=phase.latencies_ns,
            )
            median_us = median(phase.latencies_ns) / 1000
            phase.details["entries"] = entries[0]
            if now_us:
                phase.details["times_now"] = round(median_us / now_us, 2)
        return median_us

    async def _listing(self, directory: ObjectId, at_us: int | None) -> int:
        """How many entries there are."""
        after = entries = 0
        while True:
            arguments = Listing(after, PAGE_BYTES)
            page: DirectoryPage
            if at_us is None:
                objects = self._client.objects
                method = registry.READ_DIRECTORY
                page = (await objects.query((directory,), method, arguments, ROOT)).answer
            else:
                page = (
                    await self._reader.query(
                        directory, registry.READ_DIRECTORY, arguments, ROOT, at_us=at_us
                    )
                ).answer
            entries += len(page.entries)
            if page.complete:
                return entries
            after = page.entries[-1].serial

    # --- a file ------------------------------------------------------------------------------

    def write_a_file(self, parameters: Parameters) -> ObjectId:
        """A new one."""
        namespace, client = self._namespace, self._client
        file = namespace.new_identifier(namespace.root)
        client.perform([namespace.creation(namespace.root, b"blocks", file)])
        size = parameters.blocks * _BLOCK_BYTES
        variant = f"{size >> 20} MiB"
        item = os.urandom(_BLOCK_BYTES)
        with self._session.phase(
            Place(self._target, 0, variant), "write", Measure.MEGABYTES_PER_SECOND, amount=size
        ):
            for start in range(0, parameters.blocks, _BATCH):
                stop = min(start + _BATCH, parameters.blocks)
                blocks = [block_id(file, incarnation=0, number=n) for n in range(start, stop)]
                client.perform(
                    [partial(client.blocks.write_many, [(each, item) for each in blocks], ROOT)]
                )
            client.perform([self._cover(file, size)])
        return file

    def change_a_file(self, file: ObjectId, parameters: Parameters) -> None:
        """Its blocks, and its mode; with what that stores."""
        namespace, size = self._namespace, parameters.blocks * _BLOCK_BYTES
        variant = f"{size >> 20} MiB"
        description = self._deployment.description
        step = max(1, parameters.blocks // parameters.operations)
        thresholds = description.read_write
        fragments = _BLOCK_BYTES * thresholds.N // thresholds.m
        before = self._stored_bytes()
        before = self._change(
            "overwrite a block",
            variant,
            [
                partial(self._overwritten, file, number * step % parameters.blocks, size)
                for number in range(parameters.operations)
            ],
            parameters,
            before=before,
            copy_bytes=parameters.blocks * fragments,
            also={"fragments_bytes": fragments},
        )
        self._change(
            "change the mode",
            variant,
            [
                namespace.update(
                    (file,), registry.CHANGE_ATTRIBUTES, Changes(mode=0o600 + number % 2)
                )
                for number in range(parameters.operations)
            ],
            parameters,
            before=before,
            copy_bytes=description.n * _INODE_COPY_BYTES,
        )

    def _change(
        self,
        name: str,
        variant: str,
        operations: Sequence[Callable[[], Conversation[Any]]],
        parameters: Parameters,
        *,
        before: int,
        copy_bytes: int,
        also: Mapping[str, float] = MappingProxyType({}),
    ) -> int:
        """Perform the operations in each round; with what one of all of them has stored.

        `before` is what was stored before; what is afterwards is returned.
        """
        for number in range(parameters.repeat):
            with self._deployment.operations(
                self._session,
                Place(self._target, number, variant),
                name,
                Measure.MICROSECONDS_PER_OPERATION,
                count=len(operations),
                asked=self._deployment.description.n,
            ) as phase:
                self._client.perform(operations, latencies_ns=phase.latencies_ns)
        after = self._stored_bytes()
        stored = (after - before) / len(operations) / parameters.repeat
        phase.details |= _compared(stored, copy_bytes) | also
        return after

    async def _overwritten(self, file: ObjectId, number: int, size: int) -> None:
        block = block_id(file, incarnation=0, number=number)
        await self._client.blocks.write(block, os.urandom(_BLOCK_BYTES), ROOT)
        await self._cover(file, size)()

    def _cover(self, file: ObjectId, size: int) -> Callable[[], Conversation[Any]]:
        return self._namespace.update((file,), registry.WRITE, Writing(size, 0, 1, NO_CHANGES))


def _compared(stored: float, copy: float) -> dict[str, float]:
    """The bytes that a version stores at all nodes, beside those that a copy would take."""
    return {
        "stored_bytes": round(stored),
        "copy_bytes": round(copy),
        "saved_percent": round(100 * (1 - stored / copy), 2),
    }


def _interleaved(
    operations: Sequence[Callable[[], Conversation[Any]]],
    beside: Callable[[], Conversation[Any]] | None,
    latencies_ns: list[int],
) -> Iterator[Callable[[], Conversation[Any]]]:
    """The operations one after the other, timed; between them, if given, others that go on."""
    done = 0

    async def one_after_the_other() -> None:
        nonlocal done
        for operation in operations:
            started = perf_counter_ns()
            await operation()
            latencies_ns.append(perf_counter_ns() - started)
            done += 1

    yield one_after_the_other
    while beside is not None and done < len(operations):
        yield beside
