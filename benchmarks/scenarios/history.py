"""What does it cost to keep the past, and to look at it?

A directory is given many versions in two ways: by creates, so that it is large in the end, and by
creates and unlinks in turn, so that its history is long and it is small. Then it is listed as it is
now, as it was at its last version, and as it was in the middle, by pages as a mount asks for them.

A file of many blocks has single blocks overwritten, each with the update of the inode that covers
it. What that stores is compared with what copies of the whole file would take; and what a version
of an inode or of the directory stores, with a copy of the object.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure
from benchmarks.scenarios.metadata import Namespace
from benchmarks.session import Place, Session
from bftfs import limits
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import NO_CHANGES
from bftfs.filesystem.directory import Listing, Name, Page
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.listing import PAGE_BYTES
from bftfs.identifiers import ObjectId, block_id
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.timestamp import time_of

SYSTEM = System(t=1, b=1)

_BLOCK_BYTES = limits.BLOCK_BYTES_DEFAULT
_BATCH = 64
_LISTINGS = 10  # in a round


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
        history.overwrite_blocks(parameters)


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

    # --- listings ----------------------------------------------------------------------------

    def list_directories(self, parameters: Parameters) -> None:
        """Of both kinds."""
        for number, (way, fill) in enumerate(
            (("created", self._create), ("created and unlinked", self._churn))
        ):
            directory = self._namespace.make_directory(number)
            half = parameters.versions // 2
            variant = f"{parameters.versions} versions, {way}"
            place = Place(self._target, 0, variant)
            before = self._client.store_bytes()
            with self._session.phase(
                place, "fill", Measure.MICROSECONDS_PER_OPERATION, amount=parameters.versions
            ) as phase:
                fill(directory, 0, half)
                middle = self._latest_us(directory)
                fill(directory, half, parameters.versions)
                grown = sum(self._client.store_bytes()) - sum(before)
                phase.details["node_bytes_per_version"] = round(
                    grown / len(before) / parameters.versions, 1
                )
            last = self._latest_us(directory)
            for round_number in range(parameters.repeat):
                place = Place(self._target, round_number, variant)
                for name, at_us in (
                    ("list now", None),
                    ("list at the last version", last),
                    ("list in the middle", middle),
                ):
                    self._list(place, name, directory, at_us)

    def _latest_us(self, directory: ObjectId) -> int:
        (latest,) = self._client.perform([partial(self._reader.latest, directory)])
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

    def _list(self, place: Place, name: str, directory: ObjectId, at_us: int | None) -> None:
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
            phase.details["entries"] = entries[0]

    async def _listing(self, directory: ObjectId, at_us: int | None) -> int:
        """How many entries there are."""
        after = entries = 0
        while True:
            arguments = Listing(after, PAGE_BYTES)
            page: Page
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

    # --- blocks ------------------------------------------------------------------------------

    def overwrite_blocks(self, parameters: Parameters) -> None:
        """Of one file; with what that stores."""
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
        for number in range(parameters.repeat):
            self._overwrite(Place(self._target, number, variant), file, size, parameters)

    def _overwrite(self, place: Place, file: ObjectId, size: int, parameters: Parameters) -> None:
        client, count = self._client, parameters.operations
        step = max(1, parameters.blocks // count)
        before = sum(client.store_bytes())
        with self._deployment.operations(
            self._session,
            place,
            "overwrite a block",
            Measure.MICROSECONDS_PER_OPERATION,
            count=count,
            asked=self._deployment.description.n,
        ) as phase:
            operations = [
                partial(self._overwritten, file, number * step % parameters.blocks, size)
                for number in range(count)
            ]
            client.perform(operations, latencies_ns=phase.latencies_ns)
            stored = (sum(client.store_bytes()) - before) / count
            thresholds = self._deployment.description.read_write
            blow_up = thresholds.N / thresholds.m
            phase.details |= {
                "stored_bytes": round(stored),
                "fragments_bytes": round(_BLOCK_BYTES * blow_up),
                "whole_copy_bytes": round(size * blow_up),
                "saved_percent": round(100 * (1 - stored / (size * blow_up)), 2),
            }

    async def _overwritten(self, file: ObjectId, number: int, size: int) -> None:
        block = block_id(file, incarnation=0, number=number)
        await self._client.blocks.write(block, os.urandom(_BLOCK_BYTES), ROOT)
        await self._cover(file, size)()

    def _cover(self, file: ObjectId, size: int) -> Callable[[], Conversation[Any]]:
        return self._namespace.update((file,), registry.WRITE, Writing(size, 0, 1, NO_CHANGES))
