"""`bftfs diff`: what changed between two times, in a file or a whole tree."""

from __future__ import annotations

import difflib
import json
import stat
from dataclasses import dataclass
from typing import Any

import click

from bftfs.cli.command_session import CommandSession, Located, file_kind, session_at
from bftfs.cli.options import json_option
from bftfs.errors import UsageError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.time_names import format_time_name
from bftfs.restoration.viewpoint import Node


@dataclass(frozen=True, slots=True)
class Difference:
    """How the object at one path differs between the two times."""

    status: str  # added, removed, modified, renamed
    path: str
    old: Node | None
    new: Node | None
    old_path: str = ""
    contents_differ: bool = False


@click.command()
@click.argument("old", metavar="PATH@TIME")
@click.argument("new", required=False, metavar="[PATH@TIME]")
@click.option("--brief", "-q", is_flag=True, help="Print the paths that differ, not how.")
@json_option
def diff(old: str, new: str | None, brief: bool, as_json: bool) -> int:
    """Show what changed between two times as a unified diff, of a file or a whole tree.

    Without the second PATH@TIME, compares with the present; @TIME alone means the same path at that
    time. Exit code 1 if there are differences.
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
                "name two of the same kind",
                exit_code=2,
            )
        differences = differences_between(session, before, after)
        if as_json:
            click.echo(json.dumps([_json_of(each) for each in differences], indent=2))
        else:
            for each in differences:
                _print_difference(session, before, after, each, brief=brief)
    return 1 if differences else 0


def differences_between(
    session: CommandSession, before: Located, after: Located
) -> list[Difference]:
    """The differences between two files or trees, by path; a moved object counts as renamed."""
    old, new = (
        session.tree(each) if each.attributes.is_directory else {"": each.node}
        for each in (before, after)
    )
    gone = {old[path].identifier: path for path in sorted(old.keys() - new.keys())}
    found: list[Difference] = []
    kept: set[str] = set()  # paths of `old` whose object is still there, here or elsewhere
    for path in sorted(new):
        is_now = new[path]
        origin = path if path in old else gone.pop(is_now.identifier, None)
        if origin is None:
            found.append(Difference("added", path, None, is_now, contents_differ=True))
            continue
        kept.add(origin)
        was = old[origin]
        differ = _contents_differ(session, was, is_now, before.time_us, after.time_us)
        if origin != path:
            found.append(Difference("renamed", path, was, is_now, origin, differ))
        elif differ or _attributes_differ(was.attributes, is_now.attributes):
            found.append(Difference("modified", path, was, is_now, contents_differ=differ))
    found += [
        Difference("removed", path, old[path], None, contents_differ=True)
        for path in old.keys() - kept
    ]
    return sorted(found, key=lambda each: each.path)


def _attributes_differ(old: Attributes, new: Attributes) -> bool:
    return (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)


def _contents_differ(
    session: CommandSession, old: Node, new: Node, old_us: int | None, new_us: int | None
) -> bool:
    one, other = old.attributes, new.attributes
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        return True
    if stat.S_ISLNK(one.mode):
        target = session.link_target(old.identifier, old_us)
        return target != session.link_target(new.identifier, new_us)
    if not one.is_regular:
        return one.device != other.device
    if old.identifier == new.identifier and one.contents == other.contents:
        return False
    return one.size != other.size or session.contents(old.identifier, old_us) != session.contents(
        new.identifier, new_us
    )


# --- printing ------------------------------------------------------------------------------------


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
    old_name = _joined(before.path.name, each.old_path or each.path)
    new_name = _joined(after.path.name, each.path)
    if brief or before.attributes.is_directory:
        origin = f" (was {old_name})" if each.status == "renamed" else ""
        click.echo(f"{each.status:<8}  {new_name}{origin}")
    if brief:
        return
    if each.old is not None and each.new is not None:
        _print_attributes(each.old.attributes, each.new.attributes)
    if each.contents_differ:
        old = (each.old, before.time_us, old_name)
        _print_contents(session, old, (each.new, after.time_us, new_name))


_Side = tuple[Node | None, int | None, str]  # the object (None: not there), when, its name


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


def _print_attributes(old: Attributes, new: Attributes) -> None:
    modes = (stat.S_IMODE(old.mode), stat.S_IMODE(new.mode))
    if modes[0] != modes[1]:
        click.echo(f"mode {modes[0]:04o} -> {modes[1]:04o}")
    for name, was, is_now in (("uid", old.uid, new.uid), ("gid", old.gid, new.gid)):
        if was != is_now:
            click.echo(f"{name} {was} -> {is_now}")


def _joined(name: str, path: str) -> str:
    return f"{name}/{path}" if path else name
