"""The history of a file system: views of the past, snapshots, and the versions of its objects.

Every version carries a time: microseconds of its author's clock, later than the version before.
Copies, which repair makes, are not shown.

A file system as it was at a time is the code for the present, on services that read the past.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from bftfs import limits
from bftfs.conversation import Conversation, Now, Together
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, PastUnknown
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Attributes, decode_attributes
from bftfs.filesystem.directory import Name, StoredEntry, entry_in, name_in
from bftfs.filesystem.inode import PolicySetting
from bftfs.filesystem.metadata import PastMetadata
from bftfs.filesystem.objects import ATTRIBUTES_KEY, NoArguments
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.filesystem.options import Options
from bftfs.filesystem.volume import (
    Followed,
    Schedule,
    ScheduleName,
    ScheduleSetting,
    Snapshot,
    SnapshotCreation,
)
from bftfs.identifiers import ClientId, ObjectId
from bftfs.limits import MIB
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.history import ZERO, LogicalTimestamp, Operation, client_of, time_of
from bftfs.query_update.messages import WITHHELD, PastVersion
from bftfs.query_update.object_type import Record, encode_record
from bftfs.query_update.past_reading import PastReader
from bftfs.read_write.client import ReadWriteClient
from bftfs.retention import Policy, parse_policy

VIEWS: Final = 16  # views of the past that are kept
OBJECTS_SEARCHED: Final = 1024  # below a directory, for its times of change
VERSIONS_SEARCHED: Final = 1024  # of one object, for the times of a directory above it

_TOGETHER: Final = 32  # conversations that are held at the same time

ENTRY_PREFIX: Final = b"e"
UNSEEN: Final = registry.UNCHANGING | registry.SAME_BYTES  # what nobody would call a change

CHANGES_SHOWN: Final = (ATTRIBUTES_KEY, ENTRY_PREFIX)

_KEPT_US: Final = 1 << 62  # for ever
_CACHE_BYTES: Final = 8 * MIB  # of clean blocks, in one view
_TYPES: Final = registry.file_system_types()


# --- views of the past -----------------------------------------------------------------------


def past_file_system(
    present: FileSystem, objects: PastReader, blocks: ReadWriteClient, *, at_us: int
) -> FileSystem:
    """`present` as it was at a time; read-only. A read must be permitted both then and now."""
    return FileSystem(
        PastMetadata(objects, at_us),
        blocks,
        present.capacity,
        present.sealing.cipher,
        root=present.root,
        volume=present.volume,
        options=Options(
            read_only=True,
            is_past=True,
            access_times=False,
            attribute_timeout_us=_KEPT_US,
            entry_timeout_us=_KEPT_US,
            absence_timeout_us=_KEPT_US,
            cache_bytes=_CACHE_BYTES,
        ),
        present=present,
        epochs=present.sealing.epochs,
    )


_Result = TypeVar("_Result")


async def several_at_once(
    conversations: Sequence[Callable[[], Conversation[_Result]]], *, most: int = _TOGETHER
) -> list[_Result]:
    """The results of many conversations, of which at most so many are held at the same time.

    They begin in their order; each begins as soon as an earlier one has ended.
    """
    results: dict[int, _Result] = {}
    waiting = iter(enumerate(conversations))

    async def one_after_the_other() -> None:
        for position, conversation in waiting:
            results[position] = await conversation()

    await Together((one_after_the_other,) * min(most, len(conversations)))
    return [results[position] for position in range(len(conversations))]


# --- the versions of an object ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A version of an object: its time, author and operation, and what the operation changed."""

    timestamp: LogicalTimestamp
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


