"""What a client has done below a directory since a time, and what others did to the same things.

Every version carries the client whose key made it, which the servers that accepted it have checked.
The search visits every directory below, and every object that has changed since, or took part in an
operation that changed one of these, whether it is still there or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from bftfs.cli.past import Located, Session
from bftfs.conversation import Together
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.directory import Entry
from bftfs.filesystem.history import Change
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, kind_of

_TOGETHER = 32
_ID_DIGITS = 8


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

    def by_client(self, change: Change) -> bool:
        """Whether the client made it."""
        return change.client == self.client

    def touched(self) -> list[ObjectId]:
        """The objects that the client changed."""
        return [
            identifier
            for identifier, changes in self.changes.items()
            if any(map(self.by_client, changes))
        ]

    def is_made_by_client(self, identifier: ObjectId) -> bool:
        """Whether the client created the object, since then."""
        changes = self.changes.get(identifier, [])
        return any(change.parent == _NOTHING and self.by_client(change) for change in changes[:1])

    def of_name(self, name: Name) -> list[tuple[Change, Entry | None]]:
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


_NOTHING = bytes(57)  # the initial version


def client_called(session: Session, text: str) -> ClientId:
    """The client of that name, known or revoked; or that whose id begins so."""
    for entry in session.description.clients:
        if entry.name == text:
            return entry.client
    key = session.directory.client_key(text)
    if "/" not in text and key.exists():  # it was revoked, and its key is still here
        return client_id_of(public_key=read_identity(key).public_key)
    if len(text) >= _ID_DIGITS and all(digit in "0123456789abcdef" for digit in text):
        whole = text.ljust(32, "0")
        for entry in session.description.clients:
            if entry.client.hex().startswith(text):
                return entry.client
        if len(text) == len(whole):
            return ClientId(bytes.fromhex(text))
    known = ", ".join(entry.name for entry in session.description.clients)
    raise UsageError(
        f"{text}: no client is called so; there are {known}. A client that was revoked is named by "
        "its whole id (32 digits), which `bftfs log --json` shows"
    )


def follow(session: Session, root: Located, client: ClientId, since_us: int) -> Trail:
    """All changes since then, of anything below `root` and by anybody."""
    trail = Trail(client, since_us)
    trail.paths[root.identifier] = str(root.path)
    waiting = [root.identifier]
    seen = set(waiting)
    while waiting:
        batch, waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
        visits = session.perform(_visit_together(session, batch, since_us))
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
    _name_what_is_gone(session, trail)
    return trail


_Visit = tuple[list[Change], list[tuple[bytes, ObjectId, bool]]]


async def _visit_together(
    session: Session, batch: list[ObjectId], since_us: int
) -> tuple[_Visit, ...]:
    visits: tuple[_Visit, ...] = await Together(
        tuple(partial(_visit, session, each, since_us) for each in batch)
    )
    return visits


async def _visit(session: Session, identifier: ObjectId, since_us: int) -> _Visit:
    """What was done to an object since then, and what is in it now: name, child, whether to look.

    A file that has not changed since then need not be looked at.
    """
    try:
        changes = await session.history.changes(identifier, session.who, since_us=since_us)
        listed: list[tuple[bytes, ObjectId, bool]] = []
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            listed = [
                (
                    name,
                    node.identifier,
                    kind_of(node.identifier) == ObjectKind.DIRECTORY
                    or node.attributes.version >= since_us,
                )
                for name, node in await session.listing(identifier, None)
            ]
    except FileSystemError as refusal:
        raise UsageError(
            f"not everything may be looked at ({refusal}): ask as root", exit_code=1
        ) from None
    return changes, listed


def _name_what_is_gone(session: Session, trail: Trail) -> None:
    """Paths of what was removed: the names that it had before."""
    for identifier, changes in trail.changes.items():
        for change in changes:
            for name, entry in change.entries:
                if entry is not None:
                    continue
                gone = [each for each in change.objects if each not in trail.paths]
                for each in gone:
                    trail.paths[each] = trail.path(Name(identifier, name))
