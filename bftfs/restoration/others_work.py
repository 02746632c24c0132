"""What an object would be if only others had changed it: contents and attributes.

The situation: versions of a file alternate between the client's and others'. The stored operations
say how long a file became and which blocks are valid, never which bytes were meant: a program that
inserts a line rewrites whole blocks, among them what the client had written.

The rule for contents: start with the contents before the client's first change. Then compare each
version that others made with the version before it, and carry that difference over. Consecutive
versions of one side count as one change, since programs make several versions when they rewrite a
file. Where the difference cannot be carried over, the contents are unknown (None): a conflict.

Text is merged line by line; other contents of unchanged length piece by piece. Where both have
changed the same place there is no answer, and a person has to look.

Mode, owner, times, extended attributes and ACLs are each treated separately: the value before the
client's first change of the object, replaced by each value that others set later. Access times
count as nobody's change: those that the client's reading has left stay.

Tests: `tests/unit/restoration/test_merging.py`, `test_undo.py`.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import Any, Final

import msgspec

from bftfs.errors import FileSystemError
from bftfs.filesystem import acl, object_types, registry
from bftfs.filesystem.attributes import NO_CHANGES, Attributes, Changes
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.operations import FoundObject
from bftfs.identifiers import ObjectId
from bftfs.printable import as_word
from bftfs.query_update.messages import WITHHELD
from bftfs.restoration.changes import ChangeLog, creates
from bftfs.restoration.viewpoint import Viewpoint

_PIECE_BYTES = 512
_METHODS: Final = frozenset((registry.CREATE, registry.WRITE, registry.TRUNCATE))


# --- carrying a change over ------------------------------------------------------------------


def carried_over(*, before: bytes, after: bytes, onto: bytes) -> bytes | None:
    """`onto` with the change from `before` to `after`; None if that contradicts itself."""
    if onto == before or not after:  # an emptied file is empty whatever was in it
        return after
    if after in (onto, before):
        return onto
    if not before:
        return None  # it was written anew, while `onto` is something else
    for one, other in ((after, onto), (onto, after)):
        # The same up to there, and the rest as it was: such as an undo leaves that was killed.
        if one.startswith(other) and one[len(other) :] == before[len(other) :]:
            return other
    if len(before) == len(after) == len(onto) and b"\0" in before + after + onto:
        return _pieces(before, after, onto)
    try:
        texts = [each.decode().splitlines(keepends=True) for each in (before, after, onto)]
    except UnicodeDecodeError:
        return None
    merged = merged_lines(*texts)
    return None if merged is None else "".join(merged).encode()


def _pieces(before: bytes, after: bytes, onto: bytes) -> bytes | None:
    merged = []
    for start in range(0, len(before), _PIECE_BYTES):
        was, one, other = (each[start : start + _PIECE_BYTES] for each in (before, after, onto))
        if was not in (one, other) and one != other:
            return None
        merged.append(other if one == was else one)
    return b"".join(merged)


def merged_lines(
    before: Sequence[str], after: Sequence[str], onto: Sequence[str]
) -> list[str] | None:
    """A three-way merge: the changes of both sides; None where they overlap or touch."""
    # Runs of lines that all three have, as (position in before, in after, in onto, length).
    merged: list[str] = []
    anchors = [(0, 0, 0, 0), *_common(before, after, onto)]
    anchors.append((len(before), len(after), len(onto), 0))
    for (b, a, o, length), (b_next, a_next, o_next, _) in pairwise(anchors):
        merged += before[b : b + length]
        was = before[b + length : b_next]
        one, other = after[a + length : a_next], onto[o + length : o_next]
        if one in (was, other):
            merged += other
        elif other == was:
            merged += one
        else:
            return None
    return merged


def _common(
    before: Sequence[str], after: Sequence[str], onto: Sequence[str]
) -> list[tuple[int, int, int, int]]:
    """Runs of `before` that are unchanged on both sides."""
    sides = []
    for other in (after, onto):
        position: dict[int, int] = {}
        blocks = SequenceMatcher(a=before, b=other, autojunk=False).get_matching_blocks()
        for block in blocks:
            for offset in range(block.size):
                position[block.a + offset] = block.b + offset
        sides.append(position)
    runs: list[tuple[int, int, int, int]] = []
    for b in sorted(sides[0].keys() & sides[1].keys()):
        a, o = sides[0][b], sides[1][b]
        if runs:
            first_b, first_a, first_o, length = runs[-1]
            if (b, a, o) == (first_b + length, first_a + length, first_o + length):
                runs[-1] = (first_b, first_a, first_o, length + 1)
                continue
        runs.append((b, a, o, 1))
    return runs


# --- versions of a file ----------------------------------------------------------------------


def changes_of_contents(log: ChangeLog, identifier: ObjectId) -> list[Change]:
    """The changes of the file's bytes. What rearranges or rewrites them, changes none, or lies."""
    return [
        change
        for change in log.changes.get(identifier, ())
        if change.operation.method in _METHODS
        or (change.operation.method in registry.SAME_BYTES and log.by_client(change))
    ]


