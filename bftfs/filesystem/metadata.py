"""The client's side of metadata: operations on objects, and caches of attributes and names.

Attributes come with every answer, and are valid for as long as the mount options say. The cache
never goes back to an older version of an object, whatever order answers come in. A cached name that
is no longer valid is still a good guess: an update that builds on it is checked by its method,
which refuses with ESTALE if the guess was wrong.

Concurrency: caches are touched between awaits only. The service runs updates of one object one
after the other, so that the conversations of one mount do not contend with each other.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from bftfs.conversation import Now
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import Child, DirectoryPage, Listing, LookupAnswer, Name
from bftfs.filesystem.name_cache import CachedName, Changed, NameCache
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import GET_ATTRIBUTES, LOOKUP, READ_DIRECTORY
from bftfs.filesystem.services import MetadataService
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.query_update.object_type import Record

ATTRIBUTES_CACHED: Final = 32_768  # about 1 KiB each


class _KnownAttributes(NamedTuple):
    attributes: Attributes
    heard_us: int


class Metadata:
    """Queries and updates of objects, with their cached attributes and names."""

    def __init__(self, service: MetadataService, options: Options) -> None:
        self._service = service
        self._read_only = options.read_only
        strict = options.strict
        self._attribute_timeout_us = 0 if strict else options.attribute_timeout_us
        self._attributes: OrderedDict[ObjectId, _KnownAttributes] = OrderedDict()
        self._names = NameCache(
            0 if strict else options.entry_timeout_us, 0 if strict else options.absence_timeout_us
        )
        self._latest_us = 0  # the latest time that the clock has shown

    # --- operations --------------------------------------------------------------------------

    async def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record, who: Credentials
    ) -> Any:
        """The answer of a query."""
        return (await self._service.query(objects, method, arguments, who)).answer

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
    ) -> Any:
        """The answer of an update."""
        if self._read_only:
            raise FileSystemError(errno.EROFS)
        try:
            answered = await self._service.update(
                objects, method, arguments, who, not_before_us=not_before_us
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
        self._names.distrust()

    # --- attributes --------------------------------------------------------------------------

    def known(self, identifier: ObjectId) -> Attributes | None:
        """The newest attributes heard of, however old."""
        entry = self._attributes.get(identifier)
        return None if entry is None else entry.attributes

    def fresh(self, identifier: ObjectId, now_us: int) -> Attributes | None:
        """The cached attributes, if they are valid."""
        self._notice(now_us)
        entry = self._attributes.get(identifier)
        if entry is None or now_us - entry.heard_us >= self._attribute_timeout_us:
            return None
        return entry.attributes

    def _notice(self, now_us: int) -> None:
        """Expire everything if the clock was set back: the age of older entries is unknown."""
        if now_us < self._latest_us:
            for identifier, entry in self._attributes.items():
                self._attributes[identifier] = entry._replace(heard_us=0)
            self._names.distrust()
        self._latest_us = now_us

    def learn(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> Attributes:
        """Cache attributes from an answer. Gives the newest that are known."""
        self._names.saw(identifier, attributes)
        return self._keep(identifier, attributes, now_us)

    def _keep(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> Attributes:
        entry = self._attributes.get(identifier)
        if entry is not None and entry.attributes.version > attributes.version:
            return entry.attributes
        self._attributes[identifier] = _KnownAttributes(attributes, now_us)
        self._attributes.move_to_end(identifier)
        if len(self._attributes) > ATTRIBUTES_CACHED:
            self._attributes.popitem(last=False)
        return attributes

    async def attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes, from the cache or a quorum."""
        attributes = self.fresh(identifier, await Now())
        return await self.latest(identifier, who) if attributes is None else attributes

    async def latest(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes as a quorum has them now."""
        attributes = await self.query((identifier,), GET_ATTRIBUTES, NoArguments(), who)
        return self.learn(identifier, attributes, await Now())

    # --- names -------------------------------------------------------------------------------

    async def look_up(self, directory: ObjectId, name: bytes, who: Credentials) -> Child | None:
        """Ask a quorum for the object that the name stands for, if any."""
        found: LookupAnswer = await self.query((directory,), LOOKUP, Name(name), who)
        now_us = await Now()
        self.learn(directory, found.directory, now_us)
        self._names.found(directory, found.directory, name, found.child, now_us)
        return found.child

    def cached_name(self, directory: ObjectId, name: bytes, now_us: int) -> CachedName | None:
        """The cached meaning of the name, if it is valid."""
        self._notice(now_us)
        known = self._attributes.get(directory)
        if known is None or now_us - known.heard_us >= self._attribute_timeout_us:
            return self._names.cached_name(directory, name, now_us)
        return self._names.cached_name(
            directory, name, now_us, version=known.attributes.version, heard_us=known.heard_us
        )

    def guess(self, directory: ObjectId, name: bytes) -> CachedName | None:
        """The last known meaning of the name, valid or not."""
        return self._names.guess(directory, name)

    async def listed(
        self, directory: ObjectId, after: int, volume: int, who: Credentials
    ) -> DirectoryPage:
        """The entries of the directory after a cookie."""
        page: DirectoryPage = await self.query(
            (directory,), READ_DIRECTORY, Listing(after, volume), who
        )
        now_us = await Now()
        self.learn(directory, page.directory, now_us)
        is_whole = page.complete and not after
        self._names.listed(directory, page.directory, page.entries, now_us, is_whole=is_whole)
        return page

    def made(self, directory: ObjectId, attributes: Attributes, now_us: int) -> None:
        """This mount has made the directory."""
        self._names.made(directory, attributes)
        self._keep(directory, attributes, now_us)

    def changed(
        self, directory: ObjectId, attributes: Attributes, changes: Iterable[Changed], now_us: int
    ) -> None:
        """This mount has changed the directory: its attributes, and these names in it."""
        self._names.changed(directory, attributes, changes, now_us)
        self._keep(directory, attributes, now_us)

    def changed_itself(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> None:
        """This mount has changed the object's attributes; if it is a directory, no names in it."""
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            self._names.changed(identifier, attributes, (), now_us)
        self._keep(identifier, attributes, now_us)

    def forget(self, directory: ObjectId, name: bytes) -> None:
        """Drop a name that turned out to stand for another object."""
        self._names.forget(directory, name)
