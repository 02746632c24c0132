"""A store's segments: append-only files beside LMDB's, in which the fragments lie.

**Situation.** Fragments are most of what a node writes. They are never changed, and removed by
collection. In LMDB's file they would be written twice, first to the journal, or in two flushes; and
the file never shrinks.

**Rule.** A batch with fragments is one *record* of a segment, written by one call and made durable
by one flush. LMDB holds where each fragment lies (`Extent`). Batches without fragments go to the
journal (`nodes.journal`); the sequence numbers of both are one sequence.

    record   digest (16 bytes) of the rest, sequence (8), lengths of the fragments and of the rows
             (4 each), the fragments, the rows; zeros up to the next block

The first fragment follows the head, each of the others begins at a block (4 KiB); so every block
belongs to one fragment. A record begins at a block. When a segment is long (`SEGMENT_BYTES`), a
checkpoint begins the next one: so records after a checkpoint are all in one segment, which LMDB
knows, and nobody can remove it unnoticed.

After a checkpoint a record is not read again; its fragments are, as long as rows point to them. The
blocks of the records' rows, and of the fragments that were removed until then, are given back to
the disk by punching holes; a segment without fragments is removed. If the file system cannot punch
holes, only that is done.

**Why it is safe.** A checkpoint flushes the segments before LMDB: so no row of LMDB's file points
to bytes that are not there. Records that follow the checkpoint are read after a crash, and the
replay stops at the first that is not whole, as in the journal. Holes are punched only for rows that
are gone from LMDB's file, so neither a row nor a record that can be replayed needs those bytes;
which they are is stored by the checkpoint, so that a crash in between leaves none. The rows' own
check keeps a damaged row from punching the blocks of another one.

**Tests.** `tests/unit/nodes/test_segments.py`; `tests/properties/test_store_equivalence.py`.

Concurrency: belongs to the store's thread; `Flush.run` may be called in another one.
"""

from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from struct import Struct
from typing import NamedTuple, TypeVar
from zlib import crc32

from blake3 import blake3

from bftfs.crypto.digest import Body
from bftfs.durable_files import sync_directory
from bftfs.limits import KIB, MIB
from bftfs.storage import Write
from nodes.data_file import OUT_OF_SPACE, OtherFiles, give_back
from nodes.journal import decoded

SEGMENT_BYTES = 64 * MIB  # a segment that is as long is followed by the next one
FRAGMENT_BYTES_LEAST = 8 * KIB  # of a fragment that goes to a segment; smaller ones go to LMDB
BLOCK_BYTES = 4 * KIB
FILES_OPEN = 64  # segments that are kept open for reading

_DIGEST_BYTES = 16
_HEAD = Struct("!16sQII")
_BUFFERS_PER_CALL = 1024  # that the kernel takes
_PADDING = bytes(BLOCK_BYTES)
_MODE = 0o600

_INLINE = b"\0"  # first byte of a row in Table.FRAGMENT: the fragment follows
_ELSEWHERE = 1  # …or it lies in a segment
_ROW = Struct("!BIQI")
_CHECK = Struct("!I")
_ROW_BYTES = _ROW.size + _CHECK.size

# Keys of Table.META, all of them within `NOTES`.
NOTES = (b"segment", b"segment\xff")
_NUMBER = Struct("!I")
_NUMBER_MOST = (1 << 32) - 1
_NAME = re.compile("[0-9]{10}")  # of a segment's file; others in the directory are not ours
_COUNTS_OF = b"segment of "  # before a segment's number: its live bytes and its length
_COUNTS = Struct("!QQ")
_REPLAY_FROM = b"segments"  # segment and offset of the first record after the checkpoint
_POSITION = Struct("!IQ")
_FREED = b"segments freed"  # blocks whose fragments were removed before the checkpoint
_RANGE = Struct("!IQQ")


Result = TypeVar("Result")


class SegmentLost(Exception):
    """A segment that rows point to is missing, or shorter than it was; says which."""


class Extent(NamedTuple):
    """Where a fragment lies."""

    segment: int
    offset: int
    length: int

    def row(self, key: bytes) -> bytes:
        """The row that points there."""
        row = _ROW.pack(_ELSEWHERE, *self)
        return row + _CHECK.pack(crc32(row, crc32(key)))

    @property
    def blocks(self) -> tuple[int, int]:
        """Begin and end of the fragment's own blocks, in bytes."""
        return (
            self.offset // BLOCK_BYTES * BLOCK_BYTES,
            _up_to_block(self.offset + self.length),
        )

    @property
    def block_bytes(self) -> int:
        """How much of the disk it takes."""
        begin, end = self.blocks
        return end - begin


