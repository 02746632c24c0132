"""Names of directory entries: any bytes but "/" and NUL."""

from __future__ import annotations

import errno

from bftfs import limits


def fault_of(name: bytes) -> int:
    """0 if `name` is a possible name of an entry, else an errno."""
    if len(name) > limits.NAME_BYTES:
        return errno.ENAMETOOLONG
    if not name:
        return errno.ENOENT
    if b"/" in name or b"\0" in name:
        return errno.EINVAL
    return 0


def is_dots(name: bytes) -> bool:
    """True if `name` is "." or "..", which every directory has and none stores."""
    return name in (b".", b"..")


def shown(name: bytes) -> str:
    """A name for people: in messages and listings."""
    return name.decode(errors="backslashreplace")
