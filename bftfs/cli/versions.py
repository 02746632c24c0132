"""`bftfs log`, `cat`, `diff` and `annotate`: the versions of a file or directory."""

from __future__ import annotations

import difflib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click

from bftfs.cli.command_session import (
    CommandSession,
    Located,
    absolute,
    refusals_explained,
    session_at,
)
from bftfs.cli.decisions import tell_decisions
from bftfs.cli.options import json_option
from bftfs.errors import UsageError
from bftfs.filesystem import registry
from bftfs.filesystem.file_history import UNSEEN, Change
from bftfs.filesystem.operations import FoundObject
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ObjectId
from bftfs.printable import as_word
from bftfs.restoration.telling import file_kind, said

_CONTENT_METHODS = frozenset((registry.WRITE, registry.TRUNCATE, registry.CREATE))


# --- log ------------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH")
@click.option("--since", default=None, help="Leave out older versions.")
@click.option("--count", "-n", type=click.IntRange(1), default=None, help="At most this many.")
@click.option(
    "--all", "everything", is_flag=True, help="Also accesses, rearrangements and re-encryption."
)
@json_option
def log(path: str, since: str | None, count: int | None, everything: bool, as_json: bool) -> None:
    """List the versions of a file or directory: time, client, size and operation.

    The list goes on across renames, and then with what had this name before: so also before a file
    was removed and brought back. If nothing is at PATH now, it begins with the last object there.

    Example: bftfs log --since yesterday report.txt
    """
    with session_at(path) as session:
        plain, at, time_text = path.rpartition("@")
        if at and not os.path.lexists(path) and session.time_called(time_text) is not None:
            raise UsageError(
                f"{as_word(path)}: all versions are listed, not those of a time; name "
                f"{as_word(plain)}, and leave "
                "out older versions with --since"
            )
        identifier, gone_us = session.find(absolute(path))
        since_us = 0 if since is None else session.time(since)
        rows = islice(_rows(session, absolute(path), identifier, since_us, everything), count)
        if as_json:
            click.echo(json.dumps(list(rows), indent=2))
            return
        if gone_us is not None:
            name = as_word(path)
            click.echo(f"{name}: was removed; `bftfs undelete {name}` brings it back", err=True)
        _print_rows(rows)
        tell_decisions(session.description, session.let_go())


def _rows(
    session: CommandSession, path: Path, identifier: ObjectId, since_us: int, everything: bool
) -> Iterator[dict[str, Any]]:
    """The versions of what is, or was, at a path, the latest first; read as they are taken."""
    objects = chain(((identifier, session.now_us),), session.earlier(path, identifier))
    for each, until_us in objects:
        if until_us < since_us:
            return
        for change in session.changes(each, since_us=since_us):
            if each != identifier and change.time_us > until_us:
                continue
            if everything or change.operation.method not in UNSEEN:
                yield _row(session, each, change)


def _print_rows(rows: Iterable[dict[str, Any]]) -> None:
    above = None
    for row in rows:
        if above not in (None, row["object"]):
            click.echo("-- before that, the name stood for another object:")
        above = row["object"]
        size = "" if row["size"] is None else str(row["size"])
        click.echo(
            f"{row['time']}  {row['client']:<12} uid {row['uid']:<5} {size:>12}  {row['operation']}"
        )


def _row(session: CommandSession, identifier: ObjectId, change: Change) -> dict[str, Any]:
    attributes = change.attributes
    is_directory = attributes is not None and attributes.is_directory
    return {
        "time": format_time_name(change.time_us),
        "object": identifier.hex(),
        "client": session.client_name(change.client),
        "client_id": change.client.hex(),
        "uid": change.operation.uid,
        "operation": said(session.with_names(change)),
        "size": None if attributes is None or is_directory else attributes.size,
        "mode": None if attributes is None else f"{stat.S_IMODE(attributes.mode):04o}",
        "links": None if attributes is None else attributes.links,
    }