class ChangePages:
    """The changes of one object, read from nodes page by page, the latest first."""

    __slots__ = ("_at", "_identifier", "_past", "_since_us", "_who")

    def __init__(
        self,
        past: PastReader,
        identifier: ObjectId,
        who: Credentials,
        *,
        newest: LogicalTimestamp,
        since_us: int = 0,
    ) -> None:
        """From `newest`, which is established, back to the time `since_us`."""
        self._past = past
        self._identifier = identifier
        self._who = who
        self._at = newest
        self._since_us = since_us

    async def next(self, most: int = limits.VERSIONS_IN_REPLY) -> list[Change]:
        """At most so many older ones; none if no older version is kept, or wanted."""
        while self._at != ZERO:
            page = await self._past.versions(
                self._identifier,
                newest=self._at,
                most=most,
                prefixes=CHANGES_SHOWN,
                credentials=self._who,
            )
            wanted = [each for each in page if time_of(each.timestamp) >= self._since_us]
            self._at = page[-1].parent if len(wanted) == len(page) > 0 else ZERO
            # Copies, which repair makes, have no operation.
            found = [_change(each, each.operation) for each in wanted if each.operation is not None]
            if found:
                return found
        return []


# --- the history -----------------------------------------------------------------------------


class Moments(NamedTuple):
    """Times at which something changed, the latest first; before `since_us` not all are known."""

    times: list[int]
    since_us: int = 0