def inline(fragment: Body) -> bytes:
    """The row of a fragment that LMDB holds itself."""
    return _INLINE + fragment


def extent_in(key: bytes, row: bytes) -> Extent | None:
    """Where the fragment of a row lies; None if the row holds it, or is damaged."""
    if len(row) != _ROW_BYTES or row[0] != _ELSEWHERE:
        return None
    (check,) = _CHECK.unpack_from(row, _ROW.size)
    if check != crc32(row[: _ROW.size], crc32(key)):
        return None
    return Extent(*_ROW.unpack_from(row)[1:])


def inlined_in(row: bytes) -> bytes:
    """The fragment that a row holds itself; nothing, which is damage, if it holds none."""
    return row[1:] if row[:1] == _INLINE else b""


class SegmentRecord:
    """The fragments of a batch, which become one record when it is committed."""

    __slots__ = ("_begin", "_buffers", "_fragments", "_segment", "size")

    def __init__(self, segment: int, begin: int) -> None:
        self._segment = segment
        self._begin = begin
        self._buffers: list[Body] = []
        self._fragments: dict[int, Body] = {}  # by offset
        self.size = _HEAD.size  # bytes up to the rows

    def add(self, fragment: Body) -> Extent:
        """Add a fragment; tells where it will lie."""
        if self._fragments:
            padding = -self.size % BLOCK_BYTES
            self._buffers.append(_PADDING[:padding])
            self.size += padding
        extent = Extent(self._segment, self._begin + self.size, len(fragment))
        self._buffers.append(fragment)
        self._fragments[extent.offset] = fragment
        self.size += extent.length
        return extent

    def fragment_at(self, extent: Extent) -> bytes | None:
        """A fragment of this batch; None if it is not one."""
        if extent.segment != self._segment:
            return None
        fragment = self._fragments.get(extent.offset)
        return None if fragment is None else bytes(fragment)

    def sealed(self, sequence: int, key: bytes, rows: bytes) -> list[Body]:
        """All buffers, in order."""
        head = _HEAD.pack(b"", sequence, self.size - _HEAD.size, len(rows))[_DIGEST_BYTES:]
        digest = blake3(head, key=key)
        for buffer in self._buffers:
            digest.update(buffer)
        digest.update(rows)
        end = _PADDING[: -(self.size + len(rows)) % BLOCK_BYTES]
        return [digest.digest(_DIGEST_BYTES) + head, *self._buffers, rows, end]


class _Counts(NamedTuple):
    """What is known of a segment at a checkpoint."""

    live_bytes: int  # of the blocks of fragments to which rows point
    length: int


class _Range(NamedTuple):
    """Blocks of a segment that no row needs any more."""

    segment: int
    begin: int
    end: int


class _Record(NamedTuple):
    """A whole record that was found in a segment."""

    begin: int
    rows_begin: int
    end: int
    rows: bytes


class Flush:
    """Brings what was written to some files to stable storage; closes its own copies of them."""

    def __init__(self, files: Sequence[int]) -> None:
        self._files = files

    def run(self) -> None:
        """Raises OSError. To be called once; in any thread."""
        try:
            for file in self._files:
                os.fdatasync(file)
        finally:
            for file in self._files:
                os.close(file)


