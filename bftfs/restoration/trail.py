"""What a client has done below a directory since a time, and what others did to the same things.

Every version carries the client whose key made it, which the servers that accepted it have checked.
The search visits every directory below, and every object that has changed since, or took part in an
operation that changed one of these, whether it is still there or not. Of every file it asks whether
the client has written to its blocks since: that shows in no version of the inode (see `strays`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from bftfs.conversation import Together
from bftfs.filesystem.directory import StoredEntry
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.registry import CREATE, MAKE_DIRECTORY
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, inode_of, kind_of
from bftfs.restoration.sight import Sight
from bftfs.restoration.strays import Stray, strays_among

_TOGETHER: Final = 32  # objects that are looked at at the same time


class Name(NamedTuple):
    """A name in a directory."""

    directory: ObjectId
    name: bytes


@dataclass
class Trail:
    """What was found, with the earliest change first."""

    client: ClientId
    since_us: int
    changes: dict[ObjectId, list[Change]] = field(default_factory=dict)
    entries: dict[Name, ObjectId] = field(default_factory=dict)  # as they are now
    places: dict[ObjectId, list[Name]] = field(default_factory=dict)  # …the other way round
    paths: dict[ObjectId, str] = field(default_factory=dict)  # where things are, or were last
    strays: dict[ObjectId, list[Stray]] = field(default_factory=dict)  # by block

    def by_client(self, change: Change) -> bool:
        """Whether the client made it."""
        return change.client == self.client

    def touched(self) -> list[ObjectId]:
        """The objects that the client changed."""
        return [
            identifier
            for identifier, changes in self.changes.items()
            if any(map(self.by_client, changes)) or self.has_own_strays(identifier)
        ]

    def has_own_strays(self, identifier: ObjectId) -> bool:
        """Whether the client wrote to the file's blocks, and did not cover that."""
        return any(stray.is_own for stray in self.strays.get(identifier, ()))

    def strays_in(self, identifier: ObjectId, change: Change) -> list[Stray]:
        """What a change of the file has brought to light that the other side had written."""
        return [each for each in self.strays.get(identifier, ()) if each.shown_by is change]

    def is_tainted(self, identifier: ObjectId, change: Change) -> bool:
        """Whether the client's work is in a change: it made it, or wrote what that covers."""
        return self.by_client(change) or bool(self.strays_in(identifier, change))

    def is_made_by_client(self, identifier: ObjectId) -> bool:
        """Whether the client created the object, since then."""
        # Not by the version's parent: a repair may have come before what created the object.
        return any(
            self.by_client(change)
            and change.operation.method in (CREATE, MAKE_DIRECTORY)
            and change.operation.objects[1] == identifier
            for change in self.changes.get(identifier, ())[:1]
        )

    def of_name(self, name: Name) -> list[tuple[Change, StoredEntry | None]]:
        """What happened to a name."""
        return [
            (change, entry)
            for change in self.changes.get(name.directory, ())
            for changed, entry in change.entries
            if changed == name.name
        ]

    def path(self, name: Name) -> str:
        """A name, as a path."""
        shown = name.name.decode(errors="backslashreplace")
        return f"{self.paths.get(name.directory, '?')}/{shown}"


def begins(change: Change) -> bool:
    """Whether an object's history begins with this change: before it, there is nothing to see."""
    return change.attributes is not None and not change.attributes.previous


