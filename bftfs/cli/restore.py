"""`bftfs restore`, `undelete`, `audit`, `undo`: bring back what was, take back what was done.

Old contents are read from the nodes, and written through the mount as by any program: with the
permissions of the user who runs the command, and as new versions. So a restore is part of the
history, and is undone by restoring the time before it. Existing files are written in place, so that
they keep their history. `undo` works on the nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Final, Protocol, TypeVar

import click

from bftfs import known_clients
from bftfs.cli.command_session import (
    CommandSession,
    Located,
    absolute,
    last_removal,
    refusals_explained,
    session_at,
)
from bftfs.cli.progress import Progress
from bftfs.cli.renaming import rename_to_free
from bftfs.conversation import Conversation
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId
from bftfs.limits import NAME_BYTES
from bftfs.printable import as_word, printable, printable_lines
from bftfs.restoration.changes import ChangeLog, read_changes, unreadable
from bftfs.restoration.name_plan import UndoStep
from bftfs.restoration.restore import InTheWay, PathStatus, Restoring
from bftfs.restoration.telling import audit_report
from bftfs.restoration.undo import Undo, carry_out
from bftfs.restoration.viewpoint import Reading

_PAUSE_US: Final = 5_000_000
_FORMS: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_Result = TypeVar("_Result")


class Elsewhere(Protocol):
    """Runs a function that may block, while conversations go on; `BlockingNetwork.elsewhere`."""

    def __call__(self, function: Callable[[], _Result]) -> Conversation[_Result]: ...


@click.command()
@click.argument("path", metavar="PATH@TIME")
@click.option("--to", "target", type=Path, default=None, help="Write it here instead of in place.")
@click.option("--delete", is_flag=True, help="In a tree: remove objects that did not exist then.")
def restore(path: str, target: Path | None, delete: bool) -> None:
    """Bring back a file or tree as it was at a time, or as a snapshot shows it.

    Objects that were made in a tree since then stay, unless --delete is given. Restoring makes new
    versions like any other change, and can be undone in the same way.

    Example: bftfs restore report.txt@yesterday
    """
    with session_at(path) as session:
        located = session.locate(path)
        if located.time_us is None:
            raise UsageError(
                f"{as_word(path)}: give a time, as in {as_word(f'{path}@yesterday')}; `bftfs log` "
                "shows the versions"
            )
        destination = located.path if target is None else _written_to(target, located)
        before = format_time_name(int(time.time() * 1e6))
        words = f"restore{' --delete' * delete}"
        to = "" if target is None else f" --to {as_word(target)}"
        at = f"{located.path}@{format_time_name(located.time_us)}"
        back = f"bftfs restore --delete {as_word(f'{destination}@{before}')}"
        is_new = not os.path.lexists(destination)
        restored = restore_tree(
            session,
            located,
            destination,
            delete=delete,
            replaces=target is None or delete,
            go_on=f"bftfs {words} {as_word(at)}{to}",
            go_back=f"rm -r {as_word(destination)}" if is_new else back if not to else None,
        )
    shown = as_word(destination)
    click.echo(f"{shown}: as of {format_time_name(located.time_us)}: {restored.counts}")
    if target is None and restored.counts:
        words = "restore --delete" if located.attributes.is_directory else "restore"
        click.echo(f"undo it with: bftfs {words} {as_word(f'{destination}@{before}')}")


@click.command()
@click.argument("path", metavar="PATH")
@click.option("--to", "target", type=Path, default=None, help="Write it here instead of in place.")
@click.option("--list", "listing", is_flag=True, help="List objects removed from directory PATH.")
def undelete(path: str, target: Path | None, listing: bool) -> None:
    """Bring back the last file or tree at PATH, as it was when it was removed.

    It appears at PATH when it is whole; until then it is in `.NAME.undeleting`. Interrupted, the
    same command goes on.

    Example: bftfs undelete ~/bftfs/photos
    """
    with session_at(path) as session:
        if listing:
            _list_removed(session, absolute(path))
            return
        full = absolute(path)
        _, gone_us = session.find(full)
        if gone_us is None:
            raise UsageError(
                f"{as_word(path)}: exists; use `bftfs restore {as_word(f'{path}@TIME')}` to bring "
                "back an older version"
            )
        located = _last_seen(session, full, gone_us)
        destination = full if target is None else _written_to(target, located)
        is_staged = target is None
        if is_staged:
            _require_directory(session, full)
        staged = unfinished(destination) if is_staged else destination
        is_there = os.path.lexists(staged)
        if is_staged and is_there:
            click.echo(f"going on with {as_word(staged)}", err=True)
        restored = restore_tree(
            session,
            located,
            staged,
            delete=False,
            replaces=False,
            go_on="the same command",
            go_back=f"rm -r {as_word(staged)}" if is_staged or not is_there else None,
        )
        if is_staged:
            _put_in_place(staged, destination)
    click.echo(
        f"{as_word(destination)}: as it was when it was removed, "
        f"{format_time_name(gone_us)}: {restored.counts}"
        + (f"; {restored.found} were there already" if is_staged and is_there else "")
    )


def _require_directory(session: CommandSession, path: Path) -> None:
    """Refuse a path whose directory is gone as well; the one that has to come back first."""
    gone = path
    while gone.parent != session.mounted.path and not gone.parent.is_dir():
        gone = gone.parent
    if gone != path:
        raise UsageError(
            f"{as_word(path)}: {as_word(gone)} is gone as well: bring that back, with all that was "
            f"in it (`bftfs undelete {as_word(gone)}`), or say with --to where this is to be",
            exit_code=1,
        )


def _put_in_place(staged: Path, destination: Path) -> None:
    """Give what is whole now its name, if nothing else has got that meanwhile."""
    try:
        rename_to_free(staged, destination)
    except FileExistsError:
        raise UsageError(
            f"{as_word(destination)}: there is something else by now; what was brought back is "
            f"whole, in {as_word(staged)}: move it to where you want it",
            exit_code=1,
        ) from None
    except FileNotFoundError:
        raise UsageError(
            f"{as_word(staged)}: is gone; perhaps another `bftfs undelete` has put it in its place",
            exit_code=1,
        ) from None


def _written_to(target: Path, located: Located) -> Path:
    """The path of `--to`, at which nothing is or an object of the same type."""
    path = absolute(str(target))
    try:
        there = stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return path  # whoever writes it is told why, if it cannot be
    form = stat.S_IFMT(located.attributes.mode)
    if there == form:
        return path
    inside = "" if there != stat.S_IFDIR else f", such as {as_word(path / located.path.name)}"
    raise UsageError(
        f"{as_word(path)}: is {_FORMS[there]}, and {located.shown} was {_FORMS[form]}; "
        f"choose another path with --to{inside}"
    )


def unfinished(path: Path) -> Path:
    """Where a file or tree is made that shall stand at `path` when it is whole."""
    end = b".undeleting"
    name = b"." + os.fsencode(path.name)[: NAME_BYTES - len(end) - 1] + end
    return path.with_name(os.fsdecode(name))


def _last_seen(session: CommandSession, path: Path, gone_us: int) -> Located:
    """The object at a path just before it was removed.

    A tree is removed from the leaves up, one name at a time. It is brought back as it was before
    its removal began: before the removals in it that preceded its own without a pause of more than
    `_PAUSE_US`.
    """
    located = session.locate_at(path, gone_us - 1)
    if not located.attributes.is_directory:
        return located
    removals: set[int] = set()
    level = [located.identifier]
    seen = set(level)
    with Progress("directories looked at:") as progress:
        while level:
            histories = session.changes_of(level)
            progress(len(seen))
            level = []
            for change in chain.from_iterable(histories):
                for _, entry in change.entries:
                    if entry is None:
                        removals.add(change.time_us)
                    elif entry.child not in seen and entry.file_type == stat.S_IFDIR >> 12:
                        seen.add(entry.child)
                        level.append(entry.child)
    begun_us = gone_us
    for removed_us in sorted(removals, reverse=True):
        if begun_us - removed_us > _PAUSE_US:
            break
        begun_us = min(begun_us, removed_us)
    return session.locate_at(path, begun_us - 1)


def _list_removed(session: CommandSession, path: Path) -> None:
    identifier, _ = session.find(path)
    changes = list(session.changes(identifier))
    newest = dict(entry for change in reversed(changes) for entry in change.entries)
    removed = [(last_removal(changes, name), name) for name in newest if newest[name] is None]
    rows = [(last[1], os.fsdecode(name)) for last, name in removed if last is not None]
    for gone_us, shown in sorted(rows, reverse=True):
        click.echo(f"{format_time_name(gone_us)}  {as_word(path / shown)}")


def restore_tree(
    session: CommandSession,
    located: Located,
    target: Path,
    *,
    delete: bool,
    replaces: bool,
    go_on: str,
    go_back: str | None,
) -> Restoring:
    """Make `target` equal to `located`.

    `replaces` says whether what is in the way, of another type, is removed; else it is an error.

    A user who interrupts it, or whom an error stops, is told what has been done, how to `go_on`,
    and how to `go_back`, if that is possible.
    """
    with Progress("restored") as progress:
        there = PathTarget(target, session.network.elsewhere)
        restoring = Restoring(
            session.view, there, located.time_us, replaces=replaces, told=progress
        )

        def so_far() -> str:
            back = "" if go_back is None else f"; go back with: {go_back}"
            return f"{progress}: {restoring.counts}; go on with: {go_on}{back}"

        try:
            with refusals_explained(located.shown):
                session.perform(restoring.restore(located.node, delete=delete))
        except InTheWay as found:
            raise UsageError(
                f"{as_word(target / found.path)}: is {_FORMS[found.there]}, and was "
                f"{_FORMS[found.wanted]}; move it away, or choose another path with --to; "
                f"{so_far()}",
                exit_code=1,
            ) from None
        except OSError as error:
            raise UsageError(
                f"{as_word(error.filename or target)}: {error.strerror}; {so_far()}", exit_code=1
            ) from None
        except KeyboardInterrupt:
            click.echo(printable_lines(f"\nbftfs: {so_far()}"), err=True)
            raise
    return restoring


class PathTarget:
    """A path on this machine, as any program writes to it; see `restoration.restore.Target`.

    What may block is done by threads, so that several files are written at the same time.
    """

    def __init__(self, path: Path, elsewhere: Elsewhere) -> None:
        self._path = path
        self._elsewhere = elsewhere

    def _at(self, path: str) -> Path:
        return self._path / path if path else self._path

    async def status(self, path: str) -> PathStatus | None:
        """The status of the object there, if there is one."""
        try:
            found = await self._elsewhere(self._at(path).lstat)
        except FileNotFoundError:
            return None
        return PathStatus(
            (found.st_dev, found.st_ino),
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_size,
            found.st_mtime_ns,
        )

    async def names(self, path: str) -> list[str]:
        """The names in a directory."""
        return await self._elsewhere(partial(os.listdir, self._at(path)))

    async def remove(self, path: str) -> None:
        """Remove an object; a directory with all that is in it."""
        await self._elsewhere(partial(_remove, self._at(path)))

    async def make_directory(self, path: str) -> None:
        """Make a directory."""
        await self._elsewhere(partial(os.mkdir, self._at(path), 0o700))

    async def make_node(self, path: str, mode: int, device: int) -> None:
        """Make a special file."""
        await self._elsewhere(partial(os.mknod, self._at(path), mode, device))

    async def make_symlink(self, path: str, leads_to: bytes) -> None:
        """Make a symlink."""
        await self._elsewhere(partial(os.symlink, leads_to, os.fsencode(self._at(path))))

    async def leads_to(self, path: str) -> bytes:
        """The target of a symlink."""
        return await self._elsewhere(partial(os.readlink, os.fsencode(self._at(path))))

    async def link(self, first: str, path: str) -> None:
        """Give an object another name."""
        await self._elsewhere(partial(os.link, self._at(first), self._at(path)))

    async def holds(self, path: str, reading: Reading) -> bool:
        """True if the file has the contents that are read."""
        with await self._elsewhere(lambda: self._at(path).open("rb")) as file:
            while piece := await reading.next():
                if await self._elsewhere(partial(file.read, len(piece))) != piece:
                    return False
        return True

    async def write(self, path: str, reading: Reading, attributes: Attributes) -> None:
        """Write the contents that are read to the file, and set owner, mode and times.

        A mount sends attributes that are set before the file is closed together with the contents.
        So a file that has its time has its contents.
        """
        file, found = await self._elsewhere(partial(_opened, self._at(path)))
        with file:
            while piece := await reading.next():
                await self._elsewhere(partial(_write, file, piece))
            await self._elsewhere(partial(_finish, file, found, attributes))

    async def change_owner(self, path: str, uid: int, gid: int) -> bool:
        """Set the owner, if that is permitted."""
        change = partial(os.chown, self._at(path), uid, gid, follow_symlinks=False)
        return await self._elsewhere(partial(_if_permitted, change))

    async def change_mode(self, path: str, mode: int) -> None:
        """Set the permission bits."""
        await self._elsewhere(partial(os.chmod, self._at(path), mode))

    async def change_times(self, path: str, *, atime_ns: int, mtime_ns: int) -> None:
        """Set the times."""
        times = (atime_ns, mtime_ns)
        await self._elsewhere(partial(os.utime, self._at(path), ns=times, follow_symlinks=False))

    async def extended(self, path: str) -> dict[bytes, bytes]:
        """The extended attributes of an object."""
        return await self._elsewhere(partial(_extended, self._at(path)))

    async def change_extended(self, path: str, name: bytes, value: bytes | None) -> bool:
        """Set or remove an extended attribute, if that is permitted."""
        change = partial(os.removexattr, self._at(path), name)
        if value is not None:
            change = partial(os.setxattr, self._at(path), name, value)
        return await self._elsewhere(partial(_if_permitted, change))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _opened(path: Path) -> tuple[FileIO, os.stat_result]:
    """A file to be written, made if need be, and its status."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    file = FileIO(descriptor, "w")
    return file, os.fstat(descriptor)