class Segments:
    """All segments of an open store. Its methods raise OSError if the disk fails."""

    def __init__(self, directory: Path, *, synced: bool) -> None:
        """With `synced`, each record is on stable storage before the next is appended."""
        self._directory = directory
        self._synced = synced
        self._counts: dict[int, _Counts] = {}  # at the last checkpoint
        self._start = (1, 0)  # segment and offset of the first record after it
        self._added: dict[int, int] = {}  # live bytes, since then
        self._lengths: dict[int, int] = {}  # of the segments that were appended to since then
        self._freed: list[_Range] = []  # since then
        self._unpunched: list[_Range] = []  # before; to be punched
        self._disk_bytes: dict[int, int] = {}  # of all files
        self._punches = True  # until the file system has said that it cannot
        self._files: OrderedDict[int, int] = OrderedDict()  # descriptors, the latest used last
        self.number = 1  # of the segment that is appended to…
        self.position = 0  # …and where
        self._allocated = 0  # it has blocks on the disk up to here
        self._long_bytes = SEGMENT_BYTES  # the length from which it should be followed by another
        self._held_bytes = 0  # of the disk, by all segments
        self.freed_bytes = 0  # that the next checkpoint gives back
        self.is_full = False  # True while there is no room: fragments go to LMDB then

    # --- opening -----------------------------------------------------------------------------

    def load(self, notes: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over what the last checkpoint has noted. Raises `SegmentLost`."""
        for key, value in notes:
            if key == _REPLAY_FROM:
                self._start = _POSITION.unpack(value)
            elif key == _FREED:
                self._unpunched = [_Range(*each) for each in _RANGE.iter_unpack(value)]
            else:
                (number,) = _NUMBER.unpack_from(key, len(_COUNTS_OF))
                self._counts[number] = _Counts(*_COUNTS.unpack(value))
        for file in self._directory.iterdir():
            if _NAME.fullmatch(file.name) and int(file.name) <= _NUMBER_MOST and file.is_file():
                self._note_disk_bytes(int(file.name), file.stat())
        for number, counts in self._counts.items():
            if number not in self._disk_bytes:
                raise SegmentLost(f"its segment {number} is missing")
            held = self._path(number).stat().st_size
            if held < counts.length:
                raise SegmentLost(
                    f"its segment {number} is cut short: {held} bytes of {counts.length} are left"
                )

    def rewind(self) -> None:
        """Forget everything since the last checkpoint; `next_rows` tells it again."""
        self._added.clear()
        self._lengths.clear()
        self._freed.clear()
        self.freed_bytes = 0
        if self.number != self._start[0]:
            self._allocated = 0
        self.number, self.position = self._start

    def next_rows(self, sequence: int, key: bytes) -> list[Write] | None:
        """The rows of the record with this number, if it is the next one and whole."""
        found = self._record_at(self.position, key, lambda each: each == sequence)
        if found is None:
            return None
        self.position = found.end
        self._lengths[self.number] = self.position
        rows = decoded(found.rows)
        # Without rows, it was of a batch that was to be in LMDB's file at once, and is not.
        self._frees(found.rows_begin if rows else found.begin, found.end)
        return rows

    def breaks_off(self, after: int, key: bytes) -> bool:
        """True if records with later numbers follow the place where the replay has stopped."""
        file = self._open(self.number)
        end = 0 if file is None else os.fstat(file).st_size
        return any(
            self._record_at(at, key, lambda each: each > after) is not None
            for at in range(self.position, end, BLOCK_BYTES)
        )

    def end_replay(self) -> None:
        """What follows the last whole record is of no use, nor are files that nobody knows."""
        self.cut_off()
        self._allocated = self.position
        self._added.update(dict.fromkeys(self._disk_bytes.keys() - self._added.keys(), 0))

    def _record_at(
        self, begin: int, key: bytes, is_wanted: Callable[[int], bool]
    ) -> _Record | None:
        """The record there; None if there is none that is whole and wanted."""
        file = self._open(self.number)
        head = b"" if file is None else os.pread(file, _HEAD.size, begin)
        if file is None or len(head) < _HEAD.size:
            return None
        digest, sequence, fragments, rows = _HEAD.unpack(head)
        end = begin + _HEAD.size + fragments + rows
        if not is_wanted(sequence) or end > os.fstat(file).st_size:
            return None
        rest = os.pread(file, fragments + rows, begin + _HEAD.size)
        if blake3(head[_DIGEST_BYTES:], key=key).update(rest).digest(_DIGEST_BYTES) != digest:
            return None
        return _Record(begin, end - rows, _up_to_block(end), rest[fragments:])

    # --- appending ---------------------------------------------------------------------------

    def record(self) -> SegmentRecord:
        """A new record, which is the next one if it is appended."""
        return SegmentRecord(self.number, self.position)

    def take(self, size: int, ahead: int, may_take: Callable[[int], bool]) -> bool:
        """Take blocks for the next `size` bytes from the disk, with some ahead of need if possible.

        False if it has too few, or `may_take` allows fewer.
        """
        end = _up_to_block(self.position + size)
        if end <= self._allocated:
            return True
        file = self._open(self.number) if self.number in self._disk_bytes else self._made()
        if file is None:
            raise SegmentLost(f"somebody has removed its segment {self.number}")
        for stop in (end + ahead, end):
            if may_take(stop - self._allocated):
                try:
                    os.posix_fallocate(file, self._allocated, stop - self._allocated)
                except OSError as error:
                    if error.errno not in OUT_OF_SPACE:
                        raise
                else:
                    self._allocated = stop
                    self._note_disk_bytes(self.number, os.fstat(file))
                    return True
        return False

    def append(self, record: SegmentRecord, sequence: int, key: bytes, rows: bytes) -> None:
        """Write a record, for which room was taken, with the rows of its batch.

        It survives a crash of the process, and of the machine after a `flush`, or if `synced`.
        """
        file = self._open(self.number)
        held = None if file is None else os.fstat(file)
        if file is None or held is None or not held.st_nlink or held.st_size < self._allocated:
            raise SegmentLost(f"somebody has removed or cut short its segment {self.number}")
        buffers = record.sealed(sequence, key, rows)
        at = self.position
        for start in range(0, len(buffers), _BUFFERS_PER_CALL):
            at = _write(file, buffers[start : start + _BUFFERS_PER_CALL], at)
        if self._synced:
            os.fdatasync(file)
        rows_begin = self.position + record.size
        self.position = at
        self._lengths[self.number] = at
        self._frees(rows_begin, at)

    def flush(self) -> Flush:
        """What brings all records since the last checkpoint to stable storage."""
        return Flush([self._taken(partial(os.dup, self._file(number))) for number in self._lengths])

    # --- what lies in them -------------------------------------------------------------------

    def fragment(self, extent: Extent) -> bytes:
        """The bytes there. If the disk cannot read them, they are zeros, which is damage.

        Raises `SegmentLost`.
        """
        file = self._file(extent.segment)
        try:
            found = os.pread(file, extent.length, extent.offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return bytes(extent.length)
        if len(found) < extent.length:
            raise SegmentLost(f"somebody has cut short its segment {extent.segment}")
        return found

    def points(self, extent: Extent) -> None:
        """A row points there from now on."""
        self._added[extent.segment] = self._added.get(extent.segment, 0) + extent.block_bytes

    def points_no_more(self, extent: Extent) -> None:
        """The row that has pointed there is removed or replaced."""
        self._added[extent.segment] = self._added.get(extent.segment, 0) - extent.block_bytes
        self._freed.append(_Range(extent.segment, *extent.blocks))
        self.freed_bytes += extent.block_bytes

    def _frees(self, begin: int, end: int) -> None:
        """The next checkpoint gives back the blocks there, in the segment that is appended to.

        But for the first one, if the fragment before it ends there.
        """
        begin = _up_to_block(begin)
        if begin < end:
            self._freed.append(_Range(self.number, begin, end))
            self.freed_bytes += end - begin

    # --- checkpoints -------------------------------------------------------------------------

    @property
    def is_long(self) -> bool:
        """True if there should be a checkpoint, which begins the next segment."""
        return self.position >= self._long_bytes

    def put_off(self) -> None:
        """There is no room for a checkpoint, or for the next segment: this one gets longer."""
        self._long_bytes = self.position + SEGMENT_BYTES // 4

    def begin_next(self) -> None:
        """Begin the next segment if this one is long, or the first one, as part of a checkpoint."""
        if self.number in self._disk_bytes and self.position < SEGMENT_BYTES:
            return
        before, position = self.number, self.position
        self.cut_off()
        if before in self._disk_bytes:
            self.number, self.position = before + 1, 0
        try:
            self._made()
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
            self.number, self.position, self._allocated = before, position, position
            self.put_off()
        else:
            self._allocated = 0
            self._long_bytes = SEGMENT_BYTES
            self._added.setdefault(before, 0)
            self._added.setdefault(self.number, 0)

    def notes(self) -> list[tuple[bytes, bytes | None]]:
        """What a checkpoint has to note, as rows of Table.META."""
        notes: list[tuple[bytes, bytes | None]] = [
            (_REPLAY_FROM, _POSITION.pack(self.number, self.position)),
            (_FREED, b"".join(_RANGE.pack(*each) for each in self._merged())),
        ]
        for number, counts in self._changed():
            row = None if counts is None else _COUNTS.pack(*counts)
            notes.append((_COUNTS_OF + _NUMBER.pack(number), row))
        return notes

    def checkpointed(self) -> None:
        """LMDB's file has everything, and the notes: give back what no row needs."""
        ranges = self._merged()
        for number, counts in self._changed():
            if counts is None:
                self._counts.pop(number, None)
                self._remove(number)
            else:
                self._counts[number] = counts
        self._start = (self.number, self.position)
        self._added.clear()
        self._lengths.clear()
        self._freed.clear()
        self.freed_bytes = 0
        self._unpunched = [each for each in ranges if not self._punched(each)]
        self.is_full = False  # there may be room now

    def _changed(self) -> list[tuple[int, _Counts | None]]:
        """What is known of the segments that have changed; None of those that can go."""
        changed: list[tuple[int, _Counts | None]] = []
        for number in self._added.keys() | self._lengths.keys():
            live, length = self._counts.get(number, (0, 0))
            live += self._added.get(number, 0)
            length = self._lengths.get(number, length)
            if live > 0 or number == self.number:
                changed.append((number, _Counts(max(live, 0), length)))
            else:
                changed.append((number, None))
        return changed

    def _merged(self) -> list[_Range]:
        """All blocks that were freed, in order; neighbours together."""
        merged: list[_Range] = []
        for each in sorted(self._unpunched + self._freed):
            last = merged[-1] if merged else None
            if last is not None and last.segment == each.segment and last.end >= each.begin:
                merged[-1] = last._replace(end=max(last.end, each.end))
            else:
                merged.append(each)
        return merged

    def _punched(self, freed: _Range) -> bool:
        """Give blocks back to the disk; False if that has to be tried again."""
        number = freed.segment
        if not self._punches or number not in self._counts:
            return True
        file = self._file(number)
        code = give_back(file, freed.begin, freed.end)
        if code:
            self._punches = code not in {errno.EOPNOTSUPP, errno.ENOSYS}
            return not self._punches
        self._note_disk_bytes(number, os.fstat(file))
        return True

    def _remove(self, number: int) -> None:
        """Remove a segment in which nothing is."""
        file = self._files.pop(number, None)
        if file is not None:
            os.close(file)
        self._path(number).unlink(missing_ok=True)
        self._held_bytes -= self._disk_bytes.pop(number, 0)

    # --- files -------------------------------------------------------------------------------

    def room(self) -> OtherFiles:
        """What they take of the disk."""
        spare = max(0, self._allocated - self.position)
        freed = self.freed_bytes if self._punches else 0
        return OtherFiles(self._held_bytes, spare, freed)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def cut_off(self) -> None:
        """Give back what was taken for the segment ahead of need."""
        file = self._open(self.number)
        if file is not None and os.fstat(file).st_size > self.position:
            os.ftruncate(file, self.position)
            self._note_disk_bytes(self.number, os.fstat(file))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:010}"

    def _made(self) -> int:
        """The file of the segment that is appended to, which may be new."""
        path = self._path(self.number)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        file = self._taken(lambda: os.open(path, flags, _MODE))
        self._taken(lambda: sync_directory(self._directory))
        self._note_disk_bytes(self.number, os.fstat(file))
        return self._keep(self.number, file)

    def _file(self, number: int) -> int:
        """The file of a segment that must be there. Raises `SegmentLost`."""
        file = self._open(number)
        if file is None:
            raise SegmentLost(f"somebody has removed its segment {number}")
        return file

    def _open(self, number: int) -> int | None:
        """The file of a segment; None if there is none."""
        file = self._files.get(number)
        if file is not None:
            self._files.move_to_end(number)
            return file
        try:
            file = self._taken(lambda: os.open(self._path(number), os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        return self._keep(number, file)

    def _taken(self, opens: Callable[[], Result]) -> Result:
        """The result of what needs a descriptor. If connections have taken all that the process
        may have, one of ours is given up for it.
        """
        while True:
            try:
                return opens()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or len(self._files) < 2:
                    raise
                os.close(self._files.popitem(last=False)[1])

    def _keep(self, number: int, file: int) -> int:
        before = self._files.pop(number, None)
        if before is not None:
            os.close(before)
        self._files[number] = file
        if len(self._files) > FILES_OPEN:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _note_disk_bytes(self, number: int, stat: os.stat_result) -> None:
        held = 512 * stat.st_blocks
        self._held_bytes += held - self._disk_bytes.get(number, 0)
        self._disk_bytes[number] = held


def _write(file: int, buffers: Sequence[Body], at: int) -> int:
    """Write all buffers; where they end. Raises OSError."""
    end = at + sum(map(len, buffers))
    at += os.pwritev(file, buffers, at)
    if at < end:
        # A short write may mean a full disk: writing the rest raises the error if it does.
        whole = b"".join(buffers)
        while at < end:
            at += os.pwrite(file, whole[at - end :], at)
    return at


def _up_to_block(position: int) -> int:
    return -(-position // BLOCK_BYTES) * BLOCK_BYTES
