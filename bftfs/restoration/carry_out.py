"""Carrying out the actions of an undo.

Each action is one operation on the objects that it names, in the name of the user who undoes. If
others have changed these objects meanwhile, it is refused, and undo can be run again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import assert_never

from bftfs.conversation import Now
from bftfs.errors import FileSystemError
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.restoration.actions import Action, Move, Place, Remove
from bftfs.restoration.attribute_changes import AttributeChanges, others_attributes, set_attributes
from bftfs.restoration.changes import ChangeLog
from bftfs.restoration.contents import others_or_last_contents
from bftfs.restoration.tree import Name
from bftfs.restoration.viewpoint import PIECE_BYTES, Viewpoint


class CarryingOut:
    """One undo, carried out; it remembers which objects it has made anew."""

    def __init__(self, view: Viewpoint, log: ChangeLog) -> None:
        self._view = view
        self._log = log
        self._made: dict[ObjectId, ObjectId] = {}  # by the objects that were gone

    async def perform(self, actions: Sequence[Action]) -> None:
        """Carry out actions, in their order."""
        for action in actions:
            match action:
                case Move(source, target, exchange):
                    flags = RENAME_EXCHANGE if exchange else RENAME_NOREPLACE
                    places = (*self._translated(source), *self._translated(target))
                    await self._view.files.rename(*places, self._view.who, flags=flags)
                case Place(name, identifier, inside):
                    await self._place(self._translated(name), identifier, inside)
                case Remove(name, identifier):
                    await self._remove(self._translated(name), identifier)
                case _:
                    assert_never(action)

    async def rewrite(self, identifier: ObjectId, contents: bytes) -> None:
        """Replace the contents of a file."""
        files, view = self._view.files, self._view
        await self._fill(await files.open(identifier, os.O_WRONLY | os.O_TRUNC, view.who), contents)

    async def write_new(self, name: Name, contents: bytes, attributes: AttributeChanges) -> None:
        """Make a file."""
        await self._make_file(self._translated(name), contents, attributes)

    def _translated(self, name: Name) -> Name:
        """The same name in the directory that was made anew, if its directory was."""
        return name._replace(directory=self._made.get(name.directory, name.directory))

    async def _place(self, name: Name, identifier: ObjectId, inside: Sequence[Action]) -> None:
        files, who, view = self._view.files, self._view.who, self._view
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            found = await files.make_directory(name.directory, name.name, 0o700, who)
            self._made[identifier] = found.identifier
            await self.perform(inside)  # which changes the directory's times
            attributes = await others_attributes(view, self._log, identifier)
            await set_attributes(view, found.identifier, attributes)
            return
        there = self._made.get(identifier, identifier)
        if there != identifier or self._log.is_there(identifier):
            await files.link(there, name.directory, name.name, who)
            return
        time_us = self._log.last_untainted_us(identifier)
        was = await view.at(time_us).attributes(identifier, who)
        if was.is_regular:
            contents = await others_or_last_contents(view, self._log, identifier)
            attributes = await others_attributes(view, self._log, identifier)
            self._made[identifier] = await self._make_file(name, contents, attributes)
        elif stat.S_ISLNK(was.mode):
            target = await view.link_target(identifier, time_us)
            found = await files.make_symlink(name.directory, name.name, target, who)
            self._made[identifier] = found.identifier
        else:
            found = await files.make_node(
                name.directory, name.name, was.mode, who, device=was.device
            )
            self._made[identifier] = found.identifier

    async def _remove(self, name: Name, expected: ObjectId) -> None:
        files, who = self._view.files, self._view.who
        found = await files.lookup(name.directory, name.name, who)
        if found.identifier != expected:
            raise FileSystemError(errno.ESTALE, "the name stands for something else by now")
        if kind_of(expected) != ObjectKind.DIRECTORY:
            await files.unlink(name.directory, name.name, who)
            return
        for child, identifier in (await self._view.entries(expected, None)).items():
            if not self._log.is_made_by_client(identifier):
                raise FileSystemError(errno.ENOTEMPTY, "there is something in it by now")
            await self._remove(Name(expected, child), identifier)
        await files.remove_directory(name.directory, name.name, who)

    async def _make_file(
        self, name: Name, contents: bytes, attributes: AttributeChanges
    ) -> ObjectId:
        files, flags, mode = self._view.files, os.O_WRONLY | os.O_EXCL, stat.S_IFREG | 0o600
        found, opened = await files.create(
            name.directory, name.name, mode, self._view.who, flags=flags
        )
        await self._fill(opened, contents)
        await set_attributes(self._view, found.identifier, attributes)
        return found.identifier

    async def _fill(self, opened: OpenFile, contents: bytes) -> None:
        files = self._view.files
        try:
            for offset in range(0, len(contents), PIECE_BYTES):
                piece = contents[offset : offset + PIECE_BYTES]
                if files.write(opened, offset, piece, now_ns=(await Now()) * 1000):
                    await files.write_behind(opened)
        finally:
            await files.release(opened)
