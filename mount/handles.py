"""The handles of open files and directories, by the numbers that the kernel uses.

A file stays usable through its handle after its last name is removed: reads and writes refer to the
handle, not to a name.

Concurrency: one thread; no method awaits.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from bftfs.errors import FileSystemError

Opened = TypeVar("Opened")


@dataclass(slots=True, frozen=True, eq=False)
class Handle(Generic[Opened]):
    """A file or directory that a process has opened."""

    opened: Opened
    inode: int  # the kernel's number
    opener: int  # the thread that opened it; others may use the handle, too


class Handles(Generic[Opened]):
    """The open handles, by number. Numbers are never used again."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[int, Handle[Opened]] = {}

    def add(self, opened: Opened, *, inode: int, opener: int) -> int:
        """The number of a new handle."""
        number = next(self._numbers)
        self._open[number] = Handle(opened, inode, opener)
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
