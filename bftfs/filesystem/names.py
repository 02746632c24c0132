"""Names of directory entries, and paths made of them. Any bytes but "/" and NUL make a name."""

from __future__ import annotations

import errno

from bftfs import limits
from bftfs.errors import FileSystemError


def fault_of(name: bytes) -> int:
    """0 if `name` can be that of an entry, else the errno that says why not."""
    if len(name) > limits.NAME_BYTES:
        return errno.ENAMETOOLONG
    if not name:
        return errno.ENOENT
    if b"/" in name or b"\0" in name:
        return errno.EINVAL
    return 0


def is_dots(name: bytes) -> bool:
    """Whether `name` is "." or "..", which every directory has and none stores."""
    return name in (b".", b"..")


def components(path: bytes) -> tuple[bytes, ...]:
    """The names along a path, from the root; empty for the root itself. "." is skipped.

    Raises FileSystemError for what no path can contain.
    """
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    for name in names:
        fault = fault_of(name)
        if fault:
            raise FileSystemError(fault, path.decode(errors="backslashreplace"))
    return names