@dataclass(eq=False)
class History:
    """The history of one file system."""

    present: FileSystem
    objects: QueryUpdateClient
    past: PastReader
    blocks: ReadWriteClient
    _views: OrderedDict[int, FileSystem] = field(default_factory=OrderedDict, init=False)

    def at(self, time_us: int) -> FileSystem:
        """The file system as it was at a time."""
        view = self._views.get(time_us)
        if view is None:
            view = self._views[time_us] = past_file_system(
                self.present, self.past, self.blocks, at_us=time_us
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
        method = registry.LIST_SNAPSHOTS
        answered = await self.objects.query((self.present.volume,), method, NoArguments(), who)
        return tuple(answered.answer.snapshots)

    async def create_snapshot(self, name: bytes, who: Credentials, *, time_us: int = 0) -> Snapshot:
        """Give a time (by default the present) a name."""
        arguments = SnapshotCreation(name, time_us)
        made: Snapshot = await self._change_volume(registry.CREATE_SNAPSHOT, arguments, who)
        return made

    async def delete_snapshot(self, name: bytes, who: Credentials) -> Snapshot:
        """Delete the name of a snapshot."""
        deleted: Snapshot = await self._change_volume(registry.DELETE_SNAPSHOT, Name(name), who)
        return deleted

    async def _change_volume(self, method: str, arguments: Record, who: Credentials) -> Any:
        answered = await self.objects.update((self.present.volume,), method, arguments, who)
        return answered.answer

    # --- schedules of snapshots --------------------------------------------------------------

    async def schedules(self, who: Credentials) -> tuple[Schedule, ...]:
        """All schedules."""
        method = registry.LIST_SCHEDULES
        answered = await self.objects.query((self.present.volume,), method, NoArguments(), who)
        return tuple(answered.answer.schedules)

    async def set_schedule(self, setting: ScheduleSetting, who: Credentials) -> None:
        """Give a directory a schedule, or other rules."""
        await self._change_volume(registry.SET_SCHEDULE, setting, who)

    async def delete_schedule(self, schedule: Schedule, who: Credentials) -> None:
        """Remove a schedule; its snapshots stay."""
        name = ScheduleName(schedule.directory, schedule.uid)
        await self._change_volume(registry.DELETE_SCHEDULE, name, who)

    async def follow_schedule(self, schedule: Schedule, who: Credentials) -> Followed:
        """Make the snapshot that is due, and remove those that no rule keeps."""
        name = ScheduleName(schedule.directory, schedule.uid)
        followed: Followed = await self._change_volume(registry.FOLLOW_SCHEDULE, name, who)
        return followed

    # --- retention ---------------------------------------------------------------------------

    async def retention(self, identifier: ObjectId, who: Credentials) -> Policy:
        """The policy for versions of the object older than the detection window."""
        method = registry.GET_RETENTION
        answered = await self.objects.query((identifier,), method, NoArguments(), who)
        return parse_policy(answered.answer.policy)

    async def set_retention(self, identifier: ObjectId, policy: Policy, who: Credentials) -> None:
        """Change that policy."""
        arguments = PolicySetting(str(policy))
        await self.objects.update((identifier,), registry.SET_RETENTION, arguments, who)

    # --- versions ----------------------------------------------------------------------------

    async def changes(
        self,
        identifier: ObjectId,
        who: Credentials,
        *,
        since_us: int = 0,
        until_us: int | None = None,
        most: int = 1 << 30,
    ) -> list[Change]:
        """The versions of an object between two times (None: now), the latest first."""
        pages = await self.pages(identifier, who, since_us=since_us, until_us=until_us)
        found: list[Change] = []
        while len(found) < most and (page := await pages.next(min(limits.VERSIONS_IN_REPLY, most))):
            found += page
        return found

    async def pages(
        self,
        identifier: ObjectId,
        who: Credentials,
        *,
        since_us: int = 0,
        until_us: int | None = None,
    ) -> ChangePages:
        """The same, to be read page by page."""
        if until_us is None:
            newest = await self.past.latest(identifier, who)
        else:
            method = registry.GET_ATTRIBUTES
            read = self.past.query(identifier, method, NoArguments(), who, at_us=until_us)
            newest = (await read).timestamp
        return ChangePages(self.past, identifier, who, newest=newest, since_us=since_us)

    async def with_names(self, change: Change, who: Credentials) -> Change:
        """`change` with those names that only other objects' histories tell `who`.

        An operation has one timestamp at all of its objects. Names stay withheld where `who` may
        not read the object that they are in, or it is no longer kept.
        """
        operation = change.operation
        method = _TYPES.method(operation.method)
        if method is None or operation.arguments == WITHHELD:
            return change
        arguments = _TYPES.decode_arguments(method, operation.arguments)
        for argument, role in method.names:
            if getattr(arguments, argument) != WITHHELD:
                continue
            with suppress(FileSystemError, PastUnknown):
                for version in await self.past.versions(
                    operation.objects[role],
                    newest=change.timestamp,
                    most=1,
                    prefixes=(),
                    credentials=who,
                ):
                    assert version.operation is not None, "it is the same as at the other object"
                    told = _TYPES.decode_arguments(method, version.operation.arguments)
                    name = {argument: getattr(told, argument)}
                    arguments = msgspec.structs.replace(arguments, **name)
        return replace(
            change,
            operation=msgspec.structs.replace(operation, arguments=encode_record(arguments)),
        )

    async def change_times(
        self,
        directory: ObjectId,
        who: Credentials,
        *,
        objects: int | None = None,
        versions: int | None = None,
    ) -> Moments:
        """Times at which something in or below a directory changed, the latest first.

        That something was read, or rearranged, is no change.

        The search covers the objects that are or were named below it, as far as `who` may read
        them. It is bounded: it takes the latest `versions` of each object, and at most so many
        `objects`, those nearest to the directory first; OBJECTS_SEARCHED and VERSIONS_SEARCHED if
        nothing is said.
        """
        objects = OBJECTS_SEARCHED if objects is None else objects
        versions = VERSIONS_SEARCHED if versions is None else versions
        times: set[int] = set()
        since_us = 0
        seen = {directory}
        level = [directory]
        while level:
            visits = await several_at_once(
                [partial(self._changes_if_permitted, each, who, versions) for each in level]
            )
            changes = [change for visited in visits for change in visited]
            times.update(each.time_us for each in changes if each.operation.method not in UNSEEN)
            for visited in visits:
                if len(visited) >= versions:
                    since_us = max(since_us, visited[-1].time_us)
            below = [
                entry.child
                for change in changes
                for _, entry in change.entries
                if entry is not None
            ]
            room = objects - len(seen)
            level = [child for child in dict.fromkeys(below) if child not in seen]
            if len(level) > room:
                since_us = await Now()  # of what is not visited nothing is known
            level = level[:room]
            seen.update(level)
        return Moments(sorted(times, reverse=True), since_us)

    async def _changes_if_permitted(
        self, identifier: ObjectId, who: Credentials, most: int
    ) -> list[Change]:
        try:
            return await self.changes(identifier, who, most=most)
        except FileSystemError:
            return []


def _change(version: PastVersion, operation: Operation) -> Change:
    changed = dict(version.changes)
    encoded = changed.pop(ATTRIBUTES_KEY, None)
    return Change(
        version.timestamp,
        version.objects,
        operation,
        None if encoded is None else decode_attributes(encoded),
        tuple(
            (name_in(key), None if value is None else entry_in(value))
            for key, value in changed.items()
        ),
    )
