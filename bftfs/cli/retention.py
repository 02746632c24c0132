"""`bftfs retention` and `bftfs snapshot`: which old versions are kept, and names for times."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

import click

from bftfs.cli.command_session import (
    CommandSession,
    absolute,
    refusals_explained,
    session_at,
)
from bftfs.cli.decisions import tell_decisions
from bftfs.cli.options import json_option
from bftfs.cli.progress import Progress
from bftfs.cli.times import says_time
from bftfs.cli.versions import diff
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.file_history import several_at_once
from bftfs.filesystem.schedule import Rule, parse_rules
from bftfs.filesystem.time_names import format_time_name, format_utc
from bftfs.filesystem.volume import LABEL_BYTES, PATH_BYTES, Made, Schedule, ScheduleSetting
from bftfs.identifiers import ObjectId
from bftfs.printable import as_word
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
        let_go = session.let_go()
    if as_json:
        click.echo(json.dumps({"path": located.given, "policy": str(policy), "window": window}))
        return
    click.echo(f"{located.shown}: {policy}")
    answer = "always kept" if not let_go else "kept, except what was let go"
    click.echo(f"the detection window is {window}: younger versions are {answer}")
    tell_decisions(session.description, let_go)


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
    click.echo(f"{located.shown}: {chosen} ({done} objects)")
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
        answers = session.perform(several_at_once([partial(give, each) for each in objects]))
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
            raise UsageError(f"{as_word(name)}: {_WHY_NOT[errno.EINVAL]}")
        push_writes(session)
        time_us = 0 if at is None else session.time(at)
        if at is not None:
            session.require_root(f"{as_word(name)}: {at}", time_us)
        with refusals_explained(as_word(name), _WHY_NOT):
            made = session.perform(
                session.history.create_snapshot(os.fsencode(name), session.who, time_us=time_us)
            )
    click.echo(f"{as_word(name)}: {format_time_name(made.time_us)}")


def push_writes(session: CommandSession) -> None:
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
        schedules = session.perform(session.history.schedules(session.who))
    made_by = {made: _path_of(session, each) for each in schedules for made in each.made}
    rows = [
        {
            "name": os.fsdecode(each.name),
            "time": format_time_name(each.time_us),
            "uid": each.uid,
            "made": format_time_name(each.made_us),
            "schedule": made_by.get(Made(each.name, each.made_us)),
        }
        for each in sorted(found, key=lambda each: each.time_us)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        by = f"  (schedule of {as_word(str(row['schedule']))})" if row["schedule"] else ""
        click.echo(f"{row['time']}  uid {row['uid']:<5} {as_word(str(row['name']))}{by}")


@snapshot.command()
@click.argument("mountpoint", metavar="MOUNT")
@click.argument("name")
def delete(mountpoint: str, name: str) -> None:
    """Delete a snapshot's name. The versions that it showed are kept as retention says.

    Example: bftfs snapshot delete . before-the-upgrade
    """
    with session_at(mountpoint) as session, refusals_explained(as_word(name), _WHY_NOT):
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


# --- schedules --------------------------------------------------------------------------------


@snapshot.command()
@click.argument("path", metavar="[PATH]", required=False)
@click.argument("rules", metavar="[RULES]", required=False)
@click.option("--name", default=None, help="Begin snapshots' names so. [default: PATH's name]")
@click.option("--remove", is_flag=True, help="Remove your schedule of PATH; its snapshots stay.")
@json_option
def schedule(
    path: str | None, rules: str | None, name: str | None, remove: bool, as_json: bool
) -> None:
    """Have snapshots made for directory PATH, and let go, by RULES; without RULES, list schedules.

    A rule is `every TIME keep NUMBER`: one snapshot in each TIME, of which the latest NUMBER are
    kept. `bftfs snapshot run` makes what is due: have cron or a systemd timer run that. All
    machines that mount the file system see the schedules; each user has schedules of their own.

    Example: bftfs snapshot schedule photos 'every 1h keep 24, every 1d keep 30'
    """
    if rules is None and not remove:
        if name is not None:
            raise UsageError("--name: give rules as well, such as 'every 1h keep 24'")
        with session_at(path or ".") as session:
            _list_schedules(session, _schedules_below(session, path), as_json=as_json)
        return
    if remove == (rules is not None) or path is None:
        raise UsageError("name a directory, and either rules or --remove")
    with session_at(path) as session:
        if remove:
            _remove_schedule(session, path)
        else:
            _set_schedule(session, path, parse_rules(rules or ""), name)


def _set_schedule(
    session: CommandSession, path: str, rules: tuple[Rule, ...], name: str | None
) -> None:
    located = session.locate(path)
    if located.time_us is not None or not located.attributes.is_directory:
        raise UsageError(f"{located.shown}: not a directory of the present; name one")
    place = b"/" + os.fsencode("/".join(session.names(located.path)))
    label = os.fsencode(located.path.name if name is None else name)
    example = os.fsdecode(label + b"-" + format_utc(session.now_us).encode())
    if not label or len(label) > LABEL_BYTES or says_time(example, now_us=session.now_us):
        raise UsageError(
            f"{os.fsdecode(label)!r}: snapshots' names cannot begin so (empty, looks like a time, "
            f"or longer than {LABEL_BYTES} bytes); choose another beginning with --name"
        )
    setting = ScheduleSetting(located.identifier, label, place[:PATH_BYTES], rules)
    with refusals_explained(as_word(located.path), _WHY_NOT_SCHEDULED):
        session.perform(session.history.set_schedule(setting, session.who))
    click.echo(
        f"{as_word(located.path)}: {', '.join(map(str, rules))}; "
        "`bftfs snapshot run` makes what is due"
    )


def _remove_schedule(session: CommandSession, path: str) -> None:
    """Remove the user's schedule of the directory that is at a path, or was when it was set."""
    full = absolute(path)
    place = b"/" + os.fsencode("/".join(session.names(full)))
    try:
        directory = session.locate_at(full, None).identifier
    except UsageError:
        directory = None
    own = [each for each in _schedules(session) if each.uid == session.who.uid]
    at_path = [each for each in own if each.directory == directory]
    found = at_path or [each for each in own if each.path == place]
    if not found:
        raise UsageError(
            f"{as_word(full)}: you have no schedule for it; `bftfs snapshot schedule` lists all",
            exit_code=1,
        )
    with refusals_explained(as_word(full), _WHY_NOT_SCHEDULED):
        session.perform(session.history.delete_schedule(found[0], session.who))
    click.echo(
        f"{as_word(full)}: no schedule any more; its {len(found[0].made)} snapshots stay "
        "(`bftfs snapshot delete` removes one)"
    )


