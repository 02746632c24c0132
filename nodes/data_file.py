"""Allocates room on the disk before a store needs it, and measures how much is left.

**Situation.** LMDB lets its file grow in the middle of a commit and learns only then that the disk
is full. Other programs share the disk and may fill it at any moment.

**Rule.** The file's blocks are taken from the disk (`posix_fallocate`) ahead of every batch:

    used at the last checkpoint | growth until the next one, at most | the reserve

An ordinary batch is refused unless all three have blocks. A batch that may use the reserve is taken
(`bftfs.server.room` decides which may). If the disk gives no more blocks, pages that were freed
inside the file count as room.

**Why it works.** Nobody else can take blocks that the file has already. A small write lets the file
grow by at most `PAGE_BYTES_PER_WRITE`, a large one by that and its length. So growth is never
underestimated; the true growth is known after a checkpoint.

What turns out not to be needed is given back: after a checkpoint nothing lies behind the last page
in use, and the file is cut into by a hole there, its length stays. That is done if two periods
between checkpoints have needed much less, so that a node which is busy does not take and give in
turns.

**Tests.** `tests/unit/nodes/test_store.py` ("room"), on a disk without a free byte; decision 12.

Concurrency: belongs to the store's thread; `used_bytes` and `free_bytes` may be read by any.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bftfs.limits import KIB, MIB
from bftfs.server.room import Figures
from nodes.store_directory import StoreFailed

RESERVE_BYTES = 64 * MIB  # the largest reserve, which ordinary batches do not get…
RESERVE_SHARE = 8  # …and at most 1/8 of the disk, and of what the store may occupy
AHEAD_BYTES = 8 * MIB  # the most that is allocated ahead of need
SURPLUS_BYTES = 32 * MIB  # that is taken and not needed, before it is given back
PAGE_BYTES_PER_WRITE = 8 * KIB  # the most by which a small write lets the file grow

OUT_OF_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def give_back(file: int, begin: int, end: int) -> int:
    """Give blocks [begin, end) of a file back to the disk; its length stays. 0, or an errno."""
    return ctypes.get_errno() if _fallocate(file, _PUNCH, begin, end - begin) else 0


class OtherFiles(NamedTuple):
    """What the store's other files take of the disk, in bytes."""

    held_bytes: int = 0
    spare_bytes: int = 0  # of these, taken ahead of need
    freed_bytes: int = 0  # of these, given back by the next checkpoint

    @property
    def used_bytes(self) -> int:
        """What they hold that is of use."""
        return self.held_bytes - self.spare_bytes - self.freed_bytes


