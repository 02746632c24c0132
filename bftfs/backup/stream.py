"""The stream of a backup: its records, how they are written, and how they are read.

A stream is `MAGIC`, then frames: the length of a record (4 bytes, big-endian), the record, and a
digest over the digest before it and this record. The first record is a `BackupHeader`, the last one
a `BackupEnd`, after which there is nothing. So a receiver notices at the record if a stream was cut
off, exchanged or altered by accident. Somebody can alter it on purpose: the digests have no key.

Records come in this order, which is that in which a receiver carries them out:

1. `TakenName`: an object leaves its name in the tree before, and gets a number; the deepest first.
2. `PlacedName`: such an object gets a name in the tree after; and all new objects, each with a name
   of its own. A directory comes before what is in it. `FileData` and `FileHole` follow a `NewFile`,
   until its size is reached.
3. `NewLink`: further names.
4. `GivenAttributes`: owners, modes, times, extended attributes; what is in a directory comes before
   the directory.
5. `FileVersion`: earlier versions of files; data and holes follow as with `NewFile`.

Readers take a stream for hostile. A length is checked before anything of that length is
read. A record is of a declared type, and has one encoding. A path is a tuple of names, none of
which leads anywhere else. The order, sizes and numbers are checked here; what is in the directory
of the receiver is not known here.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import DIGEST_BYTES, Digest, backup_record_digest
from bftfs.errors import MalformedMessage, UsageError
from bftfs.wire.codec import (
    ClientField,
    Decoder,
    Message,
    ObjectField,
    UserField,
    encode,
)

MAGIC: Final = b"bftfs backup\n"
VERSION: Final = 1
DATA_BYTES: Final = 1 << 20  # in one record
DEPTH: Final = 1024  # names in a path
RECORD_BYTES: Final = DATA_BYTES + (64 << 10)
SPECIAL: Final = frozenset((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))
RESERVED: Final = b".bftfs-backup"  # in the received directory: what the receiver knows

_LENGTH_BYTES: Final = 4
_NAMES: Final = frozenset((b"", b".", b".."))

NameInPath: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=limits.NAME_BYTES)]
Names: TypeAlias = tuple[bytes, ...]
PathField: TypeAlias = Annotated[tuple[NameInPath, ...], Meta(max_length=DEPTH)]
TreeDigest: TypeAlias = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Slot: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 40)]
_Size: TypeAlias = Annotated[int, Meta(ge=0, le=limits.FILE_BYTES)]
_Mode: TypeAlias = Annotated[int, Meta(ge=0, le=0o177777)]
# Up to 2261, so that it is a date, and fits into 63 bits when it is told in nanoseconds.
_Time: TypeAlias = Annotated[int, Meta(ge=0, le=9_200_000_000_000_000)]
_Nanoseconds: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Extended: TypeAlias = tuple[
    Annotated[bytes, Meta(min_length=1, max_length=limits.XATTR_NAME_BYTES)],
    Annotated[bytes, Meta(max_length=limits.XATTR_VALUE_BYTES)],
]


class BackupHeader(Message, frozen=True, tag=0):
    """The directory and time that a stream is a backup of, and what the receiver must have."""

    version: Annotated[int, Meta(ge=0, le=1 << 31)]
    cluster: Annotated[bytes, Meta(max_length=64)]
    directory: ObjectField
    path: Annotated[bytes, Meta(max_length=4096)]  # for people
    at_us: _Time
    history: bool
    from_us: _Time = 0  # of an increment: the time of the backup to which it is to be added
    base: Annotated[bytes, Meta(max_length=DIGEST_BYTES)] = b""  # …and the digest of its tree

    @property
    def is_increment(self) -> bool:
        """True if it tells what has changed since another backup."""
        return bool(self.base)


class TakenName(Message, frozen=True, tag=1):
    """The receiver takes the entry at `path` away, and keeps it as `slot`."""

    path: PathField
    slot: _Slot


class PlacedName(Message, frozen=True, tag=2):
    """The receiver puts the entry that it keeps as `slot` at `path`."""

    slot: _Slot
    path: PathField


class NewDirectory(Message, frozen=True, tag=3):
    """An empty directory."""

    path: PathField


class NewFile(Message, frozen=True, tag=4):
    """A regular file, whose contents follow."""

    path: PathField
    size: _Size


class NewSymlink(Message, frozen=True, tag=5):
    """A symlink; its target is text, which nobody follows here."""

    path: PathField
    target: Annotated[bytes, Meta(min_length=1, max_length=limits.SYMLINK_BYTES)]


class NewNode(Message, frozen=True, tag=6):
    """A pipe, socket or device."""

    path: PathField
    mode: _Mode
    device: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class NewLink(Message, frozen=True, tag=7):
    """One more name for the object at `first`, which is no directory."""

    first: PathField
    path: PathField


class GivenAttributes(Message, frozen=True, tag=8):
    """The attributes of what is at `path`; extended attributes are all that there are."""

    path: PathField
    mode: _Mode
    uid: UserField
    gid: UserField
    atime_ns: _Nanoseconds
    mtime_ns: _Nanoseconds
    extended: Annotated[tuple[_Extended, ...], Meta(max_length=limits.XATTRS)] = ()


class FileVersion(Message, frozen=True, tag=9):
    """An earlier version of the file at `path`; its contents follow."""

    path: PathField
    time_us: _Time
    client: ClientField
    mode: _Mode
    size: _Size


class FileData(Message, frozen=True, tag=10):
    """The next bytes of the file."""

    data: Annotated[bytes, Meta(min_length=1, max_length=DATA_BYTES)]


class FileHole(Message, frozen=True, tag=11):
    """So many zero bytes follow in the file."""

    length: Annotated[int, Meta(ge=1, le=limits.FILE_BYTES)]


class BackupEnd(Message, frozen=True, tag=12):
    """The stream is whole. An increment to it needs the digest of its tree."""

    tree: TreeDigest
    records: Annotated[int, Meta(ge=0)]  # before this one


BackupRecord: TypeAlias = (
    BackupHeader
    | TakenName
    | PlacedName
    | NewDirectory
    | NewFile
    | NewSymlink
    | NewNode
    | NewLink
    | GivenAttributes
    | FileVersion
    | FileData
    | FileHole
    | BackupEnd
)

_ORDER: Final[dict[type, int]] = {
    BackupHeader: 0,
    TakenName: 1,
    PlacedName: 2,
    NewDirectory: 2,
    NewFile: 2,
    NewSymlink: 2,
    NewNode: 2,
    NewLink: 3,
    GivenAttributes: 4,
    FileVersion: 5,
    BackupEnd: 6,
}
_decoder: Decoder[BackupRecord] = Decoder(BackupRecord, limit=RECORD_BYTES)


class BackupWriter:
    """Writes records to a stream, whose `write` takes all that it is given."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._digest = _FIRST
        self.records = 0
        self.written_bytes = 0
        self._put(MAGIC)

    def add(self, record: BackupRecord) -> None:
        """Write a record."""
        encoded = encode(record)
        assert len(encoded) <= RECORD_BYTES, "its fields are bounded"
        self._digest = backup_record_digest(previous=self._digest, encoded=encoded)
        self._put(len(encoded).to_bytes(_LENGTH_BYTES, "big"))
        self._put(encoded)
        self._put(self._digest)
        self.records += 1

    def end(self, tree: Digest) -> None:
        """Write the last record."""
        self.add(BackupEnd(tree, self.records))

    def _put(self, data: bytes) -> None:
        self._write(data)
        self.written_bytes += len(data)


