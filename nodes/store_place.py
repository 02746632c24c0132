"""The place of a store: what tells it from a copy of it. [bftfs/server/runs.py]

A copy has the same bytes in other files. So a store notes which files it lies in: by their numbers
in the file system, and by when the system last changed one of them, `place`, that the node never
touches. Nobody can choose these. They stay as they are when the directory is moved within a file
system; they change if it is copied as a whole, even onto itself, by `cp`, `tar` or `rsync`, and if
somebody changes owner or mode. (That is harmless, and so is to copy the directory of a node that
was stopped in an orderly way: until it is started again, any copy is as good.)

A snapshot that turns back a whole file system, or a disk, turns this back as well, and a
program that overwrites the other two files in place leaves it as it is. Only the server's runs tell
that.
"""

from __future__ import annotations

import os
from pathlib import Path

from bftfs.durable_files import sync_directory
from bftfs.errors import UsageError
from nodes.store_directory import DATA_FILE, JOURNAL_FILE

PLACE_FILE = "place"

_SAYS = b"By this file the node knows whether this directory is a copy. Do not change it.\n"


def place_of(store: Path) -> bytes:
    """Where the store at `store` lies, which is open."""
    mark = store / PLACE_FILE
    try:
        if not mark.exists():
            _make(mark)
        marked = mark.stat()
        files = (store / name for name in (DATA_FILE, JOURNAL_FILE))
        numbers = [marked.st_ino, marked.st_ctime_ns, *(file.stat().st_ino for file in files)]
    except OSError as error:
        raise UsageError(f"{mark}: it cannot be read or made ({error.strerror})") from None
    return " ".join(map(str, numbers)).encode()


def _make(mark: Path) -> None:
    """Make the file, so that it survives a crash of the machine as it is."""
    with mark.open("xb") as file:
        file.write(_SAYS)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(mark.parent)
