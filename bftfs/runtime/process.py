"""Processes that run for long: what they keep in memory."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD = -1  # of mallopt(3)
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_MAX = 32 * 1024 * 1024


def keep_freed_memory(size: int) -> None:
    """Let the process keep up to `size` bytes that it has freed. Does nothing without glibc.

    Blocks and fragments come and go by the hundred kilobytes. By default the C library returns such
    memory to the kernel each time and takes it back page by page, which costs a client 80 µs of CPU
    per block of 128 KiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, size)
        mallopt(_M_TOP_PAD, size // 16)
        mallopt(_M_MMAP_THRESHOLD, min(size, _MMAP_THRESHOLD_MAX))


def collect_rarely() -> None:
    """Have the garbage collector run seldom, and ignore the objects that exist now.

    A request's objects are freed by their reference counts. Python's default, a run after each 700
    new objects, costs a create 4 %.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
