"""Files that survive a crash of the machine whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, contents: bytes) -> None:
    """Put `contents` at `path`; at every moment the old or the new file is there, whole."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:  # an interrupt, or a full disk
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush the directory at `path`: the names of new and replaced files survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
