"""`bftfs snapshot`: names for times."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import click

from bftfs.cli.command_session import CommandSession, session_at
from bftfs.cli.diff import diff
from bftfs.cli.options import json_option
from bftfs.cli.times import parse_time
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.time_names import format_time_name


@click.group()
def snapshot() -> None:
    """Give times names: nothing is copied, and .history/NAME shows the files of that time."""


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
@click.option("--at", default=None, help="A time in the past. [default: now]")
def create(mountpoint: str, name: str, at: str | None) -> None:
    """Give a time a name. The snapshot has all writes that were closed or synced by then."""
    with session_at(mountpoint) as session:
        if not name or "/" in name or parse_time(name, now_us=session.now_us) is not None:
            raise UsageError(_why_not(name, errno.EINVAL))
        _push(session)
        time_us = 0 if at is None else session.time(at)
        if at is not None:
            session.require_root(f"{name}: {at}", time_us)
        try:
            made = session.perform(
                session.history.create_snapshot(os.fsencode(name), session.who, time_us=time_us)
            )
        except FileSystemError as refusal:
            raise UsageError(_why_not(name, refusal.code), exit_code=1) from None
    click.echo(f"{name}: {format_time_name(made.time_us)}")


def _push(session: CommandSession) -> None:
    """Have the mount save all writes of its programs."""
    descriptor = os.open(session.mounted.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # a snapshot promises to have closed and synced writes only
    finally:
        os.close(descriptor)


@snapshot.command(name="list")
@click.argument("mountpoint", metavar="[MOUNT]", default=".")
@json_option
def list_(mountpoint: str, as_json: bool) -> None:
    """All snapshots, the oldest first."""
    with session_at(mountpoint) as session:
        found = session.perform(session.history.snapshots(session.who))
    rows = [
        {
            "name": os.fsdecode(each.name),
            "time": format_time_name(each.time_us),
            "uid": each.uid,
            "made": format_time_name(each.made_us),
        }
        for each in sorted(found, key=lambda each: each.time_us)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['time']}  uid {row['uid']:<5} {row['name']}")


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
def delete(mountpoint: str, name: str) -> None:
    """Delete a snapshot's name. The versions that it showed are kept as retention says."""
    with session_at(mountpoint) as session:
        try:
            session.perform(session.history.delete_snapshot(os.fsencode(name), session.who))
        except FileSystemError as refusal:
            raise UsageError(_why_not(name, refusal.code), exit_code=1) from None


@snapshot.command(name="diff")
@click.argument("path", metavar="PATH")
@click.argument("old")
@click.argument("new", required=False)
@click.option("--brief", "-q", is_flag=True, help="Print the paths that differ, not how.")
@click.pass_context
def diff_(context: click.Context, path: str, old: str, new: str | None, brief: bool) -> int:
    """Show what changed below PATH between two snapshots, or from one until now."""
    arguments = {"old": f"{Path(path)}@{old}", "brief": brief, "as_json": False}
    code: int = context.invoke(diff, new=None if new is None else f"@{new}", **arguments)
    return code


def _why_not(name: str, code: int) -> str:
    match code:
        case errno.EEXIST:
            return f"{name}: there is a snapshot of that name; delete it, or choose another name"
        case errno.ENOENT:
            return f"{name}: there is no such snapshot; `bftfs snapshot list` shows all"
        case errno.EINVAL:
            return (
                f"{name!r}: not a name for a snapshot: it is empty, looks like a time, begins with "
                "a dot, or has a slash; choose another name"
            )
        case errno.EPERM:
            return f"{name}: only its author or root may delete it; run this as one of them"
        case errno.EDQUOT:
            return f"{name}: there are too many snapshots; delete some first"
        case _:
            return f"{name}: {os.strerror(code)}"
