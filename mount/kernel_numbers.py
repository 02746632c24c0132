"""The kernel's numbers of inodes and open files, and what they stand for, now and in `.history`.

An inode's number is derived from its id, so that `st_ino` is the same in every mount and after
every restart, and all names of a hard-linked file share it. Two objects may collide in 63 bits;
the later one then gets the next free number for as long as both are known. Objects below `.history`
have longer identifiers (the object's and the time), and numbers from 2^63 on.

`.history` is in every directory: it is not listed, but can be entered. `.history/TIME/…` is the
directory as it was at any time, in ISO form at any precision; `.history/SNAPSHOT/…` as a snapshot
shows it. A listing of `.history` offers the snapshots and the times at which something in or below
the directory changed. Everything there is read-only. The key of `.history` itself is the
directory's id and one more byte.

Invariants: the root is number 1 and never forgotten. An entry exists exactly while its lookup count
is positive: until it is zero, the kernel may use the number at any time.

Concurrency: one thread; numbers are given, and caches touched, between awaits only.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count, islice
from typing import Final, Generic, NamedTuple, TypeVar, cast

from msgspec import structs

from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes, inode_number
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.file_history import History
from bftfs.filesystem.metadata import DirectoryEntry
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.filesystem.time_names import format_time_name, parse_time_name
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId

ROOT_NUMBER = 1
LAST_NUMBER = (1 << 63) - 1
_FIRST_OF_THE_PAST = LAST_NUMBER + 1
_LAST_OF_THE_PAST = (1 << 64) - 1


KERNEL_PAGE_BYTES: Final = 4096
SIZES_KEPT: Final = 16  # of an inode, one of which the kernel may still have


@dataclass(slots=True)
class KernelInode:
    """An object that the kernel knows."""

    identifier: ObjectId
    lookups: int
    size: int = 0  # that the kernel was told last, or has made the file
    moves: int = 0  # of appended bytes, as of which its pages are
    _before: tuple[int, ...] = ()  # sizes before that one

    def told(self, size: int) -> None:
        """The kernel is told that size, or has written up to there."""
        if size != self.size:
            self._before = (*self._before[1 - SIZES_KEPT :], self.size)
            self.size = size

    def is_append(self, start: int, stop: int, *, may_be_mapped: bool) -> bool:
        """True if bytes [start, stop), of a handle that appends, begin at the end of the file.

        At one where the kernel may believe it to be: an answer with a new size may have crossed
        the write; and the kernel ignores an answer that it has asked for before a write, so it may
        have an old size for long. But if the file may be mapped through the handle, whole pages,
        and the beginning of the last one, may be what programs have changed there.
        """
        if start == self.size:
            return True
        is_page = not start % KERNEL_PAGE_BYTES and (
            not stop % KERNEL_PAGE_BYTES or stop == self.size or stop in self._before
        )
        return start in self._before and not (may_be_mapped and is_page)


class InodeTable:
    """The inodes that the kernel knows, by number."""

    def __init__(self, root: ObjectId) -> None:
        self._root = root
        self._by_number: dict[int, KernelInode] = {ROOT_NUMBER: KernelInode(root, 1)}
        self._displaced: dict[ObjectId, int] = {}  # objects that have another number than their own

    def number(self, identifier: ObjectId) -> int:
        """The number of an object, known to the kernel or not."""
        if identifier == self._root:
            return ROOT_NUMBER
        if self._displaced and identifier in self._displaced:
            return self._displaced[identifier]
        number = _own_number(identifier)
        while True:
            known = self._by_number.get(number)
            if known is None or known.identifier == identifier:
                return number
            number = _next(number)

    def remember(self, identifier: ObjectId) -> int:
        """The number of an object in a reply to a lookup, which the kernel counts."""
        number = self.number(identifier)
        known = self._by_number.get(number)
        if known is not None:
            known.lookups += 1
            return number
        self._by_number[number] = KernelInode(identifier, 1)
        if number != _own_number(identifier):
            self._displaced[identifier] = number
        return number

    def known(self, number: int) -> KernelInode:
        """The entry with this number; ESTALE if there is none."""
        known = self._by_number.get(number)
        if known is None:
            raise FileSystemError(errno.ESTALE, f"inode {number}")
        return known

    def find(self, number: int) -> KernelInode | None:
        """The entry with this number, if there is one."""
        return self._by_number.get(number)

    def identifier(self, number: int) -> ObjectId:
        """The object with this number."""
        return self.known(number).identifier

    def forget(self, number: int, lookups: int) -> ObjectId | None:
        """The kernel has dropped `lookups` lookups. Returns the object if they were the last."""
        known = self._by_number.get(number)
        if known is None or number == ROOT_NUMBER:
            return None
        known.lookups -= lookups
        if known.lookups > 0:
            return None
        del self._by_number[number]
        self._displaced.pop(known.identifier, None)
        return known.identifier

    def __len__(self) -> int:
        return len(self._by_number)


Name = tuple[int, bytes]  # the directory's number, and the name in it


class KernelNames:
    """The names under which the kernel knows files, so that it can be asked to forget some.

    The kernel keeps an inode as long as it has memory, and the mount as long as the kernel does. Of
    a file it is the latest name that counts. Directories are left alone: a process may work in one,
    and would lose sight of where it is.
    """

    def __init__(self) -> None:
        self._numbers: dict[Name, int] = {}
        self._names: dict[int, Name] = {}  # the one that was found first comes first

    def found(self, name: Name, number: int, *, is_directory: bool) -> None:
        """The kernel is told that the name stands for this inode."""
        if not is_directory and self._numbers.get(name) == number:
            return
        self.gone(name)
        if not is_directory:
            self.forgotten(number)
            self._numbers[name], self._names[number] = number, name

    def gone(self, name: Name) -> int | None:
        """The name stands for nothing any more, or for something else; the file that it was of."""
        number = self._numbers.pop(name, None)
        if number is not None:
            del self._names[number]
        return number

    def moved(self, old: Name, new: Name, *, exchanged: bool) -> None:
        """The kernel has renamed one, over the other or with it."""
        number, other = self.gone(old), self.gone(new)
        if number is not None:
            self.found(new, number, is_directory=False)
        if exchanged and other is not None:
            self.found(old, other, is_directory=False)

    def forgotten(self, number: int) -> None:
        """The kernel does not know the inode any more, or by another name."""
        name = self._names.pop(number, None)
        if name is not None:
            del self._numbers[name]

    def take_surplus(self, most: int, *, but: Collection[int]) -> list[Name]:
        """Names of those files, except some, that are more than `most`; they count no more here.

        If the kernel needs such a file, it looks it up again, or goes on with it without a name.
        """
        surplus = len(self._names) - most
        if surplus <= 0:
            return []
        numbers = list(islice((each for each in self._names if each not in but), surplus))
        names = [self._names[number] for number in numbers]
        for number in numbers:
            self.forgotten(number)
        return names

    def __len__(self) -> int:
        return len(self._names)


def _own_number(identifier: ObjectId) -> int:
    """The number of an object that collides with no other; never the root's."""
    if len(identifier) > OBJECT_ID_BYTES:
        digest = blake2b(identifier, digest_size=8).digest()
        return _FIRST_OF_THE_PAST | int.from_bytes(digest, "big")
    return max(inode_number(identifier), ROOT_NUMBER + 1)


