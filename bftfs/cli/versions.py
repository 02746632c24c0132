"""`bftfs log`, `cat` and `annotate`: the versions of a file or directory."""

from __future__ import annotations

import difflib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from bftfs.cli.command_session import CommandSession, Located, absolute, session_at
from bftfs.cli.options import json_option
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem import object_types
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.names import shown
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
from bftfs.restoration.viewpoint import Node

_CONTENT_METHODS = frozenset((WRITE, TRUNCATE, CREATE))


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
    CREATE: lambda a: f"create {shown(a.name)}",
    MAKE_DIRECTORY: lambda a: f"mkdir {shown(a.name)}",
    LINK: lambda a: f"link {shown(a.name)}",
    UNLINK: lambda a: f"unlink {shown(a.name)}",
    REMOVE_DIRECTORY: lambda a: f"rmdir {shown(a.name)}",
    RENAME: lambda a: f"rename {shown(a.name)} to {shown(a.target_name)}",
    RELOCATE: lambda a: f"move {shown(a.name)} to {shown(a.target_name)}",
    WRITE: lambda _: "write",
    TRUNCATE: lambda a: f"truncate to {a.size}",
    MERGE: lambda _: "rearrange",
    CHANGE_ATTRIBUTES: _changed_attributes,
    SET_EXTENDED: lambda a: f"set attribute {shown(a.name)}",
    REMOVE_EXTENDED: lambda a: f"remove attribute {shown(a.name)}",
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
@click.option("--since", default=None, help="Leave out older versions.")
@click.option("--count", "-n", type=click.IntRange(1), default=None, help="At most this many.")
@click.option("--all", "everything", is_flag=True, help="Also accesses and rearrangements.")
@json_option
def log(path: str, since: str | None, count: int | None, everything: bool, as_json: bool) -> None:
    """List the versions of a file or directory: time, client, size and operation.

    The list goes on across renames. If nothing is at PATH now, it is that of the last object there.
    """
    with session_at(path) as session:
        plain, at, time_text = path.rpartition("@")
        if at and not os.path.lexists(path) and session.is_time(time_text):
            raise UsageError(
                f"{path}: all versions are listed, not those of a time; name {plain}, and leave "
                "out older versions with --since"
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
        click.echo(f"{path}: was removed; `bftfs undelete {path}` brings it back", err=True)
    for row in rows:
        size = "" if row["size"] is None else str(row["size"])
        click.echo(
            f"{row['time']}  {row['client']:<12} uid {row['uid']:<5} {size:>12}  {row['operation']}"
        )


def _row(session: CommandSession, change: Change) -> dict[str, Any]:
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


def _readable(session: CommandSession, located: Located) -> Iterator[bytes]:
    try:
        yield from session.pieces(located.identifier, located.time_us)
    except FileSystemError as refusal:
        raise UsageError(f"{located.shown}: {os.strerror(refusal.code)}", exit_code=1) from None


# --- annotate -------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH[@TIME]")
@click.option("--count", "-n", type=click.IntRange(1), default=200, show_default=True,
              help="Versions to look back.")  # fmt: skip
@json_option
def annotate(path: str, count: int, as_json: bool) -> None:
    """Show, for each line of a text file, the version that it comes from, and its client."""
    with session_at(path) as session:
        located = session.locate(path)
        _require_file(located)
        until_us = session.now_us if located.time_us is None else located.time_us
        versions = [
            change
            for change in session.changes(located.identifier)
            if change.operation.method in _CONTENT_METHODS and change.time_us <= until_us
        ][:count]
        # A program that rewrites a file makes it empty first: those versions have no lines.
        versions = versions[:1] + [each for each in versions[1:] if _size(each)]
        lines: list[str] = []
        authors: list[Change] = []
        for change in reversed(versions):
            assert change.attributes is not None, "what changes contents changes attributes"
            node = Node(located.identifier, change.attributes)
            text = session.text(node, change.time_us)
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
    """The version of each of the `new` lines: that of the same old line, or `change`."""
    attributed: list[Change] = []
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for tag, first, _, start, stop in matcher.get_opcodes():
        is_old = tag == "equal"
        attributed += authors[first : first + stop - start] if is_old else [change] * (stop - start)
    return attributed, new
