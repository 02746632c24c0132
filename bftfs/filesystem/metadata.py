"""The client's side of metadata: operations on objects, and caches of attributes and names.

Attributes come with every answer, and are valid for as long as the mount options say. The cache
never goes back to an older version of an object, whatever order answers come in. A cached name that
is no longer valid is still a good guess: an update that builds on it is checked by its method,
which refuses with ESTALE if the guess was wrong.

Attributes of many objects are asked for together where a program looks at one entry of a directory
after the other (`listed_order`): they are then cached like any others, for as long.

A listing reads a directory page by page, entry by entry. Entries that exist from its beginning to
its end appear exactly once, whatever happens to others. Entries that appeared since its beginning
are left out, so that it ends.

Access times go by relatime: noted on a read, shown to programs at once, sent to the nodes later.
Pending access times are lost if the mount process dies. No other change waits like this.

Concurrency: caches are touched between awaits only. The service runs updates of one object one
after the other, so that the conversations of one mount do not contend with each other.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.conversation import Event, Now, Wait
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused, FileSystemError, OperationFailed
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import (
    Child,
    DirectoryPage,
    ListedEntry,
    Listing,
    LookupAnswer,
    Name,
)
from bftfs.filesystem.inode import Access, BlockPage, NamedBlocks, is_access_due
from bftfs.filesystem.listed_order import ListedOrder
from bftfs.filesystem.objects import NANOSECONDS_PER_MICROSECOND, NoArguments
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import (
    ACCESSED,
    GET_ATTRIBUTES,
    GET_BLOCKS,
    LOOKUP,
    PERMIT_READING,
    PERMIT_WRITING,
    READ_DIRECTORY,
)
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.query_update.client import Answered, EarlierAttempt, QueryUpdateClient, Vouch
from bftfs.query_update.object_type import Record
from bftfs.query_update.past_reading import PastReader

ATTRIBUTES_CACHED: Final = 32_768  # about 1 KiB each
PAGE_BYTES: Final = limits.LISTING_BYTES  # of a directory, in one answer
PENDING: Final = 4_096  # access times that wait; beyond that, the oldest is forgotten

_END_OF_DIRECTORY = 1 << 63


class _KnownAttributes(NamedTuple):
    attributes: Attributes
    heard_us: int


class PastMetadata:
    """The objects as they were at a time, in place of a `QueryUpdateClient`."""

    def __init__(self, reader: PastReader, at_us: int) -> None:
        self._reader = reader
        self._at_us = at_us

    async def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record, who: Credentials
    ) -> Answered:
        """Invoke a query of one object."""
        (identifier,) = objects
        return await self._reader.query(identifier, method, arguments, who, at_us=self._at_us)

    async def update(self, *_arguments: Any, **_options: Any) -> Answered:
        """The past does not change."""
        raise FileSystemError(errno.EROFS)


class Metadata:
    """Queries and updates of objects, with their cached attributes and names."""

    def __init__(self, service: QueryUpdateClient | PastMetadata, options: Options) -> None:
        self._service = service
        self._read_only = options.read_only
        self._is_past = options.is_past
        strict = options.strict
        self._attribute_timeout_us = 0 if strict else options.attribute_timeout_us
        self._attributes: OrderedDict[ObjectId, _KnownAttributes] = OrderedDict()
        self.names = NameCache(
            0 if strict else options.entry_timeout_us, 0 if strict else options.absence_timeout_us
        )
        self._latest_us = 0  # the latest time that the clock has shown
        self._order = ListedOrder()
        self._coming: dict[ObjectId, Event] = {}  # attributes that are being asked for in bundles

    # --- operations --------------------------------------------------------------------------

    async def query(
        self, identifier: ObjectId, method: str, arguments: Record, who: Credentials
    ) -> Any:
        """The answer of a query of one object."""
        return (await self._service.query((identifier,), method, arguments, who)).answer

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
        vouch: Vouch | None = None,
        reaching: Nodes = NOBODY,
        earlier: list[EarlierAttempt] | None = None,
    ) -> Any:
        """The answer of an update; all as `QueryUpdateClient.update`."""
        if self._read_only:
            raise FileSystemError(errno.EROFS)
        try:
            answered = await self._service.update(
                objects,
                method,
                arguments,
                who,
                not_before_us=not_before_us,
                vouch=vouch,
                reaching=reaching,
                earlier=earlier,
            )
        except FileSystemError:  # nothing has changed
            raise
        except BaseException:
            self._doubt(objects)
            raise
        return answered.answer

    def _doubt(self, objects: tuple[ObjectId, ...]) -> None:
        """An update of these may take effect or not: what the cache says of them is uncertain."""
        for identifier in objects:
            entry = self._attributes.get(identifier)
            if entry is not None:
                self._attributes[identifier] = entry._replace(heard_us=0)
        self.names.distrust()

    # --- attributes --------------------------------------------------------------------------

    def known(self, identifier: ObjectId) -> Attributes | None:
        """The newest attributes heard of, however old."""
        entry = self._attributes.get(identifier)
        return None if entry is None else entry.attributes

    def fresh(self, identifier: ObjectId, now_us: int) -> Attributes | None:
        """The cached attributes, if they are valid."""
        entry = self._valid(identifier, now_us)
        return None if entry is None else entry.attributes

    def _valid(self, identifier: ObjectId, now_us: int) -> _KnownAttributes | None:
        self._notice(now_us)
        entry = self._attributes.get(identifier)
        is_valid = entry is not None and now_us - entry.heard_us < self._attribute_timeout_us
        return entry if is_valid else None

    def _notice(self, now_us: int) -> None:
        """Expire everything if the clock was set back: the age of older entries is unknown."""
        if now_us < self._latest_us:
            for identifier, entry in self._attributes.items():
                self._attributes[identifier] = entry._replace(heard_us=0)
            self.names.distrust()
        self._latest_us = now_us

    def learn(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> Attributes:
        """Cache attributes from an answer. Gives the newest that are known."""
        self.names.saw(identifier, attributes)
        return self._keep(identifier, attributes, now_us)

    def _keep(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> Attributes:
        entry = self._attributes.get(identifier)
        if entry is not None and entry.attributes.version >= attributes.version:
            if entry.attributes.version > attributes.version:
                return entry.attributes
            now_us = max(now_us, entry.heard_us)
        self._attributes[identifier] = _KnownAttributes(attributes, now_us)
        self._attributes.move_to_end(identifier)
        if len(self._attributes) > ATTRIBUTES_CACHED:
            self._attributes.popitem(last=False)
        return attributes

    async def attributes(
        self, identifier: ObjectId, who: Credentials, directory: ObjectId | None = None
    ) -> Attributes:
        """The attributes, from the cache or a quorum.

        With the `directory` in which it was looked up, those of its neighbours may come along.
        """
        attributes = self.fresh(identifier, await Now())
        if attributes is None and directory is not None and self._attribute_timeout_us:
            coming = self._coming.get(identifier)
            if coming is not None:
                await Wait(coming)
            else:
                await self.fetch(self._order.looked_at(directory, identifier, await Now()), who)
            attributes = self.fresh(identifier, await Now())
        return await self.latest(identifier, who) if attributes is None else attributes

    async def fetch(self, identifiers: Sequence[ObjectId], who: Credentials) -> None:
        """Ask for those attributes of these that are not known, in bundles.

        What a quorum does not agree on at once stays unknown. The bundles are over when the slowest
        is; an answer may be as old as the question. Nothing is cached for longer because of that.
        """
        service, asked_us = self._service, await Now()
        wanted = [
            each
            for each in dict.fromkeys(identifiers)  # a hard link is another name of the same object
            if each not in self._coming and self._valid(each, asked_us) is None
        ]
        if not wanted or not self._attribute_timeout_us or isinstance(service, PastMetadata):
            return
        fetched = Event()
        self._coming |= dict.fromkeys(wanted, fetched)
        try:
            found = await service.bundle(wanted, GET_ATTRIBUTES, NoArguments(), who)
            heard_us = min(asked_us, await Now())  # the clock may have been set back
            for identifier, answered in found.items():
                self.learn(identifier, answered.answer, heard_us)
        except AdmissionRefused:
            pass  # a later question about one of them reports it
        finally:
            for each in wanted:
                del self._coming[each]
            fetched.announce()

    async def fetch_listed(
        self, directory: ObjectId, entries: Sequence[ListedEntry], who: Credentials
    ) -> None:
        """If programs look at what they list there, get the attributes of entries and the next."""
        now_us = await Now()
        if not self._attribute_timeout_us or not self._order.is_looked_at(directory, now_us):
            return
        for entry in entries:
            if self._valid(entry.identifier, now_us) is None:
                await self.fetch(self._order.following(directory, entry.identifier), who)
                return

    async def latest(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes as a quorum has them now. The past does not change: known ones will do."""
        if self._is_past and (known := self.known(identifier)) is not None:
            return known
        attributes = await self.query(identifier, GET_ATTRIBUTES, NoArguments(), who)
        return self.learn(identifier, attributes, await Now())

    async def blocks(self, identifier: ObjectId, page: BlockPage, who: Credentials) -> NamedBlocks:
        """The attributes as a quorum has them now, and the names of a page of blocks."""
        found: NamedBlocks = await self.query(identifier, GET_BLOCKS, page, who)
        self.learn(identifier, found.attributes, await Now())
        return found

    async def permit_writing(
        self, identifier: ObjectId, who: Credentials, forbidding: Nodes
    ) -> None:
        """Ask the inode if the user may write its blocks now; raises FileSystemError if not.

        The nodes that are `forbidding` it know the inode as it is after that, if they can be heard.
        """
        await self.update((identifier,), PERMIT_WRITING, NoArguments(), who, reaching=forbidding)

    async def permit_reading(
        self, identifier: ObjectId, who: Credentials, forbidding: Nodes
    ) -> None:
        """Ask the inode if the user may be shown its blocks; as `permit_writing`.

        Nothing is changed by that, so that it is no matter if the mount is read-only.
        """
        await self._service.update(
            (identifier,), PERMIT_READING, NoArguments(), who, reaching=forbidding
        )

    # --- names -------------------------------------------------------------------------------

    async def look_up(self, directory: ObjectId, name: bytes, who: Credentials) -> Child | None:
        """Ask a quorum for the object that the name stands for, if any."""
        found: LookupAnswer = await self.query(directory, LOOKUP, Name(name), who)
        now_us = await Now()
        self.learn(directory, found.directory, now_us)
        self.names.found(directory, found.directory, name, found.child, now_us)
        return found.child

    def cached_name(self, directory: ObjectId, name: bytes, now_us: int) -> CachedName | None:
        """The cached meaning of the name, if it is valid."""
        return self.names.cached_name(directory, name, now_us, self._valid(directory, now_us))

    async def listed(self, directory: ObjectId, after: int, who: Credentials) -> DirectoryPage:
        """The entries of the directory after a cookie."""
        arguments = Listing(after, PAGE_BYTES)
        page: DirectoryPage = await self.query(directory, READ_DIRECTORY, arguments, who)
        now_us = await Now()
        self.learn(directory, page.directory, now_us)
        self._order.listed(directory, after, page.entries)
        is_whole = page.complete and not after
        self.names.listed(directory, page.directory, page.entries, now_us, is_whole=is_whole)
        return page

    def made(self, directory: ObjectId, attributes: Attributes, now_us: int) -> None:
        """This mount has made the directory."""
        self.names.made(directory, attributes)
        self._keep(directory, attributes, now_us)

    def changed(
        self, directory: ObjectId, attributes: Attributes, changes: Iterable[Changed], now_us: int
    ) -> None:
        """This mount has changed the directory: its attributes, and these names in it."""
        self.names.changed(directory, attributes, changes, now_us)
        self._keep(directory, attributes, now_us)

    def changed_itself(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> None:
        """This mount has changed the object's attributes; if it is a directory, no names in it."""
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            self.names.changed(identifier, attributes, (), now_us)
        self._keep(identifier, attributes, now_us)


# --- listings --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of a listing. `attributes` is None if the object is gone, or was not asked."""

    name: bytes
    cookie: int
    identifier: ObjectId
    file_type: int
    attributes: Attributes | None


class OpenDirectory:
    """A listing in progress."""

    __slots__ = ("_begins", "_ends", "_entries", "_stop", "identifier", "is_access_noted", "who")

    def __init__(self, identifier: ObjectId, who: Credentials) -> None:
        self.identifier = identifier
        self.who = who
        self.is_access_noted = False
        self._entries: tuple[ListedEntry, ...] = ()  # those after cookies in [begins, ends)
        self._begins = self._ends = 0
        self._stop = 0  # the serial of the first entry that appeared since the listing began

    async def entries(self, metadata: Metadata, after: int, count: int) -> tuple[ListedEntry, ...]:
        """Up to `count` entries after a cookie; a cookie of 0 begins anew."""
        if not after or not self._begins <= after < self._ends:
            page = await metadata.listed(self.identifier, after, self.who)
            self._begins, self._entries = after, page.entries
            self._ends = _END_OF_DIRECTORY if page.complete else page.entries[-1].serial
            if not after or not self._stop:
                self._stop = page.directory.next_serial
        entries = self._entries
        first = bisect_right(entries, after, key=lambda entry: entry.serial)
        last = bisect_left(entries, self._stop, key=lambda entry: entry.serial)
        return entries[first : min(last, first + count)]


# --- access times ----------------------------------------------------------------------------


class AccessTimes:
    """The access times that have not been sent to the nodes."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._pending: OrderedDict[ObjectId, tuple[int, Credentials]] = OrderedDict()  # by time

    def seen_by_programs(self, identifier: ObjectId, attributes: Attributes) -> Attributes:
        """`attributes` with the pending access time, if there is one."""
        pending = self._pending.get(identifier)
        if pending is None or pending[0] <= attributes.atime_ns:
            return attributes
        return msgspec.structs.replace(attributes, atime_ns=pending[0])

    async def note(self, identifier: ObjectId, seen: Attributes, who: Credentials) -> None:
        """Remember a read of the object with attributes `seen`, if relatime records it."""
        atime_ns = await Now() * NANOSECONDS_PER_MICROSECOND
        if is_access_due(seen, atime_ns):
            self._pending[identifier] = (atime_ns, who)
            self._pending.move_to_end(identifier)
            if len(self._pending) > PENDING:
                self._pending.popitem(last=False)

    def forget(self, identifier: ObjectId) -> None:
        """Drop the pending access time: it was set explicitly, or the object is gone."""
        self._pending.pop(identifier, None)

    async def record(self, *, older_than_us: int, most: int = PENDING) -> None:
        """Send up to `most` access times that are so old, the oldest first.

        An access time that the nodes refuse is forgotten.
        """
        due_ns = (await Now() - older_than_us) * NANOSECONDS_PER_MICROSECOND
        for _ in range(most):
            if not self._pending:
                return
            identifier, (atime_ns, who) = next(iter(self._pending.items()))
            if atime_ns > due_ns:
                return
            with suppress(FileSystemError, OperationFailed):
                outcome = await self._metadata.update(
                    (identifier,), ACCESSED, Access(atime_ns), who
                )
                (attributes,) = outcome.attributes
                self._metadata.changed_itself(identifier, attributes, await Now())
            if self._pending.get(identifier, (0, who))[0] == atime_ns:
                del self._pending[identifier]


ENTRIES: Final = 65_536
DIRECTORIES: Final = 4_096
NAMES: Final = 65_536  # in all directories whose names are all known

Changed: TypeAlias = tuple[bytes, Child | None]  # a name, and the object it stands for from now on


class CachedName(NamedTuple):
    """A cache entry; `child` is None if there was no such name."""

    child: Child | None
    version: int  # of the directory
    heard_us: int


@dataclass(slots=True)
class _Directory:
    """The known version of a directory, and all its names, if they are known."""

    version: int
    since: int
    names: set[bytes] | None = None


_FREE = CachedName(None, 0, 0)


class NameCache:
    """The directory entries that a mount knows, and the directory versions for which each entry is
    valid.

    An entry is valid for the time that the mount options allow; a negative entry (there is no such
    name) for a shorter one. After that time it stays valid while the directory's cached attributes
    are valid and show that only this mount has changed the directory since the entry was read.
    Versions of a directory name the version before, so that a mount can tell its own changes from
    others'. In the same way, a mount that knows all names of a directory, because it made or listed
    it, knows that any other name is free.

    Invariants, for a directory whose `version` is known: an entry read at a version in [since,
    version] is still true; `names`, if not None, are all names in the directory.
    """

    def __init__(self, timeout_us: int, absence_timeout_us: int) -> None:
        self._timeout_us = timeout_us
        self._absence_timeout_us = absence_timeout_us
        self._entries: OrderedDict[tuple[ObjectId, bytes], CachedName] = OrderedDict()
        self._directories: OrderedDict[ObjectId, _Directory] = OrderedDict()
        self._names = 0  # in the sets of all directories

    # --- asking ------------------------------------------------------------------------------

    def guess(self, directory: ObjectId, name: bytes) -> CachedName | None:
        """The last known entry, valid or not."""
        entry = self._entries.get((directory, name))
        if entry is None:
            known = self._directories.get(directory)
            if known is not None and known.names is not None and name not in known.names:
                return _FREE
        return entry

    def cached_name(
        self, directory: ObjectId, name: bytes, now_us: int, at: _KnownAttributes | None
    ) -> CachedName | None:
        """The entry, if it is valid; `at` are the directory's attributes, if these are."""
        entry = self._entries.get((directory, name))
        if entry is not None:
            kept_us = self._absence_timeout_us if entry.child is None else self._timeout_us
            if now_us - entry.heard_us < kept_us:
                return entry
        known = self._directories.get(directory)
        if known is None or at is None or known.version != at.attributes.version:
            return None
        is_absent_still = now_us - at.heard_us < self._absence_timeout_us
        if entry is not None and entry.version >= known.since:
            return entry if entry.child is not None or is_absent_still else None
        if known.names is not None and name not in known.names and is_absent_still:
            return _FREE
        return None

    # --- learning ----------------------------------------------------------------------------

    def saw(self, directory: ObjectId, attributes: Attributes) -> None:
        """These are the directory's attributes now: a new version may be another mount's change."""
        known = self._directories.get(directory)
        if known is not None and known.version < attributes.version:
            self._know(directory, _Directory(attributes.version, attributes.version))

    def found(
        self, directory: ObjectId, at: Attributes, name: bytes, child: Child | None, now_us: int
    ) -> None:
        """The name was looked up in the directory, whose attributes were `at`."""
        if self._is_current(directory, at.version):
            self._remember(directory, name, child, at.version, now_us)

    def listed(
        self,
        directory: ObjectId,
        at: Attributes,
        entries: Iterable[ListedEntry],
        now_us: int,
        *,
        is_whole: bool,
    ) -> None:
        """The directory was listed; with `is_whole`, these are all its names."""
        if not self._is_current(directory, at.version):
            return
        names = set()
        for entry in entries:
            child = Child(entry.identifier, entry.file_type)
            self._remember(directory, entry.name, child, at.version, now_us)
            names.add(entry.name)
        if is_whole:
            known = self._directories[directory]
            self._know(directory, _Directory(at.version, known.since, names))

    def made(self, directory: ObjectId, at: Attributes) -> None:
        """This mount has made the directory: it is empty."""
        self._know(directory, _Directory(at.version, at.version, set()))

    def changed(
        self, directory: ObjectId, at: Attributes, changes: Iterable[Changed], now_us: int
    ) -> None:
        """This mount has changed the directory: its attributes, and these names in it."""
        known = self._directories.get(directory)
        if known is not None and known.version > at.version:
            for name, _ in changes:  # the directory was changed again since
                self.forget(directory, name)
            return
        if known is None or known.version not in (at.previous, at.version):
            known = _Directory(at.version, at.version)
            self._know(directory, known)
        known.version = at.version
        for name, child in changes:
            self._remember(directory, name, child, at.version, now_us)
            if known.names is not None:
                self._names -= len(known.names)
                (known.names.discard if child is None else known.names.add)(name)
                self._names += len(known.names)
        self._drop_surplus()

    def forget(self, directory: ObjectId, name: bytes) -> None:
        """Drop a name that turned out to stand for another object."""
        self._entries.pop((directory, name), None)
        self._forget_directory(directory)

    def distrust(self) -> None:
        """Let no entry be valid because of its age alone.

        The clock was set back, or nobody knows if an update has taken effect.
        """
        for place, entry in self._entries.items():
            self._entries[place] = entry._replace(heard_us=0)

    # -----------------------------------------------------------------------------------------

    def _is_current(self, directory: ObjectId, version: int) -> bool:
        """True if no later version of the directory is known than that of an answer."""
        known = self._directories.get(directory)
        if known is None or known.version < version:
            self._know(directory, _Directory(version, version))
            return True
        return known.version == version

    def _know(self, directory: ObjectId, known: _Directory) -> None:
        self._forget_directory(directory)
        self._directories[directory] = known
        self._names += len(known.names or ())
        self._drop_surplus()

    def _forget_directory(self, directory: ObjectId) -> None:
        known = self._directories.pop(directory, None)
        if known is not None:
            self._names -= len(known.names or ())

    def _remember(
        self, directory: ObjectId, name: bytes, child: Child | None, version: int, now_us: int
    ) -> None:
        self._entries[directory, name] = CachedName(child, version, now_us)
        self._entries.move_to_end((directory, name))
        if len(self._entries) > ENTRIES:
            self._entries.popitem(last=False)

    def _drop_surplus(self) -> None:
        while len(self._directories) > DIRECTORIES or self._names > NAMES:
            self._forget_directory(next(iter(self._directories)))
