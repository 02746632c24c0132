"""Paths in addresses and forms: text that stands for any bytes; and what is at a path."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from bftfs.errors import UsageError
from bftfs.filesystem.operations import FoundObject
from bftfs.limits import NAME_BYTES
from bftfs.restoration.viewpoint import Viewpoint

Names = tuple[bytes, ...]  # from the root of the file system

_DEEPEST: Final = 256


def path_text(names: Names) -> str:
    """A path as text: `%` and two hex digits for what is no text, for controls, and for `%`."""
    return "".join(
        each if each.isprintable() and each != "%" else quote(os.fsencode(each))
        for each in os.fsdecode(b"/".join(names))
    )


def names_in(text: str) -> Names:
    """The names in such a text; a `UsageError` if no file can have them."""
    names = tuple(each for each in unquote_to_bytes(text).split(b"/") if each)
    if len(names) > _DEEPEST or not all(map(_is_possible, names)):
        raise UsageError(f"{text[:200]}: no path is as long as that, or has such names")
    return names


def _is_possible(name: bytes) -> bool:
    return len(name) <= NAME_BYTES and b"\0" not in name and name not in (b".", b"..")


async def find(view: Viewpoint, names: Names, time_us: int | None) -> FoundObject:
    """The object at a path at a time (None: now). Raises FileSystemError if there is none."""
    files = view.at(time_us)
    identifier = files.root
    for name in names:
        identifier = (await files.lookup(identifier, name, view.who)).identifier
    return FoundObject(identifier, await files.attributes(identifier, view.who))
