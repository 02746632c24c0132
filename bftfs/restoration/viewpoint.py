"""The file system as a user sees it through a client: now, and at any time."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from typing import Final

from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.file_history import Change, ChangePages, History, several_at_once
from bftfs.filesystem.metadata import DirectoryEntry
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.identifiers import ObjectId

PIECE_BYTES: Final = 4 << 20  # of a file, that are held at a time


class Reading:
    """A file being read from beginning to end, piece by piece."""

    def __init__(self, files: FileSystem, opened: OpenFile) -> None:
        self._files = files
        self._opened = opened
        self._offset = 0

    async def next(self) -> bytes:
        """The next piece; empty at the end."""
        piece = bytes(await self._files.read(self._opened, self._offset, PIECE_BYTES))
        self._offset += len(piece)
        return piece

    async def close(self) -> None:
        """Release the file."""
        await self._files.release(self._opened)


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """One user's view of one file system. Times are in microseconds; None is now."""

    files: FileSystem
    history: History
    who: Credentials
    now_us: int  # the time that counts as now

    def at(self, time_us: int | None) -> FileSystem:
        """The file system at a time."""
        return self.files if time_us is None else self.history.at(time_us)

    async def changes(self, identifier: ObjectId, *, since_us: int = 0) -> list[Change]:
        """The changes of an object, the latest first."""
        return await self.history.changes(identifier, self.who, since_us=since_us)

    async def pages(self, identifier: ObjectId, *, since_us: int = 0) -> ChangePages:
        """The same, to be read page by page."""
        return await self.history.pages(identifier, self.who, since_us=since_us)

    async def reading(self, identifier: ObjectId, time_us: int | None) -> Reading:
        """A file, opened for reading from its beginning."""
        files = self.at(time_us)
        return Reading(files, await files.open(identifier, os.O_RDONLY, self.who))

    async def contents(self, identifier: ObjectId, time_us: int | None) -> bytes:
        """The contents of a file, as a whole."""
        reading = await self.reading(identifier, time_us)
        pieces = []
        try:
            while piece := await reading.next():
                pieces.append(piece)
        finally:
            await reading.close()
        return b"".join(pieces)

    async def contents_if_whole(self, identifier: ObjectId, time_us: int | None) -> bytes | None:
        """The same; None if its writer has named blocks that do not exist, or cannot be read."""
        try:
            return await self.contents(identifier, time_us)
        except FileSystemError as failure:
            if failure.code != errno.EIO:
                raise
            return None

    async def link_target(self, identifier: ObjectId, time_us: int | None) -> bytes:
        """The target of a symlink."""
        return await self.at(time_us).read_link(identifier, self.who)

    async def extended(self, node: FoundObject, time_us: int | None) -> dict[bytes, bytes]:
        """Extended attributes, ACLs among them."""
        if not node.attributes.extended and not node.attributes.flags:
            return {}
        files, identifier = self.at(time_us), node.identifier
        names = await files.list_extended(identifier, self.who)
        return {name: await files.get_extended(identifier, name, self.who) for name in names}

    async def _listed(
        self, directory: ObjectId, time_us: int | None, *, with_attributes: bool
    ) -> list[DirectoryEntry]:
        files = self.at(time_us)
        opened = await files.open_directory(directory, self.who)
        found: list[DirectoryEntry] = []
        after = 0
        while page := await files.read_directory(opened, after, with_attributes=with_attributes):
            found += page
            after = page[-1].cookie
        return found

    async def listing(
        self, identifier: ObjectId, time_us: int | None
    ) -> list[tuple[bytes, FoundObject]]:
        """The entries of a directory."""
        return [
            (entry.name, FoundObject(entry.identifier, entry.attributes))
            for entry in await self._listed(identifier, time_us, with_attributes=True)
            if entry.attributes is not None
        ]

    async def entries(self, directory: ObjectId, time_us: int | None) -> dict[bytes, ObjectId]:
        """The entries of a directory, without attributes."""
        listed = await self._listed(directory, time_us, with_attributes=False)
        return {entry.name: entry.identifier for entry in listed}

    async def tree(self, top: FoundObject, time_us: int | None) -> dict[str, FoundObject]:
        """Everything below a directory by relative path; the directory itself by the empty path."""
        found = {"": top}
        level = [("", top.identifier)]
        while level:
            listed = await several_at_once(
                [partial(self.listing, identifier, time_us) for _, identifier in level]
            )
            below: list[tuple[str, ObjectId]] = []
            for (path, _), nodes in zip(level, listed, strict=True):
                for name, node in nodes:
                    full = f"{path}{os.fsdecode(name)}"
                    found[full] = node
                    if node.attributes.is_directory:
                        below.append((full + "/", node.identifier))
            level = below
        return found
