"""The services that a file system runs on: Q/U for metadata, PASIS for blocks.

`QueryUpdateClient`, `ReadWriteClient` and `ClusterCapacity` are these services; tests have others,
in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bftfs.credentials import Credentials
from bftfs.filesystem.capacity import Capacity
from bftfs.identifiers import BlockId, ClientId, ObjectId
from bftfs.limits import MIB, SECOND_US
from bftfs.query_update.history import LogicalTimestamp
from bftfs.query_update.messages import PastVersion
from bftfs.query_update.object_type import Record
from bftfs.read_write.authorship import Authored
from bftfs.read_write.reading import FoundVersion
from bftfs.read_write.timestamp import BlockTimestamp


class MethodAnswer(Protocol):
    """The outcome of an operation on metadata."""

    @property
    def answer(self) -> Any:
        """The method's answer, decoded."""


class MetadataService(Protocol):
    """Operations on replicated objects; a method's refusal is raised as a `FileSystemError`."""

    async def query(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> MethodAnswer:
        """Invoke a query."""

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
    ) -> MethodAnswer:
        """Invoke an update, which makes versions with a time of `not_before_us` or later."""


class CapacityService(Protocol):
    """The room for contents on the nodes."""

    async def capacity(self) -> Capacity:
        """How much is used and free at present."""


class BlockService(Protocol):
    """Versioned blocks."""

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, bytes]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
    ) -> Sequence[BlockTimestamp]:
        """Make each item the newest version of its block; returns when all are durable.

        Their times are later than `after_us`. Without `is_asking`, nodes are not asked for the
        latest times, which is cheaper: the versions are later than `after_us` and than this
        client's own, but not necessarily than those of other clients.
        """

    async def read(self, block: BlockId, *, at_time_us: int | None = None) -> FoundVersion:
        """The latest version of a block, or of those with a time of `at_time_us` or earlier."""

    async def written(self, block: BlockId, timestamp: BlockTimestamp) -> FoundVersion:
        """The version that `write_many` has given this timestamp."""


class PastService(Protocol):
    """The past of replicated objects."""

    async def query(
        self,
        identifier: ObjectId,
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        at_us: int,
    ) -> MethodAnswer:
        """Invoke a query on an object as it was at a time."""

    async def latest(self, identifier: ObjectId) -> LogicalTimestamp:
        """The latest established version of an object."""

    async def versions(
        self,
        identifier: ObjectId,
        *,
        newest: LogicalTimestamp,
        most: int,
        prefixes: tuple[bytes, ...],
        credentials: Credentials,
    ) -> tuple[PastVersion, ...]:
        """One page of the versions from `newest` down, with their changes to some keys."""


class PastBlockService(BlockService, Protocol):
    """Versioned blocks, and who wrote them."""

    async def versions_by(
        self, inodes: Sequence[ObjectId], *, author: ClientId | None, since_us: int
    ) -> Sequence[Authored]:
        """Versions of blocks of these files by `author` (None: by anybody) since then."""


@dataclass(frozen=True, slots=True)
class Options:
    """`strict`: nothing is cached and nothing postponed; else close-to-open.

    Windows are in bytes, so that the memory of a mount does not depend on the number of open files.
    A byte in flight takes about four bytes of memory: the block, sealed, and its fragments.
    """

    strict: bool = False
    read_only: bool = False
    is_past: bool = False  # blocks are read as of the version of their file that is shown
    access_times: bool = True  # relatime, or none at all
    attribute_timeout_us: int = 1 * SECOND_US
    entry_timeout_us: int = 1 * SECOND_US
    absence_timeout_us: int = SECOND_US // 2  # for negative entries: there is no such name
    write_behind_bytes: int = 8 * MIB  # unwritten bytes from which on they are written behind
    dirty_bytes: int = 32 * MIB  # unwritten bytes from which on a writer waits
    batch_bytes: int = 2 * MIB  # blocks that are written together
    batches_in_flight: int = 4  # of one file
    read_ahead_bytes: int = 8 * MIB  # of one sequential reader
    prefetch_bytes: int = 16 * MIB  # of all readers together, on their way
    cache_bytes: int = 32 * MIB  # clean blocks

    def __post_init__(self) -> None:
        if self.write_behind_bytes > self.dirty_bytes:
            raise ValueError("a writer would wait before anything is written behind")
