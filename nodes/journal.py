"""A store's write-ahead log: the batches since its last checkpoint, in commit order.

**Situation.** To write a batch to LMDB's file takes a dozen scattered page writes and two flushes.
To append it to a log takes one write and one flush. LMDB gets many batches together at a
checkpoint; after a crash, those that it lacks are applied again.

**Rule.** `replay` gives the records that follow the checkpoint, and stops at the first whose digest
or sequence is wrong.

    record   digest (16 bytes) of the rest, sequence (8), length (4), the batch

Records begin at multiples of 512 bytes. The sequence of each is that of its predecessor plus one,
and batches with fragments, which are in segments (`nodes.segments`), have numbers of the same
sequence: so records left by an earlier pass over the file are not taken for new ones. Zeros are
written ahead of the records, since to flush blocks that a file has already need not wait for the
file system's own journal. Under `sync` durability records are written past the page cache
(`DirectFile`) where the file system and the disk can do that: this saves the kernel a third of its
work and the node a third of its wait.

**Why it is safe.** `replay` gives all batches appended up to the last sync, and perhaps more, but
never fewer and never with a gap. The digests have a secret key, drawn anew whenever the store is
opened: so no client can write a value that passes for a record.

**Tests.** `tests/unit/nodes/test_journal.py`: killed processes, power failures, forged records.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct

import msgspec
from blake3 import blake3

from bftfs.limits import MIB
from bftfs.storage import Table, Write

_HEADER = Struct("!16sQI")
_DIGEST_BYTES = 16
_ALIGNMENT = 512
_AHEAD_BYTES = MIB  # zeros written each time the file has to grow
RECORDS_ELSEWHERE = 1 << 16  # more than go to segments between two checkpoints
_STAGE_BYTES = MIB  # aligned memory, from which records are written past the page cache

encoded = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[int, bytes, bytes | None], ...]).decode


class Journal:
    """An open journal. Its methods raise OSError if the disk fails."""

    def __init__(self, path: Path, *, key: bytes, synced: bool) -> None:
        """`key` is the secret key of the digests, 32 bytes.

        With `synced`, each batch is on stable storage before the next is appended.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._direct = DirectFile.open(path) if synced else None
        self._unsynced = False  # True if something went through the page cache since the last sync
        self.size = 0  # bytes in use
        self.file_bytes = os.fstat(self._file).st_size
        self.sequence = 0  # number of the last record
        self.key = key

    def replay(
        self, after: int, elsewhere: Callable[[int], list[Write] | None] = lambda _sequence: None
    ) -> Iterator[list[Write]]:
        """The batches that follow the one with sequence `after`. Must run before `append`.

        `elsewhere` gives those that went to segments. Raises OSError (EBADMSG) at a record that is
        whole and holds no batch.
        """
        self.size = 0
        self.sequence = after
        end = os.fstat(self._file).st_size
        while True:
            batch = self._next(end)
            if batch is not None:
                writes = decoded(batch)
                self._advance(len(batch))
            else:
                found = elsewhere(self.sequence + 1)
                if found is None:
                    return
                writes = found
                self.sequence += 1
            yield writes

    def _next(self, end: int) -> bytes | None:
        """The next record's batch; None if there is none that is whole."""
        header = os.pread(self._file, _HEADER.size, self.size)
        if len(header) < _HEADER.size:
            return None
        digest, sequence, length = _HEADER.unpack(header)
        if sequence != self.sequence + 1 or self.size + _HEADER.size + length > end:
            return None
        batch = os.pread(self._file, length, self.size + _HEADER.size)
        return batch if self._digest(header[_DIGEST_BYTES:], batch) == digest else None

    def breaks_off(self) -> bool:
        """True if records follow the place where `replay` has stopped: then one was lost."""
        rest = os.pread(self._file, max(0, self.file_bytes - self.size), self.size)
        most = self.sequence + len(rest) // _ALIGNMENT + RECORDS_ELSEWHERE
        for start in range(0, len(rest) - _HEADER.size, _ALIGNMENT):
            digest, sequence, length = _HEADER.unpack_from(rest, start)
            batch = start + _HEADER.size
            if (
                self.sequence < sequence <= most
                and batch + length <= len(rest)
                and self._digest(rest[start + _DIGEST_BYTES : batch], rest[batch : batch + length])
                == digest
            ):
                return True
        return False

    def append(self, rows: Sequence[Write]) -> None:
        """Add a batch. It survives a crash of the process, and after `sync` one of the machine."""
        held = os.fstat(self._file)
        if not held.st_nlink or held.st_size < self.file_bytes:
            raise OSError(errno.ESTALE, "somebody has removed it, or cut it short")
        batch = encoded(rows)
        rest = _HEADER.pack(b"", self.sequence + 1, len(batch))[_DIGEST_BYTES:]
        record = (self._digest(rest, batch), rest, batch)
        end = self.size + _aligned(_HEADER.size + len(batch))
        if end > self.file_bytes:
            written = os.pwrite(
                self._file, bytes(end - self.file_bytes + _AHEAD_BYTES), self.file_bytes
            )
            if self._direct is not None:
                os.fdatasync(self._file)
            self.file_bytes += written
        if self._direct is None or end > self.file_bytes or not self._append_directly(record):
            self._append(record)
        self._advance(len(batch))

    def _append(self, record: Sequence[bytes]) -> None:
        self._unsynced = True
        length = sum(map(len, record))
        written = os.pwritev(self._file, record, self.size)
        if written < length:
            # A short write may mean a full disk: writing the rest raises the error if it does.
            whole = b"".join(record)
            while written < length:
                written += os.pwrite(self._file, whole[written:], self.size + written)

    def _append_directly(self, record: Sequence[bytes]) -> bool:
        assert self._direct is not None
        try:
            return self._direct.write(record, self.size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self._direct.close()
        self._direct = None
        return False

    def sync(self) -> None:
        """Flush everything appended to stable storage; may be called from another thread."""
        if self._unsynced:
            self._unsynced = False
            os.fdatasync(self._file)

    def skip(self) -> None:
        """The batch with the next number is in a segment."""
        self.sequence += 1

    def clear(self) -> None:
        """Begin anew: everything up to `sequence` is safe elsewhere."""
        self.size = 0

    def close(self) -> None:
        """Close the file."""
        if self._direct is not None:
            self._direct.close()
        os.close(self._file)

    def _advance(self, length: int) -> None:
        self.sequence += 1
        self.size += _aligned(_HEADER.size + length)

    def _digest(self, rest: bytes, batch: bytes) -> bytes:
        return blake3(rest + batch, key=self.key).digest(_DIGEST_BYTES)


def decoded(batch: bytes) -> list[Write]:
    """The writes in a record. Raises OSError (EBADMSG) if it holds none."""
    try:
        return [Write(Table(table), key, value) for table, key, value in _decode(batch)]
    except ValueError as error:  # a superclass of msgspec's errors
        raise OSError(errno.EBADMSG, "a record that holds no batch") from error


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


class DirectFile:
    """Writes to a file past the page cache, straight to stable storage."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._stage = mmap.mmap(-1, _STAGE_BYTES)

    @classmethod
    def open(cls, path: Path) -> DirectFile | None:
        """None if the file system cannot do that."""
        try:
            return cls(os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC))
        except OSError:
            return None

    def write(self, record: Sequence[bytes], at: int) -> bool:
        """Write `record`, and zeros up to the next sector. False: it is too long, or was cut short.

        Raises OSError: EINVAL if the disk's sectors are larger than ours.
        """
        used = sum(map(len, record))
        length = _aligned(used)
        if length > _STAGE_BYTES:
            return False
        self._stage.seek(0)
        for part in (*record, bytes(length - used)):
            self._stage.write(part)
        with memoryview(self._stage) as stage, stage[:length] as whole:
            return os.pwrite(self._file, whole, at) == length

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        self._stage.close()
