"""Keeps LMDB's memory-mapped file from filling the node's resident memory.

LMDB reads through a mapping of its whole file, and a page once read stays mapped into the process
until the kernel wants it back, although the page cache holds it anyway. So the pages are unmapped
(`madvise`) whenever too much is resident, which costs a minor fault for each page used again.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from bftfs.limits import MIB

RESIDENT_BYTES_MAX = 48 * MIB
BYTES_PER_LOOK = 4 * MIB  # values read or written between two looks at the resident memory
CALLS_PER_LOOK = 64  # … or batches, since pages of small records become resident as well

_MADV_DONTNEED = 4
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MappedFile:
    """The mappings of one file in this process."""

    def __init__(self, path: Path) -> None:
        self._path = str(path.resolve())
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._ranges: list[tuple[int, int]] | None = None
        self._bytes = 0
        self._calls = 0

    def moved(self) -> None:
        """The file has been mapped anew."""
        self._ranges = None

    def touched(self, size: int) -> None:
        """About `size` bytes of the mapping have been used."""
        self._bytes += size
        self._calls += 1
        if self._bytes < BYTES_PER_LOOK and self._calls < CALLS_PER_LOOK:
            return
        self._bytes = self._calls = 0
        if int(os.pread(self._statm, 64, 0).split()[2]) * _PAGE_BYTES > RESIDENT_BYTES_MAX:
            self.release()

    def release(self) -> None:
        """Unmap the file's pages; they are mapped again when they are used."""
        if self._ranges is None:
            self._ranges = _mappings(self._path)
        for start, size in self._ranges:
            self._madvise(start, size, _MADV_DONTNEED)

    def close(self) -> None:
        """Stop measuring."""
        os.close(self._statm)


def _mappings(path: str) -> list[tuple[int, int]]:
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip("\n").endswith(path):
                start, _, end = line.split(maxsplit=1)[0].partition("-")
                ranges.append((int(start, 16), int(end, 16) - int(start, 16)))
    return ranges