class DiskSpace:
    """The room of one store: in its data file, and on the disk."""

    def __init__(
        self,
        path: Path,
        *,
        used_bytes: int,
        limit_bytes: int,
        content: Callable[[], tuple[int, int]],
    ) -> None:
        """`content` counts the bytes of all tables, and the objects. Raises OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.file_bytes = os.fstat(self._file).st_size
        self.limit_bytes = limit_bytes
        self.used_bytes = used_bytes  # up to the last page in use, at the last checkpoint
        self.growth_bytes = 0  # the most that the next checkpoint may add
        self.others: Callable[[], OtherFiles] = OtherFiles
        self._count = content
        self._live_bytes, self._objects = used_bytes, 0  # when last measured
        self._taken_bytes = used_bytes  # the file has blocks on the disk up to here…
        self._wanted_bytes = 0  # …and had to have them since the last checkpoint…
        self._wanted_before_bytes = 0  # …and between the two before
        self._held_bytes = self.file_bytes  # behind this it has none, as far as it is known
        disk = os.fstatvfs(self._file)
        whole = min(disk.f_blocks * disk.f_frsize, limit_bytes)
        self.reserve_bytes = min(RESERVE_BYTES, whole // RESERVE_SHARE)

    def is_intact(self) -> bool:
        """False if somebody has removed the file or cut it short."""
        held = os.fstat(self._file)
        return held.st_nlink > 0 and held.st_size >= self.file_bytes

    # --- allocating --------------------------------------------------------------------------

    def fits(self, growth: int) -> bool:
        """True if `growth` bytes can be added besides the reserve; allocates their blocks."""
        end = self._end_with(growth)
        self._wanted_bytes = max(self._wanted_bytes, end)
        if end <= self._taken_bytes or self._take(end):
            return True
        # The file cannot grow any more: only free pages inside of it count.
        self.measure()
        inside = self.used_bytes - self._live_bytes
        return end - max(0, inside) <= self._taken_bytes

    def why_full(self, growth: int) -> str:
        """The reason why `growth` bytes do not fit."""
        if self._end_with(growth) + self.others().held_bytes > self.limit_bytes:
            return self.limit_reached
        return "the disk is full"

    def allows(self, size: int) -> bool:
        """True if the store's other files may take `size` bytes more from the disk."""
        return self._taken_bytes + self.others().held_bytes + size <= self.limit_bytes

    @property
    def ahead_bytes(self) -> int:
        """How much is taken ahead of need."""
        return min(AHEAD_BYTES, self.reserve_bytes)

    @property
    def limit_reached(self) -> str:
        """The reason to give when a store has reached its limit."""
        return f"the store has reached its {self.limit_bytes} bytes"

    def extend(self, size: int) -> None:
        """Make the file at least `size` long; what is added has no blocks."""
        if size > self.file_bytes:
            os.ftruncate(self._file, size)
            self.file_bytes = size

    def checkpointed(self, used_bytes: int) -> None:
        """A checkpoint has written all growth to the file, of which `used_bytes` are used now."""
        self.used_bytes = used_bytes
        self._taken_bytes = max(self._taken_bytes, used_bytes)
        self.growth_bytes = 0
        self._give_back()
        self._wanted_bytes, self._wanted_before_bytes = 0, self._wanted_bytes

    def _give_back(self) -> None:
        """Give back blocks that are not likely to be needed. Requires: no growth is expected."""
        wanted = max(self._wanted_bytes, self._wanted_before_bytes, self._end_with(0))
        end = wanted + self.ahead_bytes
        if self._held_bytes - end >= SURPLUS_BYTES:
            if not give_back(self._file, end, self._held_bytes):
                self._taken_bytes = min(self._taken_bytes, end)
            self._held_bytes = end  # where that is not possible, it is not tried again

    def _end_with(self, growth: int) -> int:
        """How long the file must be for this growth and the reserve."""
        return self.used_bytes + self.growth_bytes + growth + self.reserve_bytes

    def _take(self, end: int) -> bool:
        """Allocate all blocks of the file up to `end`; False if the disk has too few."""
        limit = self.limit_bytes - self.others().held_bytes
        if end > limit:
            return False
        begin = self._taken_bytes
        for stop in (min(end + self.ahead_bytes, limit), end):
            try:
                os.posix_fallocate(self._file, begin, stop - begin)
            except OSError as error:
                if error.errno not in OUT_OF_SPACE:
                    raise StoreFailed(self._path, f"it cannot grow ({error})") from error
            else:
                self._taken_bytes = stop
                self._held_bytes = max(self._held_bytes, stop)
                self.file_bytes = max(self.file_bytes, stop)
                return True
        return False

    # --- measuring ---------------------------------------------------------------------------

    def measure(self) -> Figures:
        """The figures now."""
        self._live_bytes, self._objects = self._count()
        return self.figures()

    def figures(self) -> Figures:
        """The figures for `bftfs.server.room`; what the tables hold is as last measured."""
        return Figures(
            live_bytes=self._live_bytes + self.others().used_bytes,
            free_bytes=self.free_bytes,
            reserve_bytes=self.reserve_bytes,
            drawable_bytes=max(0, self._left(0)),
            objects=self._objects,
        )

    @property
    def free_bytes(self) -> int:
        """How much the store can still hold, by growing and in its file, without the reserve."""
        disk = os.fstatvfs(self._file)
        return max(0, self._left(disk.f_bavail * disk.f_frsize) - self.reserve_bytes)

    def _left(self, available: int) -> int:
        """How much can be added, reserve included, if the disk has `available` bytes free."""
        held, _, freed = self.others()
        limit = self.limit_bytes - held + freed
        growth = min(self._taken_bytes + available + freed, limit) - self.used_bytes
        inside = max(0, self.used_bytes - self._live_bytes)
        return growth + inside - self.growth_bytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def disk_is_full(directory: Path, size: int) -> bool:
    """True if the file system at `directory` has no room for `size` more bytes."""
    probe = directory / "probe"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in OUT_OF_SPACE
    return False


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