# --- cat ------------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH@TIME")
def cat(path: str) -> None:
    """Print a file as it was at a time, or as a snapshot shows it.

    Example: bftfs cat report.txt@yesterday
    """
    with session_at(path) as session:
        located = session.locate(path)
        _require_file(located)
        with refusals_explained(located.shown):
            reading = session.perform(session.view.reading(located.identifier, located.time_us))
            try:
                while piece := session.perform(reading.next()):
                    sys.stdout.buffer.write(piece)
            finally:
                session.perform(reading.close())
        sys.stdout.buffer.flush()


def _require_file(located: Located) -> None:
    if not located.attributes.is_regular:
        raise UsageError(f"{located.shown}: not a regular file", exit_code=1)


# --- diff -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """How the object at one path differs between the two times."""

    status: str  # added, removed, modified, renamed
    path: str
    old: FoundObject | None
    new: FoundObject | None
    old_path: str = ""
    contents_differ: bool = False


@click.command()
@click.argument("old", metavar="PATH[@TIME]")
@click.argument("new", required=False, metavar="[PATH@TIME]")
@click.option("--brief", "-q", is_flag=True, help="Print the paths that differ, not how.")
@json_option
def diff(old: str, new: str | None, brief: bool, as_json: bool) -> int:
    """Show what changed between two times as a unified diff, of a file or a whole tree.

    Without the second PATH@TIME, compares with the present; @TIME alone means the same path at that
    time. PATH alone compares the present with the version before. Exit code 1 if there are
    differences.

    Example: bftfs diff report.txt@yesterday
    """
    with session_at(old) as session:
        before = session.locate(old)
        if new is None and before.time_us is None:
            before = _version_before(session, before)
            click.echo(f"since {format_time_name(before.time_us or 0)}:", err=True)
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
                "name two of the same kind",
                exit_code=2,
            )
        differences = differences_between(session, before, after)
        if as_json:
            found = [_json_of(each) for each in differences]
            click.echo(json.dumps(found, indent=2))
            return 1 if found else 0
        code = 0
        for each in differences:
            _print_difference(session, before, after, each, brief=brief)
            code = 1
    return code


def _version_before(session: CommandSession, now: Located) -> Located:
    """The same path before the latest change; of a tree, before the latest in or below it."""
    if now.attributes.is_directory:
        times = session.perform(session.history.change_times(now.identifier, session.who)).times
        moments = [time_us - 1 for time_us in times[:1]]
    else:
        changes = (
            each for each in session.changes(now.identifier) if each.operation.method not in UNSEEN
        )
        # A program that rewrites a file makes it empty first: that is not what was before.
        before = (
            each.time_us
            for each in islice(changes, 1, None)
            if each.operation.method != registry.TRUNCATE or _size(each)
        )
        of_name = (until_us - 1 for _, until_us in session.earlier(now.path, now.identifier))
        moments = list(islice(chain(before, of_name), 1))
    for time_us in moments[:1]:
        with suppress(UsageError):
            return session.locate_at(now.path, time_us)
    raise UsageError(f"{now.shown}: has no version before this one; `bftfs log` lists them")


def differences_between(
    session: CommandSession, before: Located, after: Located
) -> Iterator[Difference]:
    """The differences between two files or trees, by path; a moved object counts as renamed.

    Contents are compared as the differences are taken.
    """
    old, new = (
        session.tree(each) if each.attributes.is_directory else {"": each.node}
        for each in (before, after)
    )
    gone = {old[path].identifier: path for path in sorted(old.keys() - new.keys())}
    origins = {
        path: path if path in old else gone.pop(new[path].identifier, None) for path in sorted(new)
    }
    kept = {*origins.values()}  # paths of `old` whose object is still there, here or elsewhere
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            if path not in kept:
                yield Difference("removed", path, old[path], None, contents_differ=True)
            continue
        is_now, origin = new[path], origins[path]
        if origin is None:
            yield Difference("added", path, None, is_now, contents_differ=True)
            continue
        was = old[origin]
        differ = _contents_differ(session, was, is_now, before.time_us, after.time_us)
        if origin != path:
            yield Difference("renamed", path, was, is_now, origin, differ)
        elif differ or _permissions(was) != _permissions(is_now):
            yield Difference("modified", path, was, is_now, contents_differ=differ)


