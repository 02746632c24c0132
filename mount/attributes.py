"""An object's attributes as the fields of `struct stat`."""

from __future__ import annotations

from typing import Final, Protocol

from bftfs import limits
from bftfs.filesystem.attributes import Attributes

SECTOR_BYTES: Final = 512  # the unit of st_blocks, whatever the file system


class StatFields(Protocol):
    """The fields of `pyfuse3.EntryAttributes` that are set here."""

    st_ino: int
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int


def fill(entry: StatFields, number: int, attributes: Attributes) -> None:
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
