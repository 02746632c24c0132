"""`.history` in every directory: not listed, but it can be entered.

`.history/TIME/…` is the directory as it was at any time, in ISO form at any precision;
`.history/SNAPSHOT/…` as a snapshot shows it. A listing of `.history` offers the snapshots and the
times at which something in or below the directory changed. Everything there is read-only.

Objects below `.history` have inode numbers of their own (`inode_table`), and keys that are longer
than an object id: the object's id and the time. The key of `.history` itself is the directory's id
and one more byte.

Concurrency: one thread; caches are touched between awaits only.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple, cast

from msgspec import structs

from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.file_history import History
from bftfs.filesystem.metadata import DirectoryEntry
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.filesystem.time_names import format_time_name, parse_time_name
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId

NAME: Final = b".history"

_TIME_BYTES: Final = 8
_ENTRANCE: Final = b"\0"
TIMES_LISTED: Final = 256
_DIRECTORY_TYPE: Final = stat.S_IFDIR >> 12
_WRITE_BITS: Final = 0o222


class Entrance:
    """The `.history` directories, with those methods of `FileSystem` that a reader calls."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def lookup(self, directory: ObjectId, name: bytes, who: Credentials) -> FoundObject:
        """The directory at the time that `name` stands for; ENOENT if it stands for none."""
        history = self._history
        await history.present.access(directory, _SEARCH, who)
        time_us = parse_time_name(name.decode(errors="replace"))
        if time_us is None:
            time_us = await self._time_of_snapshot(name, who)
        if time_us < 0:
            raise FileSystemError(errno.ENOENT)
        found = await history.found_at(directory, time_us, who)
        return FoundObject(key_of(directory, time_us), found.attributes)

    async def _time_of_snapshot(self, name: bytes, who: Credentials) -> int:
        for snapshot in await self._history.snapshots(who):
            if snapshot.name == name:
                return snapshot.time_us
        raise FileSystemError(errno.ENOENT)

    async def attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes of the directory, without write permission."""
        attributes = await self._history.present.attributes(identifier, who)
        return structs.replace(
            attributes, mode=attributes.mode & ~_WRITE_BITS, links=2, flags=0, extended=0
        )

    async def open_directory(
        self, identifier: ObjectId, who: Credentials
    ) -> tuple[DirectoryEntry, ...]:
        """The snapshots, and the times at which something changed."""
        times = await self._history.change_times(identifier, who)
        listed = [(format_time_name(each).encode(), each) for each in times[:TIMES_LISTED]]
        listed += [
            (snapshot.name, snapshot.time_us)
            for snapshot in await self._history.snapshots(who)
            if times and snapshot.time_us >= times[-1]
        ]
        return tuple(
            DirectoryEntry(name, cookie, key_of(identifier, time_us), _DIRECTORY_TYPE, None)
            for cookie, (name, time_us) in enumerate(sorted(listed), 1)
        )

    async def read_directory(
        self, opened: tuple[DirectoryEntry, ...], after: int, *, count: int, with_attributes: bool
    ) -> tuple[DirectoryEntry, ...]:
        """Up to `count` entries behind the one with cookie `after`."""
        return opened[after : after + count]

    async def read_link(self, *_: object) -> bytes:
        """EINVAL: it is a directory."""
        raise FileSystemError(errno.EINVAL)

    async def open(self, *_: object) -> OpenFile:
        """EISDIR: it is a directory."""
        raise FileSystemError(errno.EISDIR)

    async def get_extended(self, *_: object) -> bytes:
        """ENODATA: it has none."""
        raise FileSystemError(errno.ENODATA)

    async def list_extended(self, *_: object) -> tuple[bytes, ...]:
        """None."""
        return ()


_SEARCH: Final = 1  # X_OK


def key_of(identifier: ObjectId, time_us: int) -> ObjectId:
    """The key of an object at a time, by which the inode table knows it."""
    return ObjectId(identifier + time_us.to_bytes(_TIME_BYTES, "big"))


def entrance_to(directory: ObjectId) -> ObjectId:
    """The key of a directory's `.history`."""
    return ObjectId(directory + _ENTRANCE)


class ObjectInView(NamedTuple):
    """The object behind an inode of the kernel's, and the file system that shows it.

    Keys of objects that are found in it end with `suffix`.
    """

    files: FileSystem
    identifier: ObjectId
    suffix: bytes = b""


class Places:
    """Finds the objects behind keys below `.history`."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._entrance = Entrance(history)

    def find(self, key: ObjectId) -> ObjectInView:
        """The object with this key, and the file system that shows it."""
        identifier, suffix = ObjectId(key[:OBJECT_ID_BYTES]), key[OBJECT_ID_BYTES:]
        if suffix == _ENTRANCE:
            return ObjectInView(cast(FileSystem, self._entrance), identifier)
        return ObjectInView(self._history.at(int.from_bytes(suffix, "big")), identifier, suffix)

    async def enter(self, directory: ObjectId, who: Credentials) -> FoundObject:
        """The `.history` of a directory."""
        attributes = await self._entrance.attributes(directory, who)
        return FoundObject(entrance_to(directory), attributes)
