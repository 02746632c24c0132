"""The history of a file system: views of the past, snapshots, and the versions of its objects.

Every version carries a time: microseconds of its author's clock, later than the version before.
Copies, which repair makes, are not shown.

Concurrency: caches are touched between awaits only.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bftfs import limits
from bftfs.conversation import Now, Together
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes, decode_attributes
from bftfs.filesystem.directory import StoredEntry, entry_in, name_in
from bftfs.filesystem.objects import ATTRIBUTES_KEY, NoArguments
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.filesystem.past_file_system import past_file_system
from bftfs.filesystem.registry import (
    CREATE_SNAPSHOT,
    DELETE_SNAPSHOT,
    GET_RETENTION,
    LIST_SNAPSHOTS,
    SET_RETENTION,
)
from bftfs.filesystem.retention_methods import PolicySetting
from bftfs.filesystem.sealing import plaintext_of
from bftfs.filesystem.services import (
    CapacityService,
    MetadataService,
    PastBlockService,
    PastService,
)
from bftfs.filesystem.snapshots import Snapshot, SnapshotCreation, SnapshotName
from bftfs.identifiers import BlockId, ClientId, ObjectId
from bftfs.query_update.history import ZERO, LogicalTimestamp, Operation, client_of, time_of
from bftfs.query_update.messages import PastVersion
from bftfs.read_write.authorship import Authored
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.retention import Policy, parse_policy

VIEWS: Final = 16  # views of the past that are kept
OBJECTS_SEARCHED: Final = 1024  # below a directory, for its times of change
VERSIONS_SEARCHED: Final = 1024  # of one object, for the times of a directory above it
_TOGETHER: Final = 32  # objects whose changes are asked for at the same time

ENTRY_PREFIX: Final = b"e"
CHANGES_SHOWN: Final = (ATTRIBUTES_KEY, ENTRY_PREFIX)


@dataclass(frozen=True, slots=True)
class Change:
    """A version of an object: its time, author and operation, and what the operation changed."""

    timestamp: LogicalTimestamp
    parent: LogicalTimestamp
    objects: tuple[ObjectId, ...]  # that the operation changed together
    operation: Operation
    attributes: Attributes | None  # after it, if it changed any
    entries: tuple[tuple[bytes, StoredEntry | None], ...]  # of a directory: the changed names

    @property
    def time_us(self) -> int:
        """The time of the version."""
        return time_of(self.timestamp)

    @property
    def client(self) -> ClientId:
        """The author, authenticated by the servers that accepted the version."""
        return client_of(self.timestamp)


class History:
    """The history of one file system."""

    def __init__(
        self,
        present: FileSystem,
        objects: MetadataService,
        past: PastService,
        blocks: PastBlockService,
        capacity: CapacityService,
        cipher: BlockCipher | None,
        *,
        volume: ObjectId,
        asking_as: Credentials,
    ) -> None:
        self.present = present
        self._objects = objects
        self._past = past
        self._blocks = blocks
        self._capacity = capacity
        self._cipher = cipher
        self._volume = volume
        self._asking_as = asking_as
        self._views: OrderedDict[int, FileSystem] = OrderedDict()

    def at(self, time_us: int) -> FileSystem:
        """The file system as it was at a time."""
        view = self._views.get(time_us)
        if view is None:
            view = self._views[time_us] = past_file_system(
                self.present,
                self._past,
                self._blocks,
                self._capacity,
                self._cipher,
                volume=self._volume,
                at_us=time_us,
                asking_as=self._asking_as,
            )
            if len(self._views) > VIEWS:
                self._views.popitem(last=False)
        else:
            self._views.move_to_end(time_us)
        return view

    async def found_at(self, identifier: ObjectId, time_us: int, who: Credentials) -> FoundObject:
        """An object as it was at a time; ENOENT if it did not exist, or the time is to come."""
        if time_us > await Now():
            raise FileSystemError(errno.ENOENT, "that time is yet to come")
        try:
            attributes = await self.at(time_us).attributes(identifier, who)
        except FileSystemError as refusal:
            if refusal.code == errno.ESTALE:
                raise FileSystemError(errno.ENOENT, "it was not there yet") from None
            raise
        return FoundObject(identifier, attributes)

    # --- snapshots ---------------------------------------------------------------------------

    async def snapshots(self, who: Credentials) -> tuple[Snapshot, ...]:
        """All snapshots, by name."""
        answered = await self._objects.query((self._volume,), LIST_SNAPSHOTS, NoArguments(), who)
        found: tuple[Snapshot, ...] = answered.answer.snapshots
        return found

    async def create_snapshot(self, name: bytes, who: Credentials, *, time_us: int = 0) -> Snapshot:
        """Give a time (by default the present) a name."""
        arguments = SnapshotCreation(name, time_us)
        answered = await self._objects.update((self._volume,), CREATE_SNAPSHOT, arguments, who)
        made: Snapshot = answered.answer
        return made

    async def delete_snapshot(self, name: bytes, who: Credentials) -> Snapshot:
        """Delete the name of a snapshot."""
        arguments = SnapshotName(name)
        answered = await self._objects.update((self._volume,), DELETE_SNAPSHOT, arguments, who)
        gone: Snapshot = answered.answer
        return gone

    # --- retention ---------------------------------------------------------------------------

    async def retention(self, identifier: ObjectId, who: Credentials) -> Policy:
        """The policy for versions of the object older than the detection window."""
        answered = await self._objects.query((identifier,), GET_RETENTION, NoArguments(), who)
        return parse_policy(answered.answer.policy)

    async def set_retention(self, identifier: ObjectId, policy: Policy, who: Credentials) -> None:
        """Change that policy."""
        arguments = PolicySetting(str(policy))
        await self._objects.update((identifier,), SET_RETENTION, arguments, who)

    # --- blocks ------------------------------------------------------------------------------

    async def written(
        self, files: Sequence[ObjectId], *, author: ClientId | None, since_us: int
    ) -> Sequence[Authored]:
        """The versions of the files' blocks written since then, covered or not."""
        return await self._blocks.versions_by(files, author=author, since_us=since_us)

    async def block_stamp(self, block: BlockId, time_us: int | None) -> BlockTimestamp:
        """The timestamp of a block's version at a time, or now."""
        return (await self._blocks.read(block, at_time_us=time_us)).timestamp

    async def block_at(self, block: BlockId, time_us: int) -> tuple[BlockTimestamp, bytes]:
        """The timestamp and the plaintext of a block's version at a time."""
        version = await self._blocks.read(block, at_time_us=time_us)
        return version.timestamp, await plaintext_of(self._cipher, block, version.item)

    # --- versions ----------------------------------------------------------------------------

    async def changes(
        self, identifier: ObjectId, who: Credentials, *, since_us: int = 0, most: int = 1 << 30
    ) -> list[Change]:
        """The versions of an object, the latest first."""
        found: list[Change] = []
        at = await self._past.latest(identifier)
        while at != ZERO and len(found) < most:
            page = await self._past.versions(
                identifier,
                newest=at,
                most=min(limits.VERSIONS_IN_REPLY, most),
                prefixes=CHANGES_SHOWN,
                credentials=who,
            )
            if not page:
                return found  # older versions are no longer kept
            for version in page:
                if time_of(version.timestamp) < since_us:
                    return found
                if version.operation is not None:
                    found.append(_change(version, version.operation))
            at = page[-1].parent
        return found

    async def change_times(self, directory: ObjectId, who: Credentials) -> list[int]:
        """Times at which something in or below a directory changed, the latest first.

        The search covers the objects that are or were named below it, as far as `who` may read
        them. It is bounded: it takes the latest changes of each object, and the objects nearest to
        the directory first.
        """
        times: set[int] = set()
        seen = {directory}
        level = [directory]
        while level:
            below: list[ObjectId] = []
            for position in range(0, len(level), _TOGETHER):
                batch = level[position : position + _TOGETHER]
                listed = await Together(
                    tuple(partial(self._changes_if_permitted, each, who) for each in batch)
                )
                for changes in listed:
                    times.update(change.time_us for change in changes)
                    below += (
                        entry.child
                        for change in changes
                        for _, entry in change.entries
                        if entry is not None
                    )
            room = OBJECTS_SEARCHED - len(seen)
            level = [child for child in dict.fromkeys(below) if child not in seen][:room]
            seen.update(level)
        return sorted(times, reverse=True)

    async def _changes_if_permitted(self, identifier: ObjectId, who: Credentials) -> list[Change]:
        try:
            return await self.changes(identifier, who, most=VERSIONS_SEARCHED)
        except FileSystemError:
            return []


def _change(version: PastVersion, operation: Operation) -> Change:
    attributes: Attributes | None = None
    entries: list[tuple[bytes, StoredEntry | None]] = []
    for key, value in version.changes:
        if key == ATTRIBUTES_KEY:
            attributes = None if value is None else decode_attributes(value)
        else:
            entries.append((name_in(key), None if value is None else entry_in(value)))
    return Change(
        version.timestamp,
        version.parent,
        version.objects,
        operation,
        attributes,
        tuple(entries),
    )