class DamagedBackup(UsageError):
    """The stream is no backup, or not as it was written."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; send it again", exit_code=1)


class BackupReader:
    """Reads the records of a stream, which may be hostile.

    `read(n)` gives up to n bytes, and none at the end. `header` is there from the beginning; then
    `records` gives the others up to the end, each once. Both raise `DamagedBackup`. A stream
    without contents, as receivers note it, has neither data nor holes.
    """

    def __init__(self, read: Callable[[int], bytes], *, with_contents: bool = True) -> None:
        self._read = read
        self._with_contents = with_contents
        self._digest = _FIRST
        self._records = 0
        magic = self._take(len(MAGIC))
        if magic != MAGIC:
            raise DamagedBackup("this is no backup by `bftfs send`")
        header = self._next()
        if not isinstance(header, BackupHeader):
            raise DamagedBackup("the backup does not begin with its header")
        if header.version != VERSION:
            raise UsageError(
                f"this backup has format {header.version}, and this release of bftfs reads format "
                f"{VERSION}; receive it with the release that sent it",
                exit_code=1,
            )
        if header.is_increment and len(header.base) != DIGEST_BYTES:
            raise DamagedBackup("the backup's header is wrong")
        self.header = header

    def records(self) -> Iterator[BackupRecord]:
        """The records between the header and the end, and then the end."""
        stage, missing = 1, 0  # missing: bytes of the file that is being read
        taken, placed = 0, set[int]()
        while True:
            record = self._next()
            if missing:
                missing -= self._length(record)
                if missing < 0:
                    raise DamagedBackup("a file in the backup is longer than it says")
                yield record
                continue
            if _ORDER.get(type(record), 0) < stage:
                raise DamagedBackup(f"the backup has a {type(record).__name__} where none may be")
            stage = _ORDER[type(record)]
            match record:
                case TakenName():
                    if not self.header.is_increment or record.slot != taken:
                        raise DamagedBackup("the backup takes away what there is not")
                    taken += 1
                case PlacedName():
                    if record.slot >= taken or record.slot in placed:
                        raise DamagedBackup("the backup places what it has not taken")
                    placed.add(record.slot)
                case NewFile() | FileVersion() if self._with_contents:
                    missing = record.size
                case BackupEnd():
                    self._require_end(record)
                    yield record
                    return
            _require_paths(record)
            _require_fields(record)
            yield record

    @staticmethod
    def _length(record: BackupRecord) -> int:
        match record:
            case FileData(data):
                return len(data)
            case FileHole(length):
                return length
        raise DamagedBackup("a file in the backup is shorter than it says")

    def _require_end(self, end: BackupEnd) -> None:
        if end.records != self._records - 1:
            raise DamagedBackup("records are missing from the backup")
        if self._read(1):
            raise DamagedBackup("the stream goes on behind the backup's end")

    def _next(self) -> BackupRecord:
        length = int.from_bytes(self._take(_LENGTH_BYTES), "big")
        if not 0 < length <= RECORD_BYTES:
            raise DamagedBackup(f"a record of the backup has {length} bytes, which none has")
        encoded = self._take(length)
        self._digest = backup_record_digest(previous=self._digest, encoded=encoded)
        if self._take(DIGEST_BYTES) != self._digest:
            raise DamagedBackup(f"record {self._records} of the backup was altered")
        self._records += 1
        try:
            return _decoder.decode(encoded)
        except MalformedMessage as error:
            raise DamagedBackup(f"record {self._records - 1} of the backup: {error}") from None

    def _take(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._read(count)
            if not piece:
                raise DamagedBackup(f"the stream ends too early, after {self._records} records")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


_FIRST: Final = backup_record_digest(previous=Digest(bytes(DIGEST_BYTES)), encoded=MAGIC)


def _require_paths(record: BackupRecord) -> None:
    """Refuse paths that lead elsewhere, or to what is the receiver's."""
    for path in paths_of(record):
        if any(name in _NAMES or b"/" in name or b"\0" in name for name in path):
            raise DamagedBackup("the backup has a path that leads out of it")
        if path[:1] == (RESERVED,):
            raise DamagedBackup(f"the backup names {RESERVED.decode()}, which is the receiver's")
        if not path and not isinstance(record, GivenAttributes):
            raise DamagedBackup("the backup replaces its own directory")


def _require_fields(record: BackupRecord) -> None:
    """Refuse what the types of the fields allow, and no file system."""
    match record:
        case NewNode(_, mode):
            is_right = stat.S_IFMT(mode) in SPECIAL
        case NewSymlink(_, target):
            is_right = b"\0" not in target
        case GivenAttributes(extended=extended):
            is_right = not any(b"\0" in name for name, _ in extended)
        case _:
            is_right = True
    if not is_right:
        raise DamagedBackup(f"a {type(record).__name__} in the backup is none")


def paths_of(record: BackupRecord) -> tuple[Names, ...]:
    """The paths that a record names."""
    match record:
        case NewLink(first, path):
            return first, path
        case BackupHeader() | FileData() | FileHole() | BackupEnd():
            return ()
    return (record.path,)
