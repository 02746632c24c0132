"""A file system as it was at a time: the code for the present, on services that read the past.

Situation: a program reads `.history/TIME` while clients go on changing the file system.

The rule: every object is read as of the one time of the view, and a file's blocks as of the time
of the last update of its contents at that time. Why that is one state: updates of several objects
have one time in all of them, so that no object shows half of an update [design §4]; and size and
blocks belong together, without blocks that were written but not covered by then. Which version is
the one of a time is decided by the two protocols, with the same evidence as for the present.

Answers are cached for ever, since the past does not change. (Of the last few minutes it may change,
by operations of clients whose clocks are behind; a view keeps what it read first.)

(tests/simulation/test_past.py, which also breaks each rule and has the checkers find it.)

Concurrency: caches are touched between awaits only.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import Final

from bftfs.credentials import Credentials
from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import FileSystemError
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import GET_ATTRIBUTES
from bftfs.filesystem.services import (
    CapacityService,
    MethodAnswer,
    PastBlockService,
    PastService,
)
from bftfs.identifiers import BlockId, ObjectId, inode_of
from bftfs.limits import MIB
from bftfs.query_update.object_type import Record
from bftfs.read_write.reading import FoundVersion
from bftfs.read_write.timestamp import BlockTimestamp

_KEPT_US: Final = 1 << 62  # for ever
_ATTRIBUTES_CACHED: Final = 16_384  # objects, in one view
_CACHE_BYTES: Final = 8 * MIB  # of clean blocks, in one view


class PastMetadata:
    """Queries of replicated objects as of a time. A `MetadataService` that refuses updates."""

    def __init__(self, service: PastService, at_us: int) -> None:
        self._service = service
        self._at_us = at_us
        self._attributes: OrderedDict[ObjectId, MethodAnswer] = OrderedDict()

    async def query(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> MethodAnswer:
        """Invoke a query of one object."""
        (identifier,) = objects
        if method != GET_ATTRIBUTES:
            return await self._service.query(
                identifier, method, arguments, credentials, at_us=self._at_us
            )
        found = self._attributes.get(identifier)
        if found is None:
            found = await self._service.query(
                identifier, method, arguments, credentials, at_us=self._at_us
            )
            self._attributes[identifier] = found
            if len(self._attributes) > _ATTRIBUTES_CACHED:
                self._attributes.popitem(last=False)
        return found

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
    ) -> MethodAnswer:
        """The past does not change."""
        del objects, method, arguments, credentials, not_before_us
        raise FileSystemError(errno.EROFS)

    async def covered_us(self, inode: ObjectId, credentials: Credentials) -> int:
        """The time of the last update of the file's contents, as of the time of this view."""
        found = await self.query((inode,), GET_ATTRIBUTES, NoArguments(), credentials)
        time_us: int = found.answer.contents
        return time_us


class PastBlocks:
    """Blocks as of their inode's version at a time. A `BlockService` that takes no writes."""

    def __init__(
        self, service: PastBlockService, metadata: PastMetadata, credentials: Credentials
    ) -> None:
        self._service = service
        self._metadata = metadata
        self._credentials = credentials

    async def write_many(
        self,
        items: object,
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
    ) -> tuple[BlockTimestamp, ...]:
        """The past does not change."""
        del items, credentials, after_us, is_asking
        raise FileSystemError(errno.EROFS)

    async def read(self, block: BlockId, *, at_time_us: int | None = None) -> FoundVersion:
        """The version of a block that belongs to the file's contents then."""
        assert at_time_us is None, "a view that takes no writes has no uncovered blocks"
        time_us = await self._metadata.covered_us(inode_of(block), self._credentials)
        return await self._service.read(block, at_time_us=time_us)

    async def written(self, block: BlockId, timestamp: BlockTimestamp) -> FoundVersion:
        """Nothing is written to the past."""
        del block, timestamp
        raise FileSystemError(errno.EROFS)


def past_file_system(
    present: FileSystem,
    objects: PastService,
    blocks: PastBlockService,
    capacity: CapacityService,
    cipher: BlockCipher | None,
    *,
    volume: ObjectId,
    at_us: int,
    asking_as: Credentials,
) -> FileSystem:
    """`present` as it was at a time; read-only. A read must be permitted both then and now.

    `asking_as` is a user whom the client's grant covers: attributes that any user may know are
    asked for in this user's name, where no request of a program is at hand.
    """
    metadata = PastMetadata(objects, at_us)
    return FileSystem(
        metadata,
        PastBlocks(blocks, metadata, asking_as),
        capacity,
        cipher,
        root=present.root,
        volume=volume,
        options=Options(
            read_only=True,
            access_times=False,
            attribute_timeout_us=_KEPT_US,
            entry_timeout_us=_KEPT_US,
            absence_timeout_us=_KEPT_US,
            cache_bytes=_CACHE_BYTES,
        ),
        present=present,
    )
