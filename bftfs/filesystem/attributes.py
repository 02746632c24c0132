"""The attributes of a directory or inode, and requests to change them.

`Attributes` is stored as one map entry of the object's state. Every answer carries it, so that a
client knows the object's attributes after each operation.

Invariants: `version` grows with every change of the object, and `contents` with every change of
a file's bytes (which blocks, how many); both are times of the updates that made them,
which strictly increase along an object's versions.
"""

from __future__ import annotations

import stat
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from bftfs.filesystem.layout import Layout
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import Record
from bftfs.wire.fields import UserField

PERMISSION_BITS: Final = 0o7777
NOW: Final = -1  # a time to set: stands for that of the operation

ACCESS_ACL: Final = 1  # flag: the object has an access ACL beyond its permission bits
DEFAULT_ACL: Final = 2  # flag: the directory has a default ACL

# Nanoseconds since the epoch, from 1901 to 2242; NOW is taken out of the range.
SetTimeField: TypeAlias = Annotated[int, Meta(ge=-(1 << 61), le=(1 << 63) - 1)]
ModeField: TypeAlias = Annotated[int, Meta(ge=0, le=0o177777)]


class Attributes(Record, frozen=True):
    """The attributes of a directory or inode. Times are in nanoseconds since the epoch."""

    mode: int  # file type and permission bits
    uid: int
    gid: int
    links: int  # names of an inode; 2 + subdirectories of a directory; 0 once removed
    size: int  # bytes of a regular file or symlink
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    previous: int = 0  # the version before, on which the change of `version` was made
    contents: int = 0
    flags: int = 0
    device: int = 0
    extended: int = 0  # extended attributes, their number and bytes
    extended_bytes: int = 0
    parent: ObjectId = ObjectId(b"")  # of a directory
    entries: int = 0  # of a directory: the number of names in it
    next_serial: int = 0  # of a directory: the serial of its next entry
    layout: Layout | None = None  # of a regular file

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def file_type(self) -> int:
        """As in a directory entry: DT_REG, DT_DIR …"""
        return self.mode >> 12


class Changes(Record, frozen=True):
    """A request of chmod, chown or utimens; None leaves a field as it is."""

    mode: ModeField | None = None  # permission bits; the type is ignored
    uid: UserField | None = None
    gid: UserField | None = None
    atime_ns: SetTimeField | None = None
    mtime_ns: SetTimeField | None = None

    def __bool__(self) -> bool:
        return self != NO_CHANGES


NO_CHANGES: Final = Changes()

encode_attributes = msgspec.msgpack.Encoder().encode
decode_attributes = msgspec.msgpack.Decoder(Attributes).decode


def inode_number(identifier: ObjectId) -> int:
    """A positive 63-bit number for `st_ino`; the mount resolves collisions."""
    return int.from_bytes(identifier[8:16], "big") >> 1 or 1
