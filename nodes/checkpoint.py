"""What survives the crash of a machine while a store is synced from time to time only.

LMDB never overwrites a page of a snapshot that somebody reads. So a store that is not synced at
each commit keeps a reader on its last synced snapshot, whose pages thus stay on the disk as they
are, whatever the kernel writes of later ones and in whatever order. Only the two pages at the head
of the file, which say where the latest snapshots begin, are overwritten; they are kept aside here,
and put back if the machine has been started since: its page cache, with later snapshots, is gone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from bftfs.limits import KIB

_HEADER = Struct("!8s32sQ36sI")  # mark, digest of the rest, sequence, boot id, length of the head
_MARK = b"bftfsck1"
_SLOT_BYTES = 72 * KIB  # LMDB's pages have at most 32 KiB


class Head(NamedTuple):
    """The head of the store's file after a sync."""

    sequence: int
    boot: bytes  # in which life of the machine
    content: bytes


def boot_id() -> bytes:
    """What names this life of the machine; another after each start of its kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36]


class Checkpoint:
    """The file that keeps the head: two slots in turn, so that one of them is always whole."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._file, 0, 2 * _SLOT_BYTES)  # a disk may be full, but not here
        newest = self.newest()
        self._sequence = 0 if newest is None else newest.sequence

    def newest(self) -> Head | None:
        """The head that was saved last."""
        heads = [head for slot in (0, 1) if (head := self._read(slot)) is not None]
        return max(heads, key=lambda head: head.sequence, default=None)

    def save(self, content: bytes) -> None:
        """Keep `content`; it is on stable storage on return. Raises OSError."""
        self._sequence += 1
        header = (self._sequence, boot_id(), len(content))
        sealed = _HEADER.pack(_MARK, bytes(32), *header)[40:] + content
        digest = hashlib.blake2b(sealed, digest_size=32).digest()
        slot = self._sequence % 2
        os.pwrite(self._file, _MARK + digest + sealed, slot * _SLOT_BYTES)
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read(self, slot: int) -> Head | None:
        stored = os.pread(self._file, _SLOT_BYTES, slot * _SLOT_BYTES)
        if len(stored) < _HEADER.size:
            return None
        mark, digest, sequence, boot, length = _HEADER.unpack_from(stored)
        sealed = stored[40 : _HEADER.size + length]
        if mark != _MARK or hashlib.blake2b(sealed, digest_size=32).digest() != digest:
            return None
        return Head(sequence, boot, stored[_HEADER.size : _HEADER.size + length])
