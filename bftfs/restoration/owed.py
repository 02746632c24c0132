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

from bftfs.errors import FileSystemError
from bftfs.filesystem import acl, object_types
from bftfs.filesystem.attributes import NO_CHANGES, Attributes, Changes
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.registry import (
    ACCESSED,
    CHANGE_ATTRIBUTES,
    REMOVE_EXTENDED,
    SET_EXTENDED,
)
from bftfs.identifiers import ObjectId
from bftfs.restoration.sight import Sight
from bftfs.restoration.trail import Trail, begins

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


async def owed(sight: Sight, trail: Trail, identifier: ObjectId) -> Owed:
    """What has to be set so that the object's attributes are as others left them."""
    changes = [each for each in trail.changes[identifier] if each.attributes is not None]
    first = next((at for at, each in enumerate(changes) if _is_own(trail, each)), None)
    if first is None:
        return Owed()
    past = sight.history.at(changes[first].time_us - 1)
    try:
        was: Attributes = await past.attributes(identifier, sight.who)
    except FileSystemError:
        return Owed()  # it was not there before
    changed = await _extended(sight, trail, identifier, past, changes[first:])
    extended = {
        name: value
        for name, value in changed.items()
        if value != await _value(sight, sight.files, identifier, name)
    }
    wanted, now = _followed(trail, _values(was), changes[first:])
    different = {name: wanted[name] for name in wanted if wanted[name] != now[name]}
    if acl.ACCESS in extended:
        different["mode"] = wanted["mode"]  # which setting an ACL changes
    return Owed(Changes(**different), extended)


async def left(sight: Sight, trail: Trail, identifier: ObjectId) -> Owed:
    """All attributes that others have left an object that is gone, for a new one in its place."""
    changes = [each for each in trail.changes.get(identifier, ()) if each.attributes is not None]
    # What made it, be it the client, is no change: it was nothing before.
    later = (at for at, each in enumerate(changes) if _is_own(trail, each) and not begins(each))
    first = next(later, len(changes))
    time_us = sight.now_us if first == len(changes) else changes[first].time_us - 1
    past = sight.history.at(time_us)
    was = await everything(sight, past, identifier)
    extended = await _extended(sight, trail, identifier, past, changes[first:])
    attributes = await past.attributes(identifier, sight.who)
    wanted, _ = _followed(trail, _values(attributes), changes[first:])
    kept = was.extended | extended
    return Owed(Changes(**wanted), {n: value for n, value in kept.items() if value is not None})


def _followed(
    trail: Trail, was: dict[str, int], changes: list[Change]
) -> tuple[dict[str, int], dict[str, int]]:
    """What others have made of attributes, and what they are; `was` is before the changes."""
    wanted = before = was
    for change in changes:
        assert change.attributes is not None, "only such changes are asked about"
        after = _values(change.attributes)
        if not _is_own(trail, change):
            asked = _asked(change)
            wanted = wanted | {
                name: after[name] for name in after if after[name] != before[name] or name in asked
            }
        before = after
    return wanted, before


def _asked(change: Change) -> set[str]:
    """What a change sets, whether it was so already or not."""
    if change.operation.method != CHANGE_ATTRIBUTES:
        return set()
    arguments = _arguments(change)
    return {name for name in _FIELDS if getattr(arguments, name) is not None}


def _is_own(trail: Trail, change: Change) -> bool:
    return trail.by_client(change) and change.operation.method != ACCESSED


def _values(attributes: Attributes) -> dict[str, int]:
    return {name: getattr(attributes, name) for name in _FIELDS} | {
        "mode": stat.S_IMODE(attributes.mode)
    }


async def _extended(
    sight: Sight,
    trail: Trail,
    identifier: ObjectId,
    past: FileSystem,
    changes: list[Change],
) -> dict[bytes, bytes | None]:
    """Extended attributes and ACLs that were changed, as others left them."""
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
                if name not in wanted:
                    wanted[name] = await _value(sight, past, identifier, name)
            else:
                at = sight.history.at(change.time_us)
                wanted[name] = await _value(sight, at, identifier, name)
    return wanted


def _arguments(change: Change) -> Any:
    method = _TYPES.method(change.operation.method)
    assert method is not None, "servers have executed it"
    return _TYPES.decode_arguments(method, change.operation.arguments)


async def _value(
    sight: Sight, files: FileSystem, identifier: ObjectId, name: bytes
) -> bytes | None:
    try:
        value: bytes = await files.get_extended(identifier, name, sight.who)
    except FileSystemError:
        return None
    return value


async def settle(sight: Sight, identifier: ObjectId, debt: Owed) -> None:
    """Set what is owed: ACLs before the mode, and times last."""
    files, who = sight.files, sight.who
    for name, value in debt.extended.items():
        if value is None:
            await files.remove_extended(identifier, name, who)
        else:
            await files.set_extended(identifier, name, value, who)
    times = Changes(atime_ns=debt.changes.atime_ns, mtime_ns=debt.changes.mtime_ns)
    others = msgspec.structs.replace(debt.changes, atime_ns=None, mtime_ns=None)
    for changes in (others, times):
        if changes:
            await files.change_attributes(identifier, changes, who)


async def everything(sight: Sight, past: FileSystem, identifier: ObjectId) -> Owed:
    """All attributes that an object had, for a new one in its place."""
    was: Attributes = await past.attributes(identifier, sight.who)
    names: tuple[bytes, ...] = await past.list_extended(identifier, sight.who)
    extended = {name: await _value(sight, past, identifier, name) for name in names}
    return Owed(Changes(**_values(was)), {n: v for n, v in extended.items() if v is not None})