def _schedules(session: CommandSession) -> tuple[Schedule, ...]:
    return session.perform(session.history.schedules(session.who))


def _schedules_below(session: CommandSession, path: str | None) -> list[Schedule]:
    """The schedules of a directory and of those below it; of the whole file system for None."""
    if path is None:
        return list(_schedules(session))
    top = session.names(absolute(path))
    return [
        each
        for each in _schedules(session)
        if Path(os.fsdecode(each.path)).parts[1 : 1 + len(top)] == top
    ]


def _path_of(session: CommandSession, each: Schedule) -> str:
    """Where the directory was when the rules were set, in this mount."""
    return str(session.mounted.path / os.fsdecode(each.path).lstrip("/"))


def _list_schedules(session: CommandSession, found: list[Schedule], *, as_json: bool) -> None:
    rows = [
        {
            "path": _path_of(session, each),
            "uid": each.uid,
            "rules": ", ".join(map(str, each.rules)),
            "name": os.fsdecode(each.label),
            "snapshots": [os.fsdecode(made.name) for made in each.made],
            "latest": format_time_name(each.made[-1].made_us) if each.made else None,
        }
        for each in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row, each in zip(rows, found, strict=True):
        latest = f", the latest of {row['latest']}" if each.made else ""
        click.echo(
            f"{as_word(str(row['path']))}  uid {each.uid}: {row['rules']} "
            f"({len(each.made)} snapshots{latest})"
        )
    if not rows:
        click.echo("no schedules; `bftfs snapshot schedule PATH RULES` makes one", err=True)


@snapshot.command()
@click.argument("path", metavar="[PATH|all]", default="all")
def run(path: str) -> None:
    """Make the snapshots that are due, and remove those that no rule keeps any more.

    Follows your schedules of PATH and of directories below it, and everybody's if you are root;
    without PATH, or with `all`, those of the whole file system that you are in. Running it again
    changes nothing. What was missed is made up for by one snapshot. Only snapshots that the
    schedule has made are removed.

    Example: bftfs snapshot run
    """
    place = "." if path == "all" else path
    failures = 0
    with session_at(place) as session:
        found = [
            each
            for each in _schedules_below(session, None if path == "all" else path)
            if session.who.uid in (0, each.uid)
        ]
        if found:
            push_writes(session)
        for each in found:
            failures += not _follow(session, each)
    if not found:
        click.echo("no schedules; `bftfs snapshot schedule PATH RULES` makes one", err=True)
    if failures:
        raise UsageError(f"{failures} of {len(found)} schedules could not be followed", exit_code=1)


def _follow(session: CommandSession, each: Schedule) -> bool:
    """Follow one schedule, and say what it changed. False if that failed."""
    shown = as_word(_path_of(session, each))
    history, who = session.history, session.who
    try:
        session.perform(session.files.attributes(each.directory, who))
    except FileSystemError as refusal:
        if refusal.code not in (errno.ESTALE, errno.ENOENT):
            raise
        click.echo(f"{shown}: is gone; `bftfs snapshot schedule --remove {shown}`", err=True)
        return True
    try:
        followed = session.perform(history.follow_schedule(each, who))
    except FileSystemError as refusal:
        if refusal.code == errno.ENOENT:
            return True  # somebody has removed it meanwhile
        why = _WHY_NOT_SCHEDULED.get(refusal.code, os.strerror(refusal.code))
        click.echo(f"bftfs: {shown}: {why}", err=True)
        return False
    if followed.made is not None:
        click.echo(f"{shown}: made {as_word(followed.made.name)}")
    for name in followed.removed:
        click.echo(f"{shown}: removed {as_word(name)}")
    return True


_WHY_NOT_SCHEDULED = {
    errno.EDQUOT: "its user has too many snapshots or schedules; delete some "
    "(`bftfs snapshot list`, `bftfs snapshot schedule`)",
    errno.EINVAL: "snapshots' names cannot begin so (a dot, a slash, or a time); choose another "
    "beginning with --name",
    errno.ENOENT: "there is no such schedule; `bftfs snapshot schedule` lists all",
}
_WHY_NOT = {
    errno.EEXIST: "there is a snapshot of that name; delete it, or choose another name",
    errno.ENOENT: "there is no such snapshot; `bftfs snapshot list` shows all",
    errno.EINVAL: "not a name for a snapshot: it is empty, looks like a time, begins with a dot, "
    "or has a slash; choose another name",
    errno.EPERM: "only its author or root may delete it; run this as one of them",
    errno.EDQUOT: "there are too many snapshots; delete some first",
}
