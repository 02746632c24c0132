"""What has to be set on an object so that its attributes are as others left them.

That is mode, owner, times, extended attributes and ACLs: for each, what it was before the client's
first change of the object, and what others have made of it since. What a client reads is no change:
access times that its reading left stay.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bftfs.cli.past import Session
from bftfs.cli.trail import Trail
from bftfs.errors import FileSystemError
from bftfs.filesystem import acl, object_types
from bftfs.filesystem.attributes import NO_CHANGES, Attributes, Changes
from bftfs.filesystem.history import Change
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.registry import (
    ACCESSED,
    CHANGE_ATTRIBUTES,
    REMOVE_EXTENDED,
    SET_EXTENDED,
)
from bftfs.identifiers import ObjectId

_FIELDS = {
    "mode": "mode",
    "uid": "owner",
    "gid": "owner",
    "atime_ns": "times",
    "mtime_ns": "times",
}
_ACL_NAMES = (acl.ACCESS, acl.DEFAULT)
_TYPES = object_types()


@dataclass(frozen=True, slots=True)
class Owed:
    """What is to be set, and to be removed (None)."""

    changes: Changes = NO_CHANGES
    extended: dict[bytes, bytes | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changes) or bool(self.extended)

    def __str__(self) -> str:
        words = [word for name, word in _FIELDS.items() if getattr(self.changes, name) is not None]
        words += [name.decode(errors="backslashreplace") for name in sorted(self.extended)]
        return ", ".join(dict.fromkeys(words))


def owed(session: Session, trail: Trail, identifier: ObjectId) -> Owed:
    """What has to be set so that the object's attributes are as others left them."""
    changes = [each for each in trail.changes[identifier] if each.attributes is not None]
    first = next((at for at, each in enumerate(changes) if _is_own(trail, each)), None)
    if first is None:
        return Owed()
    past = session.history.at(changes[first].time_us - 1)
    try:
        was: Attributes = session.perform(past.attributes(identifier, session.who))
    except FileSystemError:
        return Owed()  # it was not there before
    extended = _extended(session, trail, identifier, past, changes[first:])
    wanted = before = _values(was)
    for change in changes[first:]:
        assert change.attributes is not None, "filtered above"
        after = _values(change.attributes)
        if not _is_own(trail, change):
            wanted = wanted | {name: after[name] for name in after if after[name] != before[name]}
        before = after
    different = {name: wanted[name] for name in wanted if wanted[name] != before[name]}
    if acl.ACCESS in extended:
        different["mode"] = wanted["mode"]  # which setting an ACL changes
    return Owed(Changes(**different), extended)


def _is_own(trail: Trail, change: Change) -> bool:
    return trail.by_client(change) and change.operation.method != ACCESSED


def _values(attributes: Attributes) -> dict[str, int]:
    return {name: getattr(attributes, name) for name in _FIELDS} | {
        "mode": stat.S_IMODE(attributes.mode)
    }


def _extended(
    session: Session,
    trail: Trail,
    identifier: ObjectId,
    past: FileSystem,
    changes: list[Change],
) -> dict[bytes, bytes | None]:
    """Extended attributes and ACLs that are not as others left them."""
    wanted: dict[bytes, bytes | None] = {}
    for change in changes:
        arguments = _arguments(change)
        names: tuple[bytes, ...] = ()
        match change.operation.method:
            case method if method in (SET_EXTENDED, REMOVE_EXTENDED):
                names = (arguments.name,)
            case method if method == CHANGE_ATTRIBUTES and arguments.mode is not None:
                names = (acl.ACCESS,)  # which a new mode changes, if there is one
        for name in names:
            if _is_own(trail, change):
                wanted.setdefault(name, _value(session, past, identifier, name))
            elif name in wanted:
                at = session.history.at(change.time_us)
                wanted[name] = _value(session, at, identifier, name)
    return {
        name: value
        for name, value in wanted.items()
        if value != _value(session, session.files, identifier, name)
    }


def _arguments(change: Change) -> Any:
    method = _TYPES.method(change.operation.method)
    assert method is not None, "servers have executed it"
    return _TYPES.decode_arguments(method, change.operation.arguments)


def _value(session: Session, files: FileSystem, identifier: ObjectId, name: bytes) -> bytes | None:
    try:
        value: bytes = session.perform(files.get_extended(identifier, name, session.who))
    except FileSystemError:
        return None
    return value


def settle(session: Session, identifier: ObjectId, debt: Owed) -> None:
    """Set what is owed: ACLs before the mode, and times last."""
    files, who = session.files, session.who
    for name, value in debt.extended.items():
        if value is None:
            session.perform(files.remove_extended(identifier, name, who))
        else:
            session.perform(files.set_extended(identifier, name, value, who))
    times = Changes(atime_ns=debt.changes.atime_ns, mtime_ns=debt.changes.mtime_ns)
    others = msgspec.structs.replace(debt.changes, atime_ns=None, mtime_ns=None)
    for changes in (others, times):
        if changes:
            session.perform(files.change_attributes(identifier, changes, who))


def everything(session: Session, past: FileSystem, identifier: ObjectId) -> Owed:
    """All attributes that an object had, for a new one in its place."""
    was: Attributes = session.perform(past.attributes(identifier, session.who))
    names: tuple[bytes, ...] = session.perform(past.list_extended(identifier, session.who))
    extended = {name: _value(session, past, identifier, name) for name in names}
    return Owed(Changes(**_values(was)), {n: v for n, v in extended.items() if v is not None})
