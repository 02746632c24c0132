"""Making the kernel forget what it has cached, so that a reader asks the file system again.

Only what the benchmark's own files need is dropped: the next round, on another file system, must
not pay for this one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_DENTRIES_AND_INODES = "2"  # proc(5)


def drop_pages(paths: Iterable[Path]) -> None:
    """Drop the cached pages of these files.  Needs no privilege."""
    os.sync()  # what is dirty cannot be dropped
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def drop_dentries() -> bool:
    """Drop cached names and attributes; true if the kernel did. Only root may ask for it."""
    try:
        _DROP_CACHES.write_text(_DENTRIES_AND_INODES)
    except OSError:
        return False
    return True
