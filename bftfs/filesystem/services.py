"""The service that a file system's metadata are on, and the options of a mount.

`QueryUpdateClient` and `file_history.PastMetadata` are such services; tests have others, in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bftfs.credentials import Credentials
from bftfs.identifiers import ObjectId
from bftfs.limits import MIB, SECOND_US
from bftfs.query_update.client import Answered
from bftfs.query_update.object_type import Record


class MetadataService(Protocol):
    """Operations on replicated objects; a method's refusal is raised as a `FileSystemError`."""

    async def query(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> Answered:
        """Invoke a query."""

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
    ) -> Answered:
        """Invoke an update, which makes versions with a time of `not_before_us` or later."""


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
