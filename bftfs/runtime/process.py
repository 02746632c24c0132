"""Processes that run for long: what they keep in memory, and how they log.

The log of nodes and mounts is written a line at a time, and never raises: the disk of the log may
be full, often just when that is to be logged. A line that cannot be written is lost; the program
goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
from typing import TextIO, cast

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


class _LogFile(io.TextIOBase):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)


def log_file(descriptor: int) -> TextIO:
    """A file for loggers, whose lines go to `descriptor` at once, as far as there is room."""
    return cast(TextIO, _LogFile(descriptor))
