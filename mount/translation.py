"""Answers in the kernel's terms: attributes as `struct stat`, room as `struct statvfs`, errno."""

from __future__ import annotations

import errno
from typing import Final

from pyfuse3 import EntryAttributes, StatvfsData

from bftfs import limits
from bftfs.errors import (
    AdmissionRefused,
    ContentionExhausted,
    FileSystemError,
    NoLongerKept,
    OperationFailed,
    PastUnknown,
    QuorumUnavailable,
    UnreadableAnswer,
    VersionUnrecoverable,
)
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.operations import Statistics

SECTOR_BYTES: Final = 512  # the unit of st_blocks, whatever the file system


def fill(entry: EntryAttributes, number: int, attributes: Attributes) -> None:
    """Let `entry` describe the object that the kernel knows as `number`.

    C's stdio and Python's files take `st_blksize` as the size of their buffers: with the size of a
    block, programs that write little by little write whole blocks.
    """
    size = attributes.size
    layout = attributes.layout
    entry.st_ino = number
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.device
    entry.st_size = size
    entry.st_blksize = layout.block_bytes if layout is not None else limits.BLOCK_BYTES_DEFAULT
    entry.st_blocks = -(-size // SECTOR_BYTES)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns


def statvfs(statistics: Statistics) -> StatvfsData:
    """The answer to statfs."""
    answer = StatvfsData()
    unit = statistics.block_bytes
    answer.f_bsize = answer.f_frsize = unit
    answer.f_blocks = statistics.capacity_bytes // unit
    answer.f_bfree = answer.f_bavail = statistics.free_bytes // unit
    answer.f_files = statistics.capacity_inodes
    answer.f_ffree = answer.f_favail = statistics.free_inodes
    answer.f_namemax = statistics.name_bytes
    return answer


# The first class that fits decides. None: the exception carries the errno.
TABLE: tuple[tuple[type[Exception], int | None], ...] = (
    (FileSystemError, None),
    (AdmissionRefused, None),
    (QuorumUnavailable, errno.ETIMEDOUT),  # only a `soft` mount gives up
    (ContentionExhausted, errno.ETIMEDOUT),
    (VersionUnrecoverable, errno.EIO),
    (NoLongerKept, errno.ENODATA),
    (PastUnknown, errno.EIO),
    (UnreadableAnswer, errno.EIO),
    (OperationFailed, errno.EIO),
)


def errno_of(error: Exception) -> int | None:
    """The errno for `error`; None if `error` is a bug of this program."""
    for kind, number in TABLE:
        if isinstance(error, kind):
            if number is not None:
                return number
            code: int = error.code  # type: ignore[attr-defined]
            return code
    return None
