"""An auditor's reads of the past: the whole tree as of a time, and all versions of an object."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.file_history import CHANGES_SHOWN
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import ZERO
from bftfs.query_update.messages import PastVersion
from bftfs.query_update.past_reading import PastReader
from bftfs.simulation.checkers.tree import SeenObject
from bftfs.simulation.deployment import CREDENTIALS

CONTENT_BYTES: Final = 48  # of every file
_PAGE: Final = 7  # versions; so few that there are several pages


async def tree_of(
    view: FileSystem, start: Collection[ObjectId], who: Credentials, *, with_contents: bool = True
) -> dict[ObjectId, SeenObject]:
    """Everything that is there of `start`, and that this leads to.

    Without contents it is a walk of a tree that may change meanwhile: what names lead to may have
    gone as well.
    """
    found: dict[ObjectId, SeenObject] = {}
    waiting = [*start]
    while waiting:
        identifier = waiting.pop()
        if identifier in found:
            continue
        try:
            attributes = await view.attributes(identifier, who)
        except FileSystemError:
            if with_contents and identifier not in start:
                raise
            continue
        seen = found[identifier] = SeenObject(attributes)
        if attributes.is_directory and attributes.links:
            opened = await view.open_directory(identifier, who)
            after = 0
            while entries := await view.read_directory(opened, after, with_attributes=False):
                for entry in entries:
                    seen.entries[entry.name] = entry.identifier
                    after = entry.cookie
            waiting += seen.entries.values()
        elif with_contents and not attributes.is_directory:
            file = await view.open(identifier, os.O_RDONLY, who)
            seen.content = bytes(await view.read(file, 0, CONTENT_BYTES))
            await view.release(file)
    return found


async def versions_of(past: PastReader, identifier: ObjectId) -> tuple[PastVersion, ...]:
    """All versions of an object that are kept, the newest first."""
    found: list[PastVersion] = []
    at = await past.latest(identifier, CREDENTIALS)
    while at != ZERO:
        page = await past.versions(
            identifier, newest=at, most=_PAGE, prefixes=CHANGES_SHOWN, credentials=CREDENTIALS
        )
        if not page:
            break  # what is older has been collected
        found += page
        at = page[-1].parent
    return tuple(found)
