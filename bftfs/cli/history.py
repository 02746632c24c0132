"""`bftfs log`, `cat`, `diff` and `annotate`: what was, when, and by whom."""

from __future__ import annotations

import difflib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from bftfs.cli.past import Located, Session, absolute, file_kind, session_at
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem import object_types
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.history import Change
from bftfs.filesystem.registry import (
    ACCESSED,
    CHANGE_ATTRIBUTES,
    CREATE,
    FORMAT,
    LINK,
    MAKE_DIRECTORY,
    MERGE,
    RELOCATE,
    REMOVE_DIRECTORY,
    REMOVE_EXTENDED,
    RENAME,
    SET_EXTENDED,
    SET_RETENTION,
    TRUNCATE,
    UNLINK,
    WRITE,
)
from bftfs.filesystem.time_names import format_time_name
from bftfs.restoration.sight import Node

TEXT_BYTES = 16 << 20  # a file larger than that is not compared line by line
_CONTENT_METHODS = frozenset((WRITE, TRUNCATE, CREATE))


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


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
    CREATE: lambda a: f"create {_shown(a.name)}",
    MAKE_DIRECTORY: lambda a: f"mkdir {_shown(a.name)}",
    LINK: lambda a: f"link {_shown(a.name)}",
    UNLINK: lambda a: f"unlink {_shown(a.name)}",
    REMOVE_DIRECTORY: lambda a: f"rmdir {_shown(a.name)}",
    RENAME: lambda a: f"rename {_shown(a.name)} to {_shown(a.target_name)}",
    RELOCATE: lambda a: f"move {_shown(a.name)} to {_shown(a.target_name)}",
    WRITE: lambda _: "write",
    TRUNCATE: lambda a: f"truncate to {a.size}",
    MERGE: lambda _: "rearrange",
    CHANGE_ATTRIBUTES: _changed_attributes,
    SET_EXTENDED: lambda a: f"set attribute {_shown(a.name)}",
    REMOVE_EXTENDED: lambda a: f"remove attribute {_shown(a.name)}",
    ACCESSED: lambda _: "access",
    SET_RETENTION: lambda arguments: f"set retention {arguments.policy}",
    FORMAT: lambda _: "make file system",
}
_TYPES = object_types()


def said(change: Change) -> str:
    """An operation, in words."""
    method = _TYPES.method(change.operation.method)
    say = _SAID.get(change.operation.method)
    if method is None or say is None:
        return change.operation.method
    return say(_TYPES.decode_arguments(method, change.operation.arguments))


