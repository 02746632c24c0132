"""`bftfs retention` and `bftfs snapshot`: which old versions are kept, and names for times."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

import click

from bftfs.cli.command_session import CommandSession, refusals_explained, session_at
from bftfs.cli.options import json_option
from bftfs.cli.progress import Progress
from bftfs.cli.times import says_time
from bftfs.cli.versions import diff
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.file_history import in_batches
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ObjectId
from bftfs.printable import printable
from bftfs.retention import Policy, format_duration, parse_policy

# --- retention --------------------------------------------------------------------------------


@click.group()
def retention() -> None:
    """Choose which old versions are kept. Versions within the detection window always are."""


@retention.command()
@click.argument("path", metavar="PATH")
@json_option
def show(path: str, as_json: bool) -> None:
    """The policy of a file or directory.

    Example: bftfs retention show photos
    """
    with session_at(path) as session:
        located = session.locate(path)
        policy = session.perform(session.history.retention(located.identifier, session.who))
        window = format_duration(session.description.window_us)
    if as_json:
        click.echo(json.dumps({"path": located.shown, "policy": str(policy), "window": window}))
        return
    click.echo(f"{printable(located.shown)}: {policy}")
    click.echo(f"the detection window is {window}: younger versions are always kept")


@retention.command(name="set")
@click.argument("path", metavar="PATH")
@click.argument("policy")
@click.option("--only", is_flag=True, help="Leave objects that are already in PATH alone.")
def set_(path: str, policy: str, only: bool) -> None:
    """Set the POLICY of PATH, of all objects in it, and of those that will be made in it.

    A policy is a list of all, hourly, daily and weekly, each with the age up to which it holds, or
    without one: `all 30d, hourly 60d, daily 1y, weekly`. `none` (or 0) keeps only the detection
    window. Without a policy, all versions are kept until a node is short of room. A change
    takes effect once the detection window has passed.

    Example: bftfs retention set photos 'all 30d, daily 1y'
    """
    chosen = parse_policy(policy)
    with session_at(path) as session:
        located = session.locate(path)
        if located.time_us is not None:
            raise UsageError(f"{located.shown}: the past cannot be changed; name the path alone")
        window_us = session.description.window_us
        changed = [located.identifier]
        if located.attributes.is_directory and not only:
            found = session.tree(located).values()
            changed = list(dict.fromkeys(node.identifier for node in found))
        refused = _apply(session, changed, chosen)
    done = len(changed) - refused
    click.echo(f"{printable(located.shown)}: {chosen} ({done} objects)")
    if chosen.longest_us is not None and chosen.longest_us < window_us:
        click.echo(
            f"the detection window is {format_duration(window_us)}: younger versions are kept "
            "whatever the policy says"
        )
    if refused:
        raise UsageError(
            f"{refused} objects are not yours and keep their policy; run this as their owner",
            exit_code=1,
        )


def _apply(session: CommandSession, objects: list[ObjectId], policy: Policy) -> int:
    """Set the policy of all `objects`. Gives the number of refusals."""
    given = 0

    async def give(identifier: ObjectId) -> bool:
        nonlocal given
        given += 1
        progress(given, len(objects))
        try:
            await session.history.set_retention(identifier, policy, session.who)
        except FileSystemError as refusal:
            if refusal.code not in {errno.EPERM, errno.ESTALE}:
                raise UsageError(os.strerror(refusal.code), exit_code=1) from None
            return refusal.code == errno.ESTALE  # it is gone meanwhile
        return True

    with Progress("set the policy of") as progress:
        answers = session.perform(in_batches([partial(give, each) for each in objects]))
    return answers.count(False)


# --- snapshots --------------------------------------------------------------------------------


@click.group()
def snapshot() -> None:
    """Give times names: nothing is copied, and .history/NAME shows the files of that time."""


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
@click.option("--at", default=None, help="A time in the past. [default: now]")
def create(mountpoint: str, name: str, at: str | None) -> None:
    """Give a time a name. The snapshot has all writes that were closed or synced by then.

    Example: bftfs snapshot create . before-the-upgrade
    """
    with session_at(mountpoint) as session:
        if not name or "/" in name or says_time(name, now_us=session.now_us):
            raise UsageError(f"{name!r}: {_WHY_NOT[errno.EINVAL]}")
        _push(session)
        time_us = 0 if at is None else session.time(at)
        if at is not None:
            session.require_root(f"{name}: {at}", time_us)
        with refusals_explained(name, _WHY_NOT):
            made = session.perform(
                session.history.create_snapshot(os.fsencode(name), session.who, time_us=time_us)
            )
    click.echo(f"{printable(name)}: {format_time_name(made.time_us)}")


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
    """All snapshots, the oldest first.

    Example: bftfs snapshot list
    """
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
        click.echo(f"{row['time']}  uid {row['uid']:<5} {printable(str(row['name']))}")


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
def delete(mountpoint: str, name: str) -> None:
    """Delete a snapshot's name. The versions that it showed are kept as retention says.

    Example: bftfs snapshot delete . before-the-upgrade
    """
    with session_at(mountpoint) as session, refusals_explained(name, _WHY_NOT):
        session.perform(session.history.delete_snapshot(os.fsencode(name), session.who))


@snapshot.command(name="diff")
@click.argument("path", metavar="PATH")
@click.argument("old")
@click.argument("new", required=False)
@click.option("--brief", "-q", is_flag=True, help="Print the paths that differ, not how.")
@click.pass_context
def diff_(context: click.Context, path: str, old: str, new: str | None, brief: bool) -> int:
    """Show what changed below PATH between two snapshots, or from one until now.

    Example: bftfs snapshot diff . before-the-upgrade
    """
    later = None if new is None else f"@{new}"
    old = f"{Path(path)}@{old}"
    code: int = context.invoke(diff, old=old, new=later, brief=brief, as_json=False)
    return code


_WHY_NOT = {
    errno.EEXIST: "there is a snapshot of that name; delete it, or choose another name",
    errno.ENOENT: "there is no such snapshot; `bftfs snapshot list` shows all",
    errno.EINVAL: "not a name for a snapshot: it is empty, looks like a time, begins with a dot, "
    "or has a slash; choose another name",
    errno.EPERM: "only its author or root may delete it; run this as one of them",
    errno.EDQUOT: "there are too many snapshots; delete some first",
}
