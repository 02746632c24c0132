"""`bftfs restore` and `bftfs undelete`: bring back what was.

What was is read from the nodes, and written through the mount, as any program writes: with the
permissions of who runs the command, and as new versions. So a restore is history itself, and undone
by restoring the time before it. A file that is there is written in place: its history goes on.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import click

from bftfs.cli.past import Located, Node, Session, absolute, last_removal, session_at
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.moments import format_moment

_UNTOUCHED = (b"system.posix_acl_access", b"system.posix_acl_default")


@click.command()
@click.argument("path", metavar="PATH@TIME")
@click.option("--to", "target", type=Path, default=None, help="Write it here instead of in place.")
@click.option("--delete", is_flag=True, help="Of a tree: also remove what was not there then.")
def restore(path: str, target: Path | None, delete: bool) -> None:
    """Bring back a file or tree as it was at a time, or as a snapshot shows it.

    What has been made in a tree since stays, unless --delete is given. Restoring is a change like
    any other: it can be looked at and undone in the same way.
    """
    with session_at(path) as session:
        located = session.locate(path)
        if located.time_us is None:
            raise UsageError(f"{path}: say which time, as in {path}@yesterday; see `bftfs log`")
        destination = located.path if target is None else target.absolute()
        before = format_moment(int(time.time() * 1e6))
        counts = restore_tree(session, located, destination, delete=delete)
    click.echo(f"{destination}: as of {format_moment(located.time_us)}: {counts}")
    if target is None and counts:
        words = "restore --delete" if located.attributes.is_directory else "restore"
        click.echo(f"undo it with: bftfs {words} '{destination}@{before}'")


@click.command()
@click.argument("path", metavar="PATH")
@click.option("--to", "target", type=Path, default=None, help="Write it here instead of in place.")
@click.option("--list", "listing", is_flag=True, help="List what was removed from directory PATH.")
def undelete(path: str, target: Path | None, listing: bool) -> None:
    """Bring back the file or tree that stood at PATH last, as it was when it was removed."""
    with session_at(path) as session:
        if listing:
            _list_removed(session, absolute(path))
            return
        full = absolute(path)
        _, gone_us = session.find(full)
        if gone_us is None:
            raise UsageError(f"{path}: it is there; `bftfs restore PATH@TIME` goes back in time")
        located = _last_seen(session, full, gone_us)
        destination = full if target is None else target.absolute()
        counts = restore_tree(session, located, destination, delete=False)
    click.echo(f"{destination}: as it was when it was removed, {format_moment(gone_us)}: {counts}")


def _last_seen(session: Session, path: Path, gone_us: int) -> Located:
    """What stood at a path just before it was removed.

    A tree is removed from the leaves up, one name at a time. What is brought back is the tree as it
    was before its removal began: before the removals in it that led up to its own without a pause
    of more than `_PAUSE_US`.
    """
    located = session.locate_at(path, gone_us - 1)
    if not located.attributes.is_directory:
        return located
    begun_us = _removal_began(session, located, gone_us)
    return session.locate_at(path, begun_us - 1)


_PAUSE_US = 5_000_000


def _removal_began(session: Session, located: Located, gone_us: int) -> int:
    removals = [gone_us]
    waiting = [located.identifier]
    seen = set(waiting)
    while waiting:
        for change in session.changes(waiting.pop()):
            for _, entry in change.entries:
                if entry is None:
                    removals.append(change.time_us)
                elif entry.child not in seen and entry.file_type == stat.S_IFDIR >> 12:
                    seen.add(entry.child)
                    waiting.append(entry.child)
    begun_us = gone_us
    for removed_us in sorted(set(removals), reverse=True):
        if removed_us <= begun_us:
            if begun_us - removed_us > _PAUSE_US:
                break
            begun_us = removed_us
    return begun_us


def _list_removed(session: Session, path: Path) -> None:
    identifier, _ = session.find(path)
    changes = session.changes(identifier)
    there: set[bytes] = set()
    for name in {name for change in changes for name, _ in change.entries}:
        newest = next(
            entry for change in changes for changed, entry in change.entries if changed == name
        )
        if newest is not None:
            there.add(name)
    rows = []
    for name in {name for change in changes for name, _ in change.entries} - there:
        last = last_removal(changes, name)
        if last is not None:
            rows.append((last[1], os.fsdecode(name)))
    for gone_us, shown in sorted(rows, reverse=True):
        click.echo(f"{format_moment(gone_us)}  {path / shown}")


class Counts:
    """What a restore has changed."""

    def __init__(self) -> None:
        self.written = self.made = self.removed = self.changed = 0

    def __bool__(self) -> bool:
        return bool(self.written or self.made or self.removed or self.changed)

    def __str__(self) -> str:
        words = [
            f"{count} {what}"
            for count, what in (
                (self.made, "made"),
                (self.written, "rewritten"),
                (self.changed, "with other attributes"),
                (self.removed, "removed"),
            )
            if count
        ]
        return ", ".join(words) if words else "nothing had to be changed"


def restore_tree(session: Session, located: Located, target: Path, *, delete: bool) -> Counts:
    """Make what is at `target` what was `located`."""
    counts = Counts()
    try:
        if located.attributes.is_directory:
            tree = session.tree(located)
        else:
            tree = {"": Node(located.identifier, located.attributes)}
        links: dict[bytes, Path] = {}
        directories = []
        for relative in sorted(tree):
            node = tree[relative]
            path = target / relative if relative else target
            if node.attributes.is_directory:
                directories.append((path, node))
            _restore_one(session, node, path, located.time_us, links, counts)
        if delete and located.attributes.is_directory:
            _remove_others(tree, target, counts)
        for path, node in reversed(directories):  # what is made in them changes their times
            _restore_attributes(session, node, path, located.time_us, counts, made=False)
    except FileSystemError as refusal:
        raise UsageError(f"{located.shown}: {os.strerror(refusal.code)}", exit_code=1) from None
    except OSError as error:
        raise UsageError(
            f"{error.filename or target}: {error.strerror}; what was restored so far: {counts}",
            exit_code=1,
        ) from None
    return counts


def _restore_one(
    session: Session,
    node: Node,
    path: Path,
    time_us: int | None,
    links: dict[bytes, Path],
    counts: Counts,
) -> None:
    attributes = node.attributes
    form = stat.S_IFMT(attributes.mode)
    there = _status(path)
    first = links.get(node.identifier)
    if first is not None:
        if there is None or not os.path.samefile(first, path):
            if there is not None:
                _remove(path)
            os.link(first, path)
            counts.made += 1
        return
    if there is not None and stat.S_IFMT(there.st_mode) != form:
        _remove(path)
        counts.removed += 1
        there = None
    made = there is None
    if form == stat.S_IFDIR:
        if made:
            path.mkdir()
            counts.made += 1
        return
    if form == stat.S_IFREG:
        _restore_contents(session, node, path, time_us, counts, made=made)
    elif form == stat.S_IFLNK:
        link_target = session.link_target(node.identifier, time_us)
        if made or os.readlink(os.fsencode(path)) != link_target:
            if not made:
                _remove(path)
            os.symlink(link_target, os.fsencode(path))
            counts.made += 1
    elif made:
        os.mknod(path, attributes.mode, attributes.device)
        counts.made += 1
    if attributes.links > 1:
        links[node.identifier] = path
    _restore_attributes(session, node, path, time_us, counts, made=made)


def _restore_contents(
    session: Session, node: Node, path: Path, time_us: int | None, counts: Counts, *, made: bool
) -> None:
    """Write a file in place, unless it has these contents."""
    if not made and _has_contents(session, node, path, time_us):
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for piece in session.pieces(node.identifier, time_us):
            file.write(piece)
        file.truncate()
    if made:
        counts.made += 1
    else:
        counts.written += 1


def _has_contents(session: Session, node: Node, path: Path, time_us: int | None) -> bool:
    if path.stat().st_size != node.attributes.size:
        return False
    with path.open("rb") as file:
        return all(
            file.read(len(piece)) == piece for piece in session.pieces(node.identifier, time_us)
        )


def _restore_attributes(
    session: Session, node: Node, path: Path, time_us: int | None, counts: Counts, *, made: bool
) -> None:
    """Owner, mode, times and extended attributes, as far as who restores may set them."""
    attributes = node.attributes
    status = path.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    changed = False
    if (status.st_uid, status.st_gid) != (attributes.uid, attributes.gid):
        changed |= _if_permitted(
            lambda: os.chown(path, attributes.uid, attributes.gid, follow_symlinks=False)
        )
    if not is_link:
        changed |= _restore_extended(session, node, path, time_us)
        mode = stat.S_IMODE(attributes.mode)
        if stat.S_IMODE(path.lstat().st_mode) != mode:
            path.chmod(mode)
            changed = True
    if path.lstat().st_mtime_ns != attributes.mtime_ns:
        os.utime(path, ns=(attributes.atime_ns, attributes.mtime_ns), follow_symlinks=False)
        changed = True
    if changed and not made:
        counts.changed += 1


def _restore_extended(session: Session, node: Node, path: Path, time_us: int | None) -> bool:
    wanted = _extended_then(session, node, time_us)
    there = {
        os.fsencode(name): os.getxattr(path, name)
        for name in os.listxattr(path)
        if os.fsencode(name) not in _UNTOUCHED or os.fsencode(name) in wanted
    }
    changed = False
    for name, value in wanted.items():
        if there.get(name) != value:
            changed |= _if_permitted(lambda n=name, v=value: os.setxattr(path, n, v))
    for name in there.keys() - wanted.keys():
        changed |= _if_permitted(lambda n=name: os.removexattr(path, n))
    return changed


def _extended_then(session: Session, node: Node, time_us: int | None) -> dict[bytes, bytes]:
    attributes: Attributes = node.attributes
    if not attributes.extended and not attributes.flags:
        return {}
    return session.extended(node.identifier, time_us)


def _if_permitted(action: object) -> bool:
    """Do it, if one may; whether it was done."""
    assert callable(action)
    try:
        action()
    except PermissionError:
        return False
    return True


def _remove_others(tree: dict[str, Node], target: Path, counts: Counts) -> None:
    """Remove what was not there then."""
    for parent, directories, files in os.walk(target):
        relative = os.path.relpath(parent, target)
        prefix = "" if relative == "." else f"{relative}/"
        for name in (*files, *directories):
            if f"{prefix}{name}" not in tree:
                _remove(Path(parent) / name)
                counts.removed += 1
        directories[:] = [name for name in directories if f"{prefix}{name}" in tree]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