def _permissions(node: FoundObject) -> dict[str, str]:
    attributes = node.attributes
    return {
        "mode": f"{stat.S_IMODE(attributes.mode):04o}",
        "uid": str(attributes.uid),
        "gid": str(attributes.gid),
    }


def _contents_differ(
    session: CommandSession,
    old: FoundObject,
    new: FoundObject,
    old_us: int | None,
    new_us: int | None,
) -> bool:
    one, other = old.attributes, new.attributes
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        return True
    view = session.view
    if stat.S_ISLNK(one.mode):
        target = session.perform(view.link_target(old.identifier, old_us))
        return target != session.perform(view.link_target(new.identifier, new_us))
    if not one.is_regular:
        return one.device != other.device
    if old.identifier == new.identifier and one.contents == other.contents:
        return False
    if one.size != other.size:
        return True
    contents = session.perform(view.contents(old.identifier, old_us))
    return contents != session.perform(view.contents(new.identifier, new_us))


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
    session: CommandSession, before: Located, after: Located, each: Difference, *, brief: bool
) -> None:
    old_name = as_word(_joined(before.path.name, each.old_path or each.path))
    new_name = as_word(_joined(after.path.name, each.path))
    if brief or before.attributes.is_directory:
        origin = f" (was {old_name})" if each.status == "renamed" else ""
        click.echo(f"{each.status:<8}  {new_name}{origin}")
    if brief:
        return
    if each.old is not None and each.new is not None:
        is_now = _permissions(each.new)
        for name, was in _permissions(each.old).items():
            if was != is_now[name]:
                click.echo(f"{name} {was} -> {is_now[name]}")
    if each.contents_differ:
        old = (each.old, before.time_us, old_name)
        _print_contents(session, old, (each.new, after.time_us, new_name))


_Side = tuple[FoundObject | None, int | None, str]  # the object (None: not there), when, its name


def _print_contents(session: CommandSession, old: _Side, new: _Side) -> None:
    texts: list[list[str]] = []
    labels: list[str] = []
    for node, time_us, name in (old, new):
        text = "" if node is None else session.text(node, time_us)
        if text is None:
            if node is not None and not node.attributes.is_directory:
                click.echo(f"binary files {old[2]} and {new[2]} differ")
            return
        texts.append(text.splitlines(keepends=True))
        when = "now" if time_us is None else format_time_name(time_us)
        labels.append("/dev/null" if node is None else f"{name}\t{when}")
    for line in difflib.unified_diff(texts[0], texts[1], labels[0], labels[1]):
        click.echo(line, nl=False)
        if not line.endswith("\n"):
            click.echo("\n\\ No newline at end of file")


def _joined(name: str, path: str) -> str:
    return f"{name}/{path}" if path else name


# --- annotate -------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="PATH[@TIME]")
@click.option("--count", "-n", type=click.IntRange(1), default=200, show_default=True,
              help="Versions to look back.")  # fmt: skip
@json_option
def annotate(path: str, count: int, as_json: bool) -> None:
    """Show, for each line of a text file, the version that it comes from, and its client.

    Example: bftfs annotate report.txt
    """
    with session_at(path) as session:
        located = session.locate(path)
        _require_file(located)
        until_us = session.now_us if located.time_us is None else located.time_us
        changes = (
            change
            for change in session.changes(located.identifier)
            if change.operation.method in _CONTENT_METHODS and change.time_us <= until_us
        )
        versions = list(islice(changes, count))
        # A program that rewrites a file makes it empty first: those versions have no lines.
        versions = versions[:1] + [each for each in versions[1:] if _size(each)]
        lines: list[str] = []
        authors: list[Change] = []
        for change in reversed(versions):
            assert change.attributes is not None, "what changes contents changes attributes"
            node = FoundObject(located.identifier, change.attributes)
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
