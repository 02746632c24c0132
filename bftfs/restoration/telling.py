"""Objects and operations in words, and what a client has changed, for commands and pages."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Final

from bftfs.filesystem import object_types, registry
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId, ObjectId
from bftfs.printable import as_word
from bftfs.query_update.history import LogicalTimestamp
from bftfs.query_update.messages import WITHHELD
from bftfs.restoration.changes import ChangeLog, Slot, audited


def file_kind(attributes: Attributes) -> str:
    """The kind of an object, in a word."""
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
    }.get(stat.S_IFMT(attributes.mode), "special file")


def _name(name: bytes) -> str:
    return "(a name that is not shown to this user)" if name == WITHHELD else as_word(name)


def _changed_attributes(arguments: Any) -> str:
    words = []
    if arguments.mode is not None:
        words.append(f"mode {stat.S_IMODE(arguments.mode):o}")
    words += [
        f"{field} {getattr(arguments, field)}"
        for field in ("uid", "gid")
        if getattr(arguments, field) is not None
    ]
    if arguments.atime_ns is not None or arguments.mtime_ns is not None:
        words.append("times")
    return "change " + ", ".join(words)


_SAID: dict[str, Callable[[Any], str]] = {
    registry.CREATE: lambda a: f"create {_name(a.name)}",
    registry.MAKE_DIRECTORY: lambda a: f"mkdir {_name(a.name)}",
    registry.LINK: lambda a: f"link {_name(a.name)}",
    registry.UNLINK: lambda a: f"unlink {_name(a.name)}",
    registry.REMOVE_DIRECTORY: lambda a: f"rmdir {_name(a.name)}",
    registry.MEND: lambda a: f"remove {_name(a.name)}, of which nothing was left",
    registry.RENAME: lambda a: f"rename {_name(a.name)} to {_name(a.target_name)}",
    registry.RELOCATE: lambda a: f"move {_name(a.name)} to {_name(a.target_name)}",
    registry.WRITE: lambda _: "write",
    registry.TRUNCATE: lambda a: f"truncate to {a.size}",
    registry.MERGE: lambda _: "rearrange",
    registry.REWRITE: lambda _: "re-encrypt",
    registry.PERMIT_WRITING: lambda _: "ask whether writing is permitted",
    registry.PERMIT_READING: lambda _: "ask whether reading is permitted",
    registry.CHANGE_ATTRIBUTES: _changed_attributes,
    registry.SET_EXTENDED: lambda a: f"set attribute {as_word(a.name)}",
    registry.REMOVE_EXTENDED: lambda a: f"remove attribute {as_word(a.name)}",
    registry.ACCESSED: lambda _: "access",
    registry.SET_RETENTION: lambda arguments: f"set retention {arguments.policy}",
    registry.FORMAT: lambda _: "make file system",
}
_TYPES = object_types()
_RENAMES: Final = (registry.RENAME, registry.RELOCATE)


def said(change: Change, path: Callable[[ObjectId, bytes], str] | None = None) -> str:
    """An operation, in words.

    `path` tells where a name in a directory is, exactly; with it, what has moved is told with its
    places.
    """
    method = _TYPES.method(change.operation.method)
    say = _SAID.get(change.operation.method)
    if method is None or say is None:
        return change.operation.method
    if change.operation.arguments == WITHHELD:
        verb = method.name.partition(".")[2].replace("_", " ")
        return f"{verb} (the details are not shown to this user)"
    arguments = _TYPES.decode_arguments(method, change.operation.arguments)
    if path is None or change.operation.method not in _RENAMES:
        return say(arguments)
    source, target = change.operation.objects[:2]
    if source == target or WITHHELD in (arguments.name, arguments.target_name):
        return say(arguments)
    verb = "rename" if change.operation.method == registry.RENAME else "move"
    before, after = path(source, arguments.name), path(target, arguments.target_name)
    return f"{verb} {as_word(before)} to {as_word(after)}"


# --- audit ----------------------------------------------------------------------------------

NameOfClient = Callable[[ClientId], str]


def audit_report(
    log: ChangeLog,
    missing: Mapping[LogicalTimestamp, int],
    *,
    label: str,
    client_name: NameOfClient,
) -> dict[str, Any]:
    """What the client called `label` has changed, and what others built on it, by time.

    `missing`: how many blocks that a change has named cannot be read; see `changes.unreadable`.
    """
    own, later = audited(log)
    changes = [
        _row(log, identifier, change, client_name, missing.get(change.timestamp, 0))
        for identifier, change in own
    ]
    changes += _uncovered_rows(log, label)
    changes.sort(key=itemgetter("time"))
    built_on = [_row(log, identifier, change, client_name) for identifier, change in later]
    return {"client": label, "changes": changes, "built_on": built_on}


def _row(
    log: ChangeLog,
    identifier: ObjectId,
    change: Change,
    client_name: NameOfClient,
    unreadable_blocks: int = 0,
) -> dict[str, Any]:
    mark = f" (unreadable: {unreadable_blocks})" if unreadable_blocks else ""
    return {
        "time": format_time_name(change.time_us),
        "client": client_name(change.client),
        "uid": change.operation.uid,
        "operation": said(change, partial(_place, log)) + mark,
        "path": log.path_of(identifier),
        "unreadable_blocks": unreadable_blocks,
    }


def _place(log: ChangeLog, directory: ObjectId, name: bytes) -> str:
    """Where a name in a directory is, as seen from what is audited."""
    return log.path(Slot(directory, name)).removeprefix(f"{log.root_path}/")


def _uncovered_rows(log: ChangeLog, label: str) -> list[dict[str, Any]]:
    """Blocks that the client wrote, and that no update of its own covers."""
    rows = []
    for identifier, versions in log.uncovered.items():
        blocks = len({each.block for each in versions})
        rows.append(
            {
                "time": format_time_name(min(each.time_us for each in versions)),
                "client": label,
                "uid": None,
                "operation": f"write {blocks} block{'s' * (blocks > 1)} that no update has covered",
                "path": log.path_of(identifier),
            }
        )
    return rows