# --- log ------------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH")
@click.option("--since", default=None, help="Leave out what is older.")
@click.option("--count", "-n", type=click.IntRange(1), default=None, help="At most so many.")
@click.option("--all", "everything", is_flag=True, help="Also accesses and rearrangements.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def log(path: str, since: str | None, count: int | None, everything: bool, as_json: bool) -> None:
    """Every version of a file or directory: when, by which client, what, and how large.

    Renames do not interrupt it; of a path that is gone, what stood there last is shown.
    """
    with session_at(path) as session:
        plain, at, time_text = path.rpartition("@")
        if at and not os.path.lexists(path) and session.is_time(time_text):
            raise UsageError(
                f"{path}: all versions are listed, not those of a time; ask for {plain}, and leave "
                "out what is older with --since"
            )
        identifier, gone_us = session.find(absolute(path))
        since_us = 0 if since is None else session.time(since)
        changes = [
            change
            for change in session.changes(identifier, since_us=since_us)
            if everything or change.operation.method not in (ACCESSED, MERGE)
        ][:count]
        rows = [_row(session, change) for change in changes]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if gone_us is not None:
        click.echo(
            f"{path}: removed; `bftfs undelete {path}` brings it back as it was last", err=True
        )
    for row in rows:
        size = "" if row["size"] is None else str(row["size"])
        click.echo(
            f"{row['time']}  {row['client']:<12} uid {row['uid']:<5} {size:>12}  {row['operation']}"
        )


def _row(session: Session, change: Change) -> dict[str, Any]:
    attributes = change.attributes
    is_directory = attributes is not None and attributes.is_directory
    return {
        "time": format_time_name(change.time_us),
        "client": session.client_name(change.client),
        "uid": change.operation.uid,
        "operation": said(change),
        "size": None if attributes is None or is_directory else attributes.size,
        "mode": None if attributes is None else f"{stat.S_IMODE(attributes.mode):04o}",
        "links": None if attributes is None else attributes.links,
    }


# --- cat ------------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH@TIME")
def cat(path: str) -> None:
    """Print a file as it was at a time, or as a snapshot shows it."""
    with session_at(path) as session:
        located = session.locate(path)
        _require_file(located)
        for piece in _readable(session, located):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _require_file(located: Located) -> None:
    if not located.attributes.is_regular:
        raise UsageError(f"{located.shown}: not a regular file", exit_code=1)


def _readable(session: Session, located: Located) -> Iterator[bytes]:
    try:
        yield from session.pieces(located.identifier, located.time_us)
    except FileSystemError as refusal:
        raise UsageError(f"{located.shown}: {os.strerror(refusal.code)}", exit_code=1) from None


# --- diff -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """How one path of a tree differs from another time's."""

    status: str  # added, removed, modified, renamed
    path: str
    old: Node | None
    new: Node | None
    old_path: str = ""
    contents_differ: bool = False


@click.command()
@click.argument("old", metavar="PATH@TIME")
@click.argument("new", required=False, metavar="[PATH@TIME]")
@click.option("--brief", "-q", is_flag=True, help="Only which paths differ, not how.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def diff(old: str, new: str | None, brief: bool, as_json: bool) -> int:
    """What changed between two times: a unified diff, of a file or a whole tree.

    The second PATH is now's if it is left out, and may be just @TIME. Ends with 1 if there are
    differences.
    """
    with session_at(old) as session:
        before = session.locate(old)
        if new is None:
            after = session.locate_at(before.path, None)
        elif new.startswith("@"):
            after = session.locate_at(before.path, session.time(new[1:]))
        else:
            after = session.locate(new)
        kinds = [file_kind(each.attributes) for each in (before, after)]
        if kinds[0] != kinds[1] and before.path != after.path:
            raise UsageError(
                f"{before.shown} is a {kinds[0]} and {after.shown} a {kinds[1]}: "
                "name two of a kind",
                exit_code=2,
            )
        differences = differences_between(session, before, after)
        if as_json:
            click.echo(json.dumps([_json_of(each) for each in differences], indent=2))
        else:
            for each in differences:
                _print_difference(session, before, after, each, brief=brief)
    return 1 if differences else 0


def differences_between(session: Session, before: Located, after: Located) -> list[Difference]:
    """What differs between two files or trees, by path; renamed is what is the same object."""
    old, new = (
        session.tree(each) if each.attributes.is_directory else {"": each.node}
        for each in (before, after)
    )
    gone = {old[path].identifier: path for path in sorted(old.keys() - new.keys())}
    found = []
    for path in sorted(old.keys() | new.keys()):
        was, is_now = old.get(path), new.get(path)
        if was is not None and is_now is not None:
            differ = _contents_differ(session, was, is_now, before.time_us, after.time_us)
            if differ or _attributes_differ(was.attributes, is_now.attributes):
                found.append(Difference("modified", path, was, is_now, contents_differ=differ))
        elif was is None and is_now is not None:
            origin = gone.pop(is_now.identifier, None)
            if origin is None:
                found.append(Difference("added", path, None, is_now, contents_differ=True))
            else:
                was = old[origin]
                differ = _contents_differ(session, was, is_now, before.time_us, after.time_us)
                found.append(Difference("renamed", path, was, is_now, origin, differ))
    found += [
        Difference("removed", path, old[path], None, contents_differ=True) for path in gone.values()
    ]
    # What has other names still, or again, is gone from these.
    listed = {each.path for each in found} | {each.old_path for each in found}
    found += [
        Difference("removed", path, old[path], None, contents_differ=True)
        for path in sorted(old.keys() - new.keys())
        if path not in listed
    ]
    return sorted(found, key=lambda each: each.path)


def _attributes_differ(old: Attributes, new: Attributes) -> bool:
    return (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)


def _contents_differ(
    session: Session, old: Node, new: Node, old_us: int | None, new_us: int | None
) -> bool:
    one, other = old.attributes, new.attributes
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        return True
    if stat.S_ISLNK(one.mode):
        targets = (
            session.link_target(old.identifier, old_us),
            session.link_target(new.identifier, new_us),
        )
        return targets[0] != targets[1]
    if not one.is_regular:
        return one.device != other.device
    if old.identifier == new.identifier and one.contents == other.contents:
        return False
    return one.size != other.size or session.contents(old.identifier, old_us) != session.contents(
        new.identifier, new_us
    )


def _json_of(each: Difference) -> dict[str, Any]:
    return {
        "status": each.status,
        "path": each.path,
        **({"from": each.old_path} if each.old_path else {}),
        "contents": each.contents_differ,
        "old_size": None if each.old is None else each.old.attributes.size,
        "new_size": None if each.new is None else each.new.attributes.size,
    }


def _print_difference(
    session: Session, before: Located, after: Located, each: Difference, *, brief: bool
) -> None:
    old_name = _joined(before.path.name, each.old_path or each.path)
    new_name = _joined(after.path.name, each.path)
    if brief or before.attributes.is_directory:
        origin = f" (was {old_name})" if each.status == "renamed" else ""
        click.echo(f"{each.status:<8}  {new_name}{origin}")
    if brief:
        return
    if each.old is not None and each.new is not None:
        _print_attributes(each.old.attributes, each.new.attributes)
    if not each.contents_differ:
        return
    sides = []
    for node, time_us in ((each.old, before.time_us), (each.new, after.time_us)):
        if node is None:
            sides.append("")
            continue
        text = _text_of(session, node, time_us)
        if text is None:
            if not stat.S_ISDIR(node.attributes.mode):
                click.echo(f"binary files {old_name} and {new_name} differ")
            return
        sides.append(text)
    old_label = f"{old_name}\t{_when(before.time_us)}"
    new_label = f"{new_name}\t{_when(after.time_us)}"
    lines = difflib.unified_diff(
        sides[0].splitlines(keepends=True),
        sides[1].splitlines(keepends=True),
        "/dev/null" if each.old is None else old_label,
        "/dev/null" if each.new is None else new_label,
    )
    for line in lines:
        click.echo(line, nl=False)
        if not line.endswith("\n"):
            click.echo("\n\\ No newline at end of file")


def _print_attributes(old: Attributes, new: Attributes) -> None:
    modes = (stat.S_IMODE(old.mode), stat.S_IMODE(new.mode))
    if modes[0] != modes[1]:
        click.echo(f"mode {modes[0]:04o} -> {modes[1]:04o}")
    for name, was, is_now in (("uid", old.uid, new.uid), ("gid", old.gid, new.gid)):
        if was != is_now:
            click.echo(f"{name} {was} -> {is_now}")


def _joined(name: str, path: str) -> str:
    return f"{name}/{path}" if path else name


def _when(time_us: int | None) -> str:
    return "now" if time_us is None else format_time_name(time_us)


def _text_of(session: Session, node: Node, time_us: int | None) -> str | None:
    """The contents as text; None if they are none."""
    attributes = node.attributes
    if stat.S_ISLNK(attributes.mode):
        return f"symlink to {_shown(session.link_target(node.identifier, time_us))}\n"
    if not attributes.is_regular or attributes.size > TEXT_BYTES:
        return None
    contents = session.contents(node.identifier, time_us)
    try:
        return None if b"\0" in contents else contents.decode()
    except UnicodeDecodeError:
        return None


# --- annotate -------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH[@TIME]")
@click.option("--count", "-n", type=click.IntRange(1), default=200, show_default=True,
              help="How many versions to look back.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def annotate(path: str, count: int, as_json: bool) -> None:
    """Say of each line of a text file which version brought it, and which client made that."""
    with session_at(path) as session:
        located = session.locate(path)
        _require_file(located)
        until_us = session.now_us if located.time_us is None else located.time_us
        versions = [
            change
            for change in session.changes(located.identifier)
            if change.operation.method in _CONTENT_METHODS and change.time_us <= until_us
        ][:count]
        # A program that rewrites a file makes it empty first: those versions bring nothing.
        versions = versions[:1] + [each for each in versions[1:] if _size(each)]
        lines: list[str] = []
        authors: list[Change] = []
        for change in reversed(versions):
            assert change.attributes is not None, "what changes contents changes attributes"
            node = Node(located.identifier, change.attributes)
            text = _text_of(session, node, change.time_us)
            if text is None:
                raise UsageError(f"{located.shown}: not text", exit_code=1)
            authors, lines = _attributed(authors, lines, text.splitlines(keepends=True), change)
        rows = [
            {
                "line": number,
                "time": format_time_name(change.time_us),
                "client": session.client_name(change.client),
                "uid": change.operation.uid,
                "text": line,
            }
            for number, (change, line) in enumerate(zip(authors, lines, strict=True), 1)
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['time']}  {row['client']:<12} {row['text']!s:.4096}", nl=False)
    if rows and not str(rows[-1]["text"]).endswith("\n"):
        click.echo()


def _size(change: Change) -> int:
    return 0 if change.attributes is None else change.attributes.size


def _attributed(
    authors: list[Change], old: list[str], new: list[str], change: Change
) -> tuple[list[Change], list[str]]:
    """Who brought each of the `new` lines: whoever did of the old ones, or else `change`."""
    attributed: list[Change] = []
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for tag, first, _, start, stop in matcher.get_opcodes():
        is_old = tag == "equal"
        attributed += authors[first : first + stop - start] if is_old else [change] * (stop - start)
    return attributed, new
