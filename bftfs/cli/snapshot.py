"""`bftfs snapshot`: names for times."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import click

from bftfs.cli.command_session import CommandSession, session_at
from bftfs.cli.diff import diff
from bftfs.cli.times import parse_time
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.time_names import format_time_name


@click.group()
def snapshot() -> None:
    """Names for times: nothing is copied, and .history/NAME shows what was then."""


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
@click.option("--at", default=None, help="Name a time of the past; by default this moment.")
def create(mountpoint: str, name: str, at: str | None) -> None:
    """Give a time a name. What is closed or synced by then belongs to it."""
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
    """Have the mount save what its programs have written."""
    descriptor = os.open(session.mounted.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # what is not closed or synced is not promised to be part of it
    finally:
        os.close(descriptor)


@snapshot.command(name="list")
@click.argument("mountpoint", metavar="[MOUNT]", default=".")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
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
    """Take a name away. The history that it showed stays as long as it is kept."""
    with session_at(mountpoint) as session:
        try:
            session.perform(session.history.delete_snapshot(os.fsencode(name), session.who))
        except FileSystemError as refusal:
            raise UsageError(_why_not(name, refusal.code), exit_code=1) from None


@snapshot.command(name="diff")
@click.argument("path", metavar="PATH")
@click.argument("old")
@click.argument("new", required=False)
@click.option("--brief", "-q", is_flag=True, help="Only which paths differ, not how.")
@click.pass_context
def diff_(context: click.Context, path: str, old: str, new: str | None, brief: bool) -> int:
    """What changed below PATH between two snapshots, or from one until now."""
    arguments = {"old": f"{Path(path)}@{old}", "brief": brief, "as_json": False}
    code: int = context.invoke(diff, new=None if new is None else f"@{new}", **arguments)
    return code


def _why_not(name: str, code: int) -> str:
    match code:
        case errno.EEXIST:
            return f"{name}: there is a snapshot of that name; delete it, or choose another one"
        case errno.ENOENT:
            return f"{name}: there is no such snapshot; `bftfs snapshot list` shows all"
        case errno.EINVAL:
            return (
                f"{name!r}: not a name for a snapshot: it is empty, looks like a time, begins with "
                "a dot, or has a slash"
            )
        case errno.EPERM:
            return f"{name}: only its author, or root, may delete it"
        case errno.EDQUOT:
            return f"{name}: there are too many snapshots; delete some that nobody needs"
        case _:
            return f"{name}: {os.strerror(code)}"
