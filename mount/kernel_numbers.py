"""The numbers that the kernel uses: of inodes, and of open files and directories.

An inode's number is derived from its id, so that `st_ino` is the same in every mount and after
every restart, and all names of a hard-linked file share it. Two objects may collide in 63 bits;
the later one then gets the next free number for as long as both are known. Objects below `.history`
have longer identifiers, and numbers from 2^63 on.

Invariants: the root is number 1 and never forgotten. An entry exists exactly while its lookup count
is positive: until it is zero, the kernel may use the number at any time.

Concurrency: one thread; no method awaits.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Generic, TypeVar

from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import inode_number
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId

ROOT_NUMBER = 1
LAST_NUMBER = (1 << 63) - 1
_FIRST_OF_THE_PAST = LAST_NUMBER + 1
_LAST_OF_THE_PAST = (1 << 64) - 1


@dataclass(slots=True)
class KernelInode:
    """An object that the kernel knows."""

    identifier: ObjectId
    lookups: int
    size: int = 0  # as the kernel believes


class InodeTable:
    """The inodes that the kernel knows, by number."""

    def __init__(self, root: ObjectId) -> None:
        self._root = root
        self._by_number: dict[int, KernelInode] = {ROOT_NUMBER: KernelInode(root, 1)}
        self._displaced: dict[ObjectId, int] = {}  # known under another number than its own

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

    def identifier(self, number: int) -> ObjectId:
        """The object with this number."""
        return self.known(number).identifier

    def forget(self, number: int, lookups: int) -> ObjectId | None:
        """The kernel has dropped so many lookups. Gives the object if they were the last."""
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
    suffix: bytes = b""  # of the keys of what is found in it


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
        """The handle with this number, which the kernel will not name again."""
        handle = self.get(number)
        del self._open[number]
        return handle

    def __len__(self) -> int:
        return len(self._open)
