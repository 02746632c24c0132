"""The client's side of metadata: operations on objects, their cached attributes and entries.

Attributes come with every answer, and are kept for as long as the mount allows. What is known of an
object never goes back to an older version, whatever order answers come in. A cached entry or
attribute that has expired is still a good guess: an update that builds on it is checked by its
method, which refuses with ESTALE if the guess was wrong.

Concurrency: caches are touched between awaits only. Updates of one object take turns in the
service, so that the conversations of one mount do not contend with each other.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from bftfs.conversation import Now
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import Child
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import GET_ATTRIBUTES
from bftfs.filesystem.services import MetadataService
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import Record

ATTRIBUTES_CACHED: Final = 32_768  # about 1 KiB each
ENTRIES_CACHED: Final = 65_536


class _KnownAttributes(NamedTuple):
    attributes: Attributes
    expires_us: int


class KnownEntry(NamedTuple):
    """What a name stood for when last heard of; `child` is None if there was no such name."""

    child: Child | None
    expires_us: int


class Metadata:
    """Queries and updates of objects, with what is known of them."""

    def __init__(
        self,
        service: MetadataService,
        *,
        attribute_timeout_us: int,
        entry_timeout_us: int,
        read_only: bool,
    ) -> None:
        self._service = service
        self._read_only = read_only
        self._attribute_timeout_us = attribute_timeout_us
        self._entry_timeout_us = entry_timeout_us
        self._attributes: OrderedDict[ObjectId, _KnownAttributes] = OrderedDict()
        self._entries: OrderedDict[tuple[ObjectId, bytes], KnownEntry] = OrderedDict()

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
        answered = await self._service.update(
            objects, method, arguments, who, not_before_us=not_before_us
        )
        return answered.answer

    # --- attributes --------------------------------------------------------------------------

    def known(self, identifier: ObjectId) -> Attributes | None:
        """The newest attributes heard of, however old."""
        entry = self._attributes.get(identifier)
        return None if entry is None else entry.attributes

    def version(self, identifier: ObjectId) -> int:
        """Of the newest attributes heard of; every update that this mount makes changes it."""
        entry = self._attributes.get(identifier)
        return 0 if entry is None else entry.attributes.version

    def learn(self, identifier: ObjectId, attributes: Attributes, now_us: int) -> Attributes:
        """Take note of attributes that an answer gave; the newest that are known."""
        entry = self._attributes.get(identifier)
        if entry is not None and entry.attributes.version > attributes.version:
            return entry.attributes
        self._attributes[identifier] = _KnownAttributes(
            attributes, now_us + self._attribute_timeout_us
        )
        self._attributes.move_to_end(identifier)
        if len(self._attributes) > ATTRIBUTES_CACHED:
            self._attributes.popitem(last=False)
        return attributes

    async def attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes, at most as old as the mount allows."""
        entry = self._attributes.get(identifier)
        if entry is not None and entry.expires_us > await Now():
            return entry.attributes
        return await self.latest(identifier, who)

    async def latest(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes as a quorum has them now."""
        attributes = await self.query((identifier,), GET_ATTRIBUTES, NoArguments(), who)
        return self.learn(identifier, attributes, await Now())

    # --- entries -----------------------------------------------------------------------------

    def entry(self, directory: ObjectId, name: bytes) -> KnownEntry | None:
        """What the name stood for when last heard of."""
        return self._entries.get((directory, name))

    def learn_entry(
        self, directory: ObjectId, name: bytes, child: Child | None, now_us: int
    ) -> None:
        """Take note of what a name stands for."""
        self._entries[directory, name] = KnownEntry(child, now_us + self._entry_timeout_us)
        self._entries.move_to_end((directory, name))
        if len(self._entries) > ENTRIES_CACHED:
            self._entries.popitem(last=False)

    def forget_entry(self, directory: ObjectId, name: bytes) -> None:
        """The name turned out to stand for something else."""
        self._entries.pop((directory, name), None)