async def follow(
    sight: Sight, root: ObjectId, *, path: str, client: ClientId, since_us: int
) -> Trail:
    """All changes since then, of anything below `root`, which stands at `path`, and by anybody.

    Raises FileSystemError if not everything may be looked at.
    """
    trail = Trail(client, since_us)
    trail.paths[root] = path
    waiting = [root]
    seen = set(waiting)
    while waiting:
        batch, waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
        visits: tuple[_Visit, ...] = await Together(
            tuple(partial(_visit, sight, each, since_us) for each in batch)
        )
        for identifier, (changes, listed) in zip(batch, visits, strict=True):
            if changes:
                trail.changes[identifier] = changes[::-1]
            here = trail.paths.get(identifier, "?")
            for name, child, is_due in listed:
                place = Name(identifier, name)
                trail.entries[place] = child
                trail.places.setdefault(child, []).append(place)
                trail.paths[child] = f"{here}/{name.decode(errors='backslashreplace')}"
                if is_due and child not in seen:
                    seen.add(child)
                    waiting.append(child)
            for change in changes:
                for name, entry in change.entries:
                    if entry is not None:
                        shown = name.decode(errors="backslashreplace")
                        trail.paths.setdefault(entry.child, f"{here}/{shown}")
                for other in change.objects:
                    if other not in seen and kind_of(other) != ObjectKind.VOLUME:
                        seen.add(other)
                        waiting.append(other)
    _name_what_is_gone(trail)
    await _find_strays(trail, sight)
    return trail


async def _find_strays(trail: Trail, sight: Sight) -> None:
    """What was written to blocks, by whom, where it is not told by the inode's versions."""
    client, since_us = trail.client, trail.since_us
    files = {each for each in trail.places if kind_of(each) == ObjectKind.INODE}
    files.update(each for each in trail.changes if kind_of(each) == ObjectKind.INODE)
    own = await sight.history.written(sorted(files), author=client, since_us=since_us)
    concerned = {inode_of(written.block) for written in own} | (files & set(trail.touched()))
    everybodys = await sight.history.written(sorted(concerned), author=None, since_us=since_us)
    trail.strays = await strays_among(
        sight, everybodys, trail.changes, client=client, since_us=since_us
    )
    for identifier in trail.strays:
        trail.changes.setdefault(identifier, [])


_Visit = tuple[list[Change], list[tuple[bytes, ObjectId, bool]]]


async def _visit(sight: Sight, identifier: ObjectId, since_us: int) -> _Visit:
    """What was done to an object since then, and what is in it now: name, child, whether to look.

    A file that has not changed since then need not be looked at.
    """
    changes = await sight.changes(identifier, since_us=since_us)
    listed: list[tuple[bytes, ObjectId, bool]] = []
    if kind_of(identifier) == ObjectKind.DIRECTORY:
        listed = [
            (
                name,
                node.identifier,
                kind_of(node.identifier) == ObjectKind.DIRECTORY
                or node.attributes.version >= since_us,
            )
            for name, node in await sight.listing(identifier, None)
        ]
    return changes, listed


def _name_what_is_gone(trail: Trail) -> None:
    """Paths of what was removed: the names that it had before."""
    for identifier, changes in trail.changes.items():
        for change in changes:
            for name, entry in change.entries:
                if entry is not None:
                    continue
                gone = [each for each in change.objects if each not in trail.paths]
                for each in gone:
                    trail.paths[each] = trail.path(Name(identifier, name))


def audited(
    trail: Trail,
) -> tuple[list[tuple[ObjectId, Change]], list[tuple[ObjectId, Change]]]:
    """The client's changes, each once; and what others did later to the same names and files."""
    own: dict[bytes, tuple[ObjectId, Change]] = {}
    built: dict[bytes, tuple[ObjectId, Change]] = {}
    for identifier in trail.touched():
        names: set[bytes] = set()
        begun = False
        strays_us = [stray.time_us for stray in trail.strays.get(identifier, ()) if stray.is_own]
        for change in trail.changes[identifier]:
            begun |= any(time_us < change.time_us for time_us in strays_us)
            changed = {name for name, _ in change.entries}
            if trail.by_client(change):
                begun = True
                names |= changed
                # An operation on several objects is told of the one that says most: the file.
                if change.timestamp not in own or kind_of(identifier) != ObjectKind.DIRECTORY:
                    own[change.timestamp] = (identifier, change)
            elif begun and (kind_of(identifier) != ObjectKind.DIRECTORY or changed & names):
                built[change.timestamp] = (identifier, change)
    return (
        [own[timestamp] for timestamp in sorted(own)],
        [built[timestamp] for timestamp in sorted(built)],
    )