def _write(file: FileIO, data: bytes) -> None:
    """Write all of it where the last write has ended."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _finish(file: FileIO, found: os.stat_result, attributes: Attributes) -> None:
    """Cut off what is behind the last write, set the attributes, and close the file.

    `found` is its status from before it was written.
    """
    if found.st_size > file.tell():
        file.truncate()
    changes_owner = (found.st_uid, found.st_gid) != (attributes.uid, attributes.gid)
    if changes_owner:
        _if_permitted(partial(os.fchown, file.fileno(), attributes.uid, attributes.gid))
    mode = stat.S_IMODE(attributes.mode)
    if changes_owner or stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(file.fileno(), mode)
    os.utime(file.fileno(), ns=(attributes.atime_ns, attributes.mtime_ns))
    file.close()


def _extended(path: Path) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}


def _if_permitted(action: Callable[[], None]) -> bool:
    """Perform the action; False if it is not permitted."""
    try:
        action()
    except PermissionError:
        return False
    return True


# --- audit ----------------------------------------------------------------------------------

_whose = click.option(
    "--client",
    required=True,
    help="Whose changes: a client's name, id (or its beginning), or NAME:ID; also if revoked.",
)


@click.command()
@click.argument("path", metavar="[PATH]", default=".")
@click.option(
    "--client",
    required=True,
    help="Whose changes: a client's name, id, or NAME:ID; revoked or not.",
)
@click.option("--since", required=True, help="A time: '2 hours ago', 2026-11-21T10:02 …")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(path: str, client: str, since: str, as_json: bool) -> None:
    """List what a client has changed below PATH since a time, and what others built on it.

    Reads what it has written to files, and marks changes that have named what cannot be read.

    Example: bftfs audit team --client laptop --since '2 hours ago'
    """
    with session_at(path) as session:
        log = _read_changes(session, path, client, since)
        with Progress("blocks read:") as progress:
            missing = session.perform(unreadable(log, session.view, told=progress))
        report = audit_report(log, missing, label=client, client_name=session.client_name)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    changes, built_on = report["changes"], report["built_on"]
    for title, rows in (
        (f"{len(changes)} changes by {client}", changes),
        (f"{len(built_on)} later changes by others to the same things", built_on),
    ):
        click.echo(f"{title}{':' if rows else '.'}")
        for row in rows:
            uid = "?" if row["uid"] is None else row["uid"]
            click.echo(
                f"  {row['time']}  {row['client']:<12} uid {uid:<5} "
                f"{row['operation']:<28} {as_word(row['path'])}"
            )


# --- undo -----------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="[PATH]", default=".")
@click.option(
    "--client",
    required=True,
    help="Whose changes: a client's name, id, or NAME:ID; revoked or not.",
)
@click.option("--since", required=True, help="A time: '2 hours ago', 2026-11-21T10:02 …")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be done.")
def undo(path: str, client: str, since: str, dry_run: bool) -> int:
    """Take back what a client has changed below PATH since a time; keep what others did.

    Where both have changed the same thing, what is there stays, and what was there before the
    client's change is put beside it. Ends with 1 if there are such conflicts. Interrupted, the same
    command goes on.

    Example: bftfs undo team --client laptop --since '2 hours ago' --dry-run
    """
    with session_at(path) as session:
        log = _read_changes(session, path, client, since)
        before = format_time_name(int(time.time() * 1e6))
        with Progress("compared") as comparing:
            finding = Undo(session.view, log, label=client).steps(told=comparing)
            steps = session.perform(finding)
        done = failed = 0

        def told(step: UndoStep, failure: Exception | None) -> None:
            nonlocal done, failed
            done += 1
            mark = "conflict: " if step.conflict else ""
            if failure is None:
                click.echo(f"{mark}{step.what}")
            else:
                failed += 1
                click.echo(f"not done: {step.what} ({printable(str(failure))})")

        if dry_run:
            for step in steps:
                told(step, None)
        else:
            try:
                session.perform(carry_out(steps, told))
            except KeyboardInterrupt:
                click.echo(
                    f"\nbftfs: {done} of {len(steps)} taken back; the same command goes on; what "
                    f"was before this: .history/{before}",
                    err=True,
                )
                raise
    conflicts = sum(step.conflict for step in steps)
    words = "would be taken back" if dry_run else "taken back"
    click.echo(
        f"{len(steps) - conflicts - failed} {words}, {conflicts} conflicts"
        + (f", {failed} not done: run it again" if failed else "")
    )
    if steps and not dry_run:
        click.echo(f"what was before this: .history/{before}")
    return 1 if conflicts or failed else 0


# --- whose changes --------------------------------------------------------------------------


def _read_changes(session: CommandSession, path: str, client: str, since: str) -> ChangeLog:
    root = session.locate(path)
    whose, since_us = client_called(session, client), session.time(since)
    try:
        with Progress("looked at") as progress:
            return session.perform(
                read_changes(
                    session.view,
                    root.identifier,
                    path=str(root.path),
                    client=whose,
                    since_us=since_us,
                    told=progress,
                )
            )
    except FileSystemError as refusal:
        raise UsageError(
            f"you may not read everything there ({refusal}): run this as root", exit_code=1
        ) from None


def client_called(session: CommandSession, text: str) -> ClientId:
    """The client that `text` names: present or past, or one whose key is still here."""
    description = session.description
    if all(each.name != text for each in known_clients.known_clients(description)):
        key = session.directory.client_key(text)
        if "/" not in text and key.exists():
            # It was revoked before descriptions remembered that.
            return client_id_of(public_key=read_identity(key).public_key)
    return known_clients.client_called(description, text)