def _next(number: int) -> int:
    """The next number to try, among those of the present or of the past."""
    if number == LAST_NUMBER:
        return ROOT_NUMBER + 1
    return _FIRST_OF_THE_PAST if number == _LAST_OF_THE_PAST else number + 1


Opened = TypeVar("Opened")


@dataclass(slots=True, frozen=True, eq=False)
class Handle(Generic[Opened]):
    """A file or directory that a process has opened, and the file system that shows it.

    A file stays usable through its handle after its last name is removed: reads and writes refer
    to the handle, not to a name.
    """

    files: FileSystem  # the present, or a past
    opened: Opened
    inode: int  # the kernel's number
    opener: int  # the thread that opened it; others may use the handle, too
    suffix: bytes = b""  # which ends the keys of objects that are found in it


class Handles(Generic[Opened]):
    """The open handles, by number. Numbers are never used again."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[int, Handle[Opened]] = {}

    def add(self, handle: Handle[Opened]) -> int:
        """The number of a new handle."""
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def get(self, number: int) -> Handle[Opened]:
        """The handle with this number."""
        handle = self._open.get(number)
        if handle is None:
            raise FileSystemError(errno.EBADF, f"handle {number}")
        return handle

    def remove(self, number: int) -> Handle[Opened]:
        """The handle with this number, which the kernel has closed."""
        handle = self.get(number)
        del self._open[number]
        return handle

    @property
    def inodes(self) -> set[int]:
        """The kernel's numbers of what is open."""
        return {handle.inode for handle in self._open.values()}

    def __len__(self) -> int:
        return len(self._open)


# --- .history ---------------------------------------------------------------------------------


HISTORY: Final = b".history"

_TIME_BYTES: Final = 8
_ENTRANCE: Final = b"\0"
TIMES_LISTED: Final = 1024
_BEFORE: Final = b"before-"  # and a time: what is earlier is not listed, or not all of it
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
        text = name.decode(errors="replace")
        time_us = parse_time_name(text)
        if time_us is None and name.startswith(_BEFORE):
            later_us = parse_time_name(text.removeprefix(_BEFORE.decode()))
            time_us = None if later_us is None else later_us - 1
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

    async def _existed(self, directory: ObjectId, time_us: int, who: Credentials) -> bool:
        try:
            await self._history.found_at(directory, time_us, who)
        except FileSystemError:
            return False
        return True

    async def attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes of the directory, without write permission."""
        attributes = await self._history.present.attributes(identifier, who)
        return structs.replace(
            attributes, mode=attributes.mode & ~_WRITE_BITS, links=2, flags=0, extended=0
        )

    async def open_directory(
        self, identifier: ObjectId, who: Credentials
    ) -> tuple[DirectoryEntry, ...]:
        """The snapshots, and the times at which something changed.

        If there may be others, `before-TIME` says from when on all are listed.
        """
        times, since_us = await self._history.change_times(identifier, who)
        listed = [(format_time_name(each).encode(), each) for each in times[:TIMES_LISTED]]
        if len(times) > TIMES_LISTED:
            since_us = max(since_us, times[TIMES_LISTED - 1])
        if since_us and await self._existed(identifier, since_us - 1, who):
            listed.append((_BEFORE + format_time_name(since_us).encode(), since_us - 1))
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
