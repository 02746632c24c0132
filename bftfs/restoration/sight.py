"""What a user sees of a file system through a client: as it is, and as it was at any time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Final

from bftfs.conversation import Together
from bftfs.credentials import Credentials
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.file_history import Change, History
from bftfs.filesystem.operations import FileSystem
from bftfs.identifiers import ObjectId, ObjectKind, kind_of

PIECE_BYTES: Final = 4 << 20  # of a file, that are held at a time
_TOGETHER: Final = 32  # directories that are listed at the same time


@dataclass(frozen=True, slots=True)
class Node:
    """One object of a tree."""

    identifier: ObjectId
    attributes: Attributes


class Reading:
    """A file that is read from its beginning to its end, piece by piece."""

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
        """No more will be read."""
        await self._files.release(self._opened)


@dataclass(frozen=True, slots=True)
class Sight:
    """One user's sight of one file system. Times are microseconds; None is now."""

    files: FileSystem
    history: History
    who: Credentials
    now_us: int  # when he began to look

    def at(self, time_us: int | None) -> FileSystem:
        """The file system at a time."""
        return self.files if time_us is None else self.history.at(time_us)

    async def changes(self, identifier: ObjectId, *, since_us: int = 0) -> list[Change]:
        """What was done to an object, the latest first."""
        return await self.history.changes(identifier, self.who, since_us=since_us)

    async def reading(self, identifier: ObjectId, time_us: int | None) -> Reading:
        """A file, opened at its beginning."""
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

    async def link_target(self, identifier: ObjectId, time_us: int | None) -> bytes:
        """Where a symlink leads."""
        return await self.at(time_us).read_link(identifier, self.who)

    async def extended(self, identifier: ObjectId, time_us: int | None) -> dict[bytes, bytes]:
        """Extended attributes, ACLs among them."""
        files = self.at(time_us)
        names = await files.list_extended(identifier, self.who)
        return {name: await files.get_extended(identifier, name, self.who) for name in names}

    async def listing(self, identifier: ObjectId, time_us: int | None) -> list[tuple[bytes, Node]]:
        """What is in a directory."""
        files = self.at(time_us)
        opened = await files.open_directory(identifier, self.who)
        found: list[tuple[bytes, Node]] = []
        after = 0
        while page := await files.read_directory(opened, after):
            found += [
                (entry.name, Node(entry.identifier, entry.attributes))
                for entry in page
                if entry.attributes is not None
            ]
            after = page[-1].cookie
        return found

    async def tree(self, top: Node, time_us: int | None) -> dict[str, Node]:
        """All that is below a directory, by relative path; and itself, by the empty one."""
        found = {"": top}
        level = [("", top.identifier)]
        while level:
            below: list[tuple[str, ObjectId]] = []
            for position in range(0, len(level), _TOGETHER):
                batch = level[position : position + _TOGETHER]
                listed = await Together(
                    tuple(partial(self.listing, identifier, time_us) for _, identifier in batch)
                )
                for (path, _), nodes in zip(batch, listed, strict=True):
                    for name, node in nodes:
                        full = f"{path}{os.fsdecode(name)}"
                        found[full] = node
                        if kind_of(node.identifier) == ObjectKind.DIRECTORY:
                            below.append((full + "/", node.identifier))
            level = below
        return found