def first_by_client(log: ChangeLog, identifier: ObjectId) -> Change | None:
    """The first change of the file's bytes that the client made."""
    changes = changes_of_contents(log, identifier)
    return next((each for each in changes if log.by_client(each)), None)


async def others_contents(view: Viewpoint, log: ChangeLog, identifier: ObjectId) -> bytes | None:
    """The contents that others' changes alone would have left; None if that is unknown."""
    first = first_by_client(log, identifier)
    if first is None:
        return await view.contents(identifier, log.now_us)
    merged = b""
    before: bytes | None = merged
    if not creates(first):
        merged = before = await view.contents(identifier, first.time_us - 1)
    since = [
        change
        for change in changes_of_contents(log, identifier)
        if change.timestamp >= first.timestamp
    ]
    for by_client, run in groupby(since, key=log.by_client):
        *_, last = run
        after = await view.contents_if_whole(identifier, last.time_us)
        if not by_client and after != merged:
            if before is None or after is None:
                return None
            carried = carried_over(before=before, after=after, onto=merged)
            # If others wrote the same bytes as the client, these bytes are theirs, too.
            if carried is None or after == before:
                return None
            merged = carried
        before = after
    return merged


async def others_or_last_contents(view: Viewpoint, log: ChangeLog, identifier: ObjectId) -> bytes:
    """The contents as others left them; if unknown, those after the last change of others."""
    merged = await others_contents(view, log, identifier)
    if merged is not None:
        return merged
    changes = changes_of_contents(log, identifier)
    last_us = max(change.time_us for change in changes if not log.by_client(change))
    return await view.contents(identifier, last_us)


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
        words += [as_word(name) for name in sorted(self.extended)]
        return ", ".join(dict.fromkeys(words))


async def attributes_at(view: Viewpoint, identifier: ObjectId, time_us: int) -> AttributeChanges:
    """All attributes that an object had, for a new object in its place."""
    attributes = await view.at(time_us).attributes(identifier, view.who)
    extended = await view.extended(FoundObject(identifier, attributes), time_us)
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
    """The changes of attributes since the client's first one, creation of the object aside."""
    changes = [each for each in log.changes.get(identifier, ()) if each.attributes is not None]
    first = (at for at, each in enumerate(changes) if _is_clients(log, each) and not creates(each))
    return changes[next(first, len(changes)) :]


def _is_clients(log: ChangeLog, change: Change) -> bool:
    return log.by_client(change) and change.operation.method not in registry.UNCHANGING


def _values(attributes: Attributes) -> dict[str, int]:
    return {name: getattr(attributes, name) for name in _WORDS} | {
        "mode": stat.S_IMODE(attributes.mode)
    }


def _asked(change: Change) -> set[str]:
    """The attributes that chmod, chown or utimens has set."""
    if change.operation.method != registry.CHANGE_ATTRIBUTES:
        return set()
    return {name for name in _WORDS if getattr(_arguments(change), name) is not None}


def _arguments(change: Change) -> Any:
    method = _TYPES.method(change.operation.method)
    assert method is not None, "servers have executed it"
    return _TYPES.decode_arguments(method, change.operation.arguments)


def _extended_names(change: Change) -> tuple[bytes, ...]:
    """The extended attributes and ACLs that a change concerns."""
    if change.operation.method in (registry.SET_EXTENDED, registry.REMOVE_EXTENDED):
        if change.operation.arguments == WITHHELD:  # of the superuser, who alone may set it again
            return ()
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
