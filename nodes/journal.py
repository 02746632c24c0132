"""The batches since the store's last checkpoint, in the order in which they were committed.

Appending a batch is one write at the end of one file and one flush: a fraction of what it costs to
bring a dozen pages of a B-tree to the disk in two steps. LMDB gets them all together at the next
checkpoint; after a crash they are applied again.

    record   digest (16 bytes) of the rest, sequence (8), length (4), the batch

Records begin at multiples of 512 bytes. Each has the sequence of its predecessor plus one, by which
what was left by an earlier pass over the file is told from what belongs to this one. The file is
longer than they are: zeros are written ahead of them, since a flush of blocks that the file has
already need not wait for the file system's own journal.

**Invariants.** What `replay` gives is what was appended up to the last sync, and perhaps more, but
never less and never with a gap.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, TypeAlias

import msgspec
from blake3 import blake3

from bftfs.limits import MIB
from bftfs.storage import Table, Write

_HEADER = Struct("!16sQI")
_DIGEST_BYTES = 16
_ALIGNMENT = 512
_AHEAD_BYTES = MIB  # of zeros, each time that the file has to grow

# A write, as it is encoded: the table's number, key, value.
Row: TypeAlias = tuple[int, bytes, bytes | memoryview | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[int, bytes, bytes | None], ...]).decode


class Journal:
    """An open journal. Raises OSError where the disk does."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = 0  # bytes in use
        self._room = os.fstat(self._file).st_size  # bytes that the file has
        self.sequence = 0  # of the last record

    def replay(self, after: int) -> Iterator[list[Write]]:
        """The batches that followed the one with sequence `after`; then it is ready to append.

        Raises OSError (EBADMSG) at a record that is whole, and yet none that a node has written.
        """
        self.size = 0
        self.sequence = after
        end = os.fstat(self._file).st_size
        while True:
            header = os.pread(self._file, _HEADER.size, self.size)
            if len(header) < _HEADER.size:
                return
            digest, sequence, length = _HEADER.unpack(header)
            if sequence != self.sequence + 1 or self.size + _HEADER.size + length > end:
                return
            batch = os.pread(self._file, length, self.size + _HEADER.size)
            if _digest_of(header[_DIGEST_BYTES:], batch) != digest:
                return
            try:
                writes = [Write(Table(table), key, value) for table, key, value in _decode(batch)]
            except ValueError as error:  # a superclass of msgspec's errors
                raise OSError(errno.EBADMSG, "a record that holds no batch") from error
            self._advance(len(batch))
            yield writes

    def append(self, rows: Sequence[Row]) -> None:
        """Add a batch. It survives a crash of the process, and after `sync` one of the machine."""
        batch = _encode(rows)
        rest = _HEADER.pack(b"", self.sequence + 1, len(batch))[_DIGEST_BYTES:]
        record: list[Any] = [_digest_of(rest, batch), rest, batch]
        end = self.size + _HEADER.size + len(batch)
        if end > self._room:
            self._room += os.pwrite(self._file, bytes(end - self._room + _AHEAD_BYTES), self._room)
        written = os.pwritev(self._file, record, self.size)
        if written < _HEADER.size + len(batch):
            # A short write is how a full disk begins; writing the rest tells for certain.
            whole = b"".join(record)
            while written < len(whole):
                written += os.pwrite(self._file, whole[written:], self.size + written)
        self._advance(len(batch))

    def sync(self) -> None:
        """Bring all that was appended to stable storage; may be called from another thread."""
        os.fdatasync(self._file)

    def clear(self) -> None:
        """Begin anew: everything up to `sequence` is safe elsewhere."""
        self.size = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _advance(self, length: int) -> None:
        self.sequence += 1
        self.size += -(-(_HEADER.size + length) // _ALIGNMENT) * _ALIGNMENT


def _digest_of(rest: bytes, batch: bytes) -> bytes:
    return blake3(rest + batch).digest(_DIGEST_BYTES)
