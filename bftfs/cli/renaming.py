"""Gives a file or a tree its name, if nothing has that name."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1


def rename_to_free(path: Path, free: Path) -> None:
    """Rename `path`. FileExistsError if there is anything at `free`, whenever it came."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # a C library without it: what comes in between is replaced, if it is a file
        if os.path.lexists(free):
            raise FileExistsError(free)
        path.rename(free)
        return
    names = os.fsencode(path), os.fsencode(free)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(free))
