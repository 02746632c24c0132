"""Sending a backup: a directory as it was at one time is read from the nodes, and written out.

An increment reads the directory as of both times. The past does not change, but within five minutes
a client whose clock is behind may still add to it: so an increment carries the digest of the tree
on which it rests, and a receiver that has another one refuses it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

from bftfs import limits
from bftfs.backup.increments import TOP, TreeAt, TreeIncrement, increment, tree_digest
from bftfs.backup.stream import (
    DATA_BYTES,
    DEPTH,
    RESERVED,
    VERSION,
    BackupHeader,
    BackupWriter,
    FileData,
    FileHole,
    FileVersion,
    GivenAttributes,
    Names,
    NewDirectory,
    NewFile,
    NewNode,
    NewSymlink,
    PlacedName,
)
from bftfs.errors import FileSystemError, NoLongerKept, UsageError, VersionUnrecoverable
from bftfs.filesystem.file_history import Change, several_at_once
from bftfs.filesystem.operations import FoundObject
from bftfs.filesystem.registry import TRUNCATE, WRITE
from bftfs.identifiers import ObjectId
from bftfs.restoration.viewpoint import Viewpoint

_SMALL_BYTES: Final = 256 << 10  # files up to this are read together
_TOGETHER: Final = 32
_GRAIN_BYTES: Final = 64 << 10  # zeros are looked for in pieces of a file of this length
_ZEROS: Final = bytes(_GRAIN_BYTES)


@dataclass(frozen=True, slots=True)
class BackupSource:
    """A directory as of a time, which is sent; and the time that the receiver has, if any."""

    cluster: bytes
    directory: ObjectId
    path: str  # for people, and in messages
    at_us: int
    from_us: int | None = None
    history: bool = False


class Sending:
    """One backup that is sent. `told` hears after each object how many are done, of how many."""

    def __init__(
        self,
        view: Viewpoint,
        source: BackupSource,
        write: Callable[[bytes], object],
        *,
        told: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._view = view
        self._source = source
        self._write = write
        self._told = told
        self.objects = 0  # that have been sent
        self.lost_versions = 0  # that were to be sent, and are no longer kept
        self.written_bytes = 0

    async def send(self) -> None:
        """Write the whole stream.

        Raises `UsageError`, which names what cannot be read, and what `write` raises.
        """
        source = self._source
        new = await self._tree(source.at_us)
        if source.from_us is None:
            old: TreeAt = {TOP: new[TOP]}
            header = self._header()
        else:
            old = await self._tree(source.from_us)
            header = self._header(from_us=source.from_us, base=tree_digest(old))
        writer = BackupWriter(self._write)
        writer.add(header)
        steps = increment(old, new)
        total = len(steps.made) + len(steps.changed)
        for record in steps.taken:
            writer.add(record)
        await self._make(writer, steps, new, total)
        for link in steps.links:
            writer.add(link)
        for path in steps.changed:
            writer.add(await self._attributes(path, new[path]))
            self._done(total)
        if source.history:
            await self._send_versions(writer, new)
        writer.end(tree_digest(new))
        self.written_bytes = writer.written_bytes

    def _header(self, *, from_us: int = 0, base: bytes = b"") -> BackupHeader:
        source = self._source
        path = os.fsencode(source.path)[:4096]
        return BackupHeader(
            VERSION,
            source.cluster,
            source.directory,
            path,
            source.at_us,
            source.history,
            from_us,
            base,
        )

    def _done(self, total: int) -> None:
        self.objects += 1
        self._told(self.objects, total)

    # --- trees ---------------------------------------------------------------------------------

    async def _tree(self, time_us: int) -> TreeAt:
        """Everything in the directory as of a time. Unlike a listing, it leaves nothing out."""
        found: dict[Names, FoundObject] = {}
        with _explained(self._source.path, _WHY_NOT_TOP):
            found[TOP] = await self._found(self._source.directory, time_us)
        level: list[Names] = [TOP]
        while level:
            listings = await several_at_once(
                [partial(self._entries, path, found[path], time_us) for path in level]
            )
            children = [
                ((*path, name), identifier)
                for path, entries in zip(level, listings, strict=True)
                for name, identifier in sorted(entries.items())
                if path or name != RESERVED
            ]
            nodes = await several_at_once(
                [partial(self._child, *each, time_us) for each in children]
            )
            level = []
            for (path, _), node in zip(children, nodes, strict=True):
                found[path] = node
                if node.attributes.is_directory:
                    level.append(path)
            if level and len(level[0]) >= DEPTH:
                raise UsageError(
                    f"{self._shown(level[0])}: directories in more than {DEPTH} others cannot be "
                    "sent; send them by themselves",
                    exit_code=1,
                )
        return found

    async def _entries(self, path: Names, node: FoundObject, time_us: int) -> dict[bytes, ObjectId]:
        with _explained(self._shown(path)):
            return await self._view.entries(node.identifier, time_us)

    async def _child(self, path: Names, identifier: ObjectId, time_us: int) -> FoundObject:
        with _explained(self._shown(path)):
            return await self._found(identifier, time_us)

    async def _found(self, identifier: ObjectId, time_us: int) -> FoundObject:
        attributes = await self._view.at(time_us).attributes(identifier, self._view.who)
        return FoundObject(identifier, attributes)

    def _shown(self, path: Names) -> str:
        return "/".join((self._source.path, *map(os.fsdecode, path)))

    # --- objects -------------------------------------------------------------------------------

    async def _make(
        self, writer: BackupWriter, steps: TreeIncrement, new: TreeAt, total: int
    ) -> None:
        """Send places and new objects; of small files the contents are read together."""
        made = steps.made
        for position in range(0, len(made), _TOGETHER):
            batch = made[position : position + _TOGETHER]
            small = [path for path in batch if isinstance(path, tuple) and _is_small(new[path])]
            contents = await several_at_once(
                [partial(self._contents, path, new[path]) for path in small]
            )
            at_hand = dict(zip(small, contents, strict=True))
            for each in batch:
                if isinstance(each, PlacedName):
                    writer.add(each)
                elif each in at_hand:
                    writer.add(NewFile(each, new[each].attributes.size))
                    for record in _pieces(at_hand[each]):
                        writer.add(record)
                else:
                    await self._make_one(writer, each, new[each])
                self._done(total)

    async def _contents(self, path: Names, node: FoundObject) -> bytes:
        with _explained(self._shown(path)):
            return await self._view.contents(node.identifier, self._source.at_us)

    async def _make_one(self, writer: BackupWriter, path: Names, node: FoundObject) -> None:
        attributes = node.attributes
        if attributes.is_directory:
            writer.add(NewDirectory(path))
        elif attributes.is_regular:
            writer.add(NewFile(path, attributes.size))
            await self._send_contents(writer, path, node.identifier, self._source.at_us)
        elif stat.S_ISLNK(attributes.mode):
            with _explained(self._shown(path)):
                target = await self._view.link_target(node.identifier, self._source.at_us)
            writer.add(NewSymlink(path, target))
        else:
            writer.add(NewNode(path, attributes.mode, attributes.device))

    async def _send_contents(
        self, writer: BackupWriter, path: Names, identifier: ObjectId, time_us: int
    ) -> None:
        with _explained(self._shown(path)):
            reading = await self._view.reading(identifier, time_us)
            try:
                while piece := await reading.next():
                    for record in _pieces(piece):
                        writer.add(record)
            finally:
                await reading.close()

    async def _attributes(self, path: Names, node: FoundObject) -> GivenAttributes:
        attributes = node.attributes
        extended: dict[bytes, bytes] = {}
        if not stat.S_ISLNK(attributes.mode):
            with _explained(self._shown(path)):
                extended = await self._view.extended(node, self._source.at_us)
        return GivenAttributes(
            path,
            attributes.mode,
            attributes.uid,
            attributes.gid,
            attributes.atime_ns,
            attributes.mtime_ns,
            tuple(sorted(extended.items())),
        )

    # --- history -------------------------------------------------------------------------------

    async def _send_versions(self, writer: BackupWriter, new: TreeAt) -> None:
        """Send the contents that files had, and that were replaced since the backup before."""
        seen: set[ObjectId] = set()
        for path in sorted(new):
            node = new[path]
            if not node.attributes.is_regular or node.identifier in seen:
                continue
            seen.add(node.identifier)
            with _explained(self._shown(path)):
                changes = await self._view.changes(node.identifier)
            for change in self._replaced(changes):
                await self._send_version(writer, path, node.identifier, change)

    def _replaced(self, changes: list[Change]) -> Iterator[Change]:
        """The versions of contents that were replaced since the backup before, the oldest first.

        A program that writes a file anew makes it empty first: that is no version.
        """
        source = self._source
        versions = [
            each
            for each in reversed(changes)
            if each.operation.method in (WRITE, TRUNCATE) and each.time_us <= source.at_us
        ]
        for each, later in pairwise(versions):
            assert each.attributes is not None, "what changes contents changes attributes"
            if each.attributes.size and later.time_us > (source.from_us or 0):
                yield each

    async def _send_version(
        self, writer: BackupWriter, path: Names, identifier: ObjectId, change: Change
    ) -> None:
        assert change.attributes is not None
        attributes, time_us = change.attributes, change.time_us
        with _explained(self._shown(path)):
            try:  # once through it, since nothing can be taken back of what is sent
                await self._read_through(identifier, time_us)
            except NoLongerKept:
                self.lost_versions += 1
                return
        writer.add(FileVersion(path, time_us, change.client, attributes.mode, attributes.size))
        await self._send_contents(writer, path, identifier, time_us)

    async def _read_through(self, identifier: ObjectId, time_us: int) -> None:
        reading = await self._view.reading(identifier, time_us)
        try:
            while await reading.next():
                pass
        finally:
            await reading.close()


def _is_small(node: FoundObject) -> bool:
    return node.attributes.is_regular and node.attributes.size <= _SMALL_BYTES


def _pieces(contents: bytes) -> Iterator[FileData | FileHole]:
    """Contents as data and holes; a hole is as many zero bytes as there are in whole grains."""
    start = 0
    while start < len(contents):
        is_zero = _is_zero(contents, start)
        stop = start
        while stop < len(contents) and _is_zero(contents, stop) == is_zero:
            if not is_zero and stop - start >= DATA_BYTES:
                break
            stop += _GRAIN_BYTES
        stop = min(stop, len(contents))
        yield FileHole(stop - start) if is_zero else FileData(contents[start:stop])
        start = stop


def _is_zero(contents: bytes, start: int) -> bool:
    grain = contents[start : start + _GRAIN_BYTES]
    return grain == _ZEROS[: len(grain)]


@contextmanager
def _explained(shown: str, reasons: Mapping[int, str] | None = None) -> Iterator[None]:
    """Say of a refusal what could not be read, and what to do."""
    try:
        yield
    except NoLongerKept:
        raise UsageError(
            f"{shown}: what it was at that time is no longer kept; send a backup of a later time",
            exit_code=1,
        ) from None
    except FileSystemError as error:
        why = (reasons or _WHY_NOT).get(error.code, os.strerror(error.code))
        raise UsageError(f"{shown}: {why}", exit_code=1) from None
    except VersionUnrecoverable:
        raise UsageError(f"{shown}: {_WHY_NOT[errno.EIO]}", exit_code=1) from None


_WHY_NOT: Final = {
    errno.EACCES: "you may not read it; run this as root, or send a part of it",
    errno.EPERM: "you may not read it; run this as root, or send a part of it",
    errno.ESTALE: "nothing is left of what this name stands for; `bftfs mend` removes the name",
    errno.EIO: "it cannot be read; `bftfs inspect` shows why, and `bftfs restore` or `undo` bring "
    "earlier contents back",
}
_NOT_THERE: Final = "it was not there at that time; `bftfs log` shows when it was"
_WHY_NOT_TOP: Final = {**_WHY_NOT, errno.ENOENT: _NOT_THERE, errno.ESTALE: _NOT_THERE}
assert _SMALL_BYTES * _TOGETHER <= 16 * limits.MIB
