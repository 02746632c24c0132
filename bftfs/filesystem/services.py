"""The services that a file system runs on: Q/U for metadata, PASIS for blocks.

`QueryUpdateClient`, `ReadWriteClient` and `ClusterCapacity` are these services; tests have others,
in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bftfs.credentials import Credentials
from bftfs.filesystem.capacity import Capacity
from bftfs.identifiers import BlockId, ClientId, ObjectId
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


class PastBlockService(Protocol):
    """The past of blocks."""

    async def read(self, block: BlockId, *, at_time_us: int | None = None) -> FoundVersion:
        """The latest version of a block with a time of `at_time_us` or earlier."""

    async def versions_by(
        self, inodes: Sequence[ObjectId], *, author: ClientId | None, since_us: int
    ) -> Sequence[Authored]:
        """Versions of blocks of these files by `author` (None: by anybody) since then."""
