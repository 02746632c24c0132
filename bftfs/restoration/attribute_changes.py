"""Mode, owner, times, extended attributes and ACLs as others left them.

Each of them is treated separately: its value before the client's first change of the object,
replaced by each value that others set later. Access times count as nobody's change: those that the
client's reading has left stay.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from bftfs.errors import FileSystemError
from bftfs.filesystem import acl, object_types
from bftfs.filesystem.attributes import NO_CHANGES, Attributes, Changes
from bftfs.filesystem.directory import shown
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.registry import ACCESSED, CHANGE_ATTRIBUTES, REMOVE_EXTENDED, SET_EXTENDED
from bftfs.identifiers import ObjectId
from bftfs.restoration.changes import ChangeLog, creates
from bftfs.restoration.viewpoint import Node, Viewpoint

_WORDS: Final = {
    "mode": "mode",
    "uid": "owner",
    "gid": "owner",
    "atime_ns": "times",
    "mtime_ns": "times",
}
_TYPES: Final = object_types()


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """Attributes to set; an extended attribute whose value is None is to be removed."""

    standard: Changes = NO_CHANGES
    extended: dict[bytes, bytes | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.standard) or bool(self.extended)

    def __str__(self) -> str:
        words = [word for name, word in _WORDS.items() if getattr(self.standard, name) is not None]
        words += [shown(name) for name in sorted(self.extended)]
        return ", ".join(dict.fromkeys(words))


async def attributes_at(view: Viewpoint, identifier: ObjectId, time_us: int) -> AttributeChanges:
    """All attributes that an object had, for a new object in its place."""
    attributes = await view.at(time_us).attributes(identifier, view.who)
    extended = await view.extended(Node(identifier, attributes), time_us)
    return AttributeChanges(Changes(**_values(attributes)), dict(extended))


async def others_attributes(
    view: Viewpoint, log: ChangeLog, identifier: ObjectId
) -> AttributeChanges:
    """All attributes as others left them."""
    changes = _changes_since_client(log, identifier)
    left = await attributes_at(view, identifier, changes[0].time_us - 1 if changes else log.now_us)
    before = wanted = msgspec.structs.asdict(left.standard)
    extended = left.extended
    for change in changes:
        assert change.attributes is not None, "others are left out"
        after = _values(change.attributes)
        if not _is_clients(log, change):
            asked = _asked(change)  # even if they had this value before
            wanted = wanted | {n: v for n, v in after.items() if v != before[n] or n in asked}
            for name in _extended_names(change):
                extended[name] = await _value(view, identifier, name, change.time_us)
        before = after
    return AttributeChanges(Changes(**wanted), extended)


async def attributes_to_restore(
    view: Viewpoint, log: ChangeLog, identifier: ObjectId
) -> AttributeChanges:
    """The changes after which an object's attributes are as others left them."""
    changes = _changes_since_client(log, identifier)
    if not changes:
        return AttributeChanges()
    last = changes[-1].attributes
    assert last is not None, "others are left out"
    now, wanted = _values(last), await others_attributes(view, log, identifier)
    extended = {
        name: wanted.extended.get(name)
        for name in dict.fromkeys(name for change in changes for name in _extended_names(change))
        if wanted.extended.get(name) != await _value(view, identifier, name, None)
    }
    different = {
        name: value
        for name, value in msgspec.structs.asdict(wanted.standard).items()
        # Setting an ACL changes the mode.
        if value != now[name] or (name == "mode" and acl.ACCESS in extended)
    }
    return AttributeChanges(Changes(**different), extended)


def _changes_since_client(log: ChangeLog, identifier: ObjectId) -> list[Change]:
    """The changes of attributes from the client's first on; its creation of the object is none."""
    changes = [each for each in log.changes.get(identifier, ()) if each.attributes is not None]
    first = (at for at, each in enumerate(changes) if _is_clients(log, each) and not creates(each))
    return changes[next(first, len(changes)) :]


def _is_clients(log: ChangeLog, change: Change) -> bool:
    return log.by_client(change) and change.operation.method != ACCESSED


def _values(attributes: Attributes) -> dict[str, int]:
    return {name: getattr(attributes, name) for name in _WORDS} | {
        "mode": stat.S_IMODE(attributes.mode)
    }


def _asked(change: Change) -> set[str]:
    """The attributes that chmod, chown or utimens has set."""
    if change.operation.method != CHANGE_ATTRIBUTES:
        return set()
    return {name for name in _WORDS if getattr(_arguments(change), name) is not None}


def _arguments(change: Change) -> Any:
    method = _TYPES.method(change.operation.method)
    assert method is not None, "servers have executed it"
    return _TYPES.decode_arguments(method, change.operation.arguments)


def _extended_names(change: Change) -> tuple[bytes, ...]:
    """The extended attributes and ACLs that a change concerns."""
    if change.operation.method in (SET_EXTENDED, REMOVE_EXTENDED):
        return (_arguments(change).name,)
    return (
        (acl.ACCESS,) if "mode" in _asked(change) else ()
    )  # which a mode changes, if there is one


async def _value(
    view: Viewpoint, identifier: ObjectId, name: bytes, time_us: int | None
) -> bytes | None:
    try:
        value: bytes = await view.at(time_us).get_extended(identifier, name, view.who)
    except FileSystemError:
        return None
    return value


async def set_attributes(view: Viewpoint, identifier: ObjectId, changes: AttributeChanges) -> None:
    """Set ACLs before the mode, which they change, and times last."""
    files, who = view.files, view.who
    for name, value in changes.extended.items():
        if value is not None:
            await files.set_extended(identifier, name, value, who)
        elif await _value(view, identifier, name, None) is not None:
            await files.remove_extended(identifier, name, who)
    wanted = changes.standard
    times = Changes(atime_ns=wanted.atime_ns, mtime_ns=wanted.mtime_ns)
    others = msgspec.structs.replace(wanted, atime_ns=None, mtime_ns=None)
    for each in (others, times):
        if each:
            await files.change_attributes(identifier, each, who)
