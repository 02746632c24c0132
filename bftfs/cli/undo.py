"""`bftfs audit` and `bftfs undo`: what a client has done, and how to take it back.

Undoing keeps everybody else's changes. For each name and each file that the client has changed, it
asks what would be there if only the others' changes had been made. Where that cannot be known, both
versions are kept: what is there stays, and what was there before stands beside it, under the name
with `.before-CLIENT` behind it. Undoing is history itself: the client's versions stay in the log.

Concurrency: others may work meanwhile. Each step is one operation on the objects that it names, by
the client of whoever runs the command; a step whose premises have changed is refused, and reported.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import click

from bftfs.cli.attribute_undo import Owed, everything, owed, settle
from bftfs.cli.history import said
from bftfs.cli.merging import carried_over
from bftfs.cli.past import Session, session_at
from bftfs.cli.trail import Name, Trail, client_called, follow
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.filesystem.history import Change
from bftfs.filesystem.moments import format_moment
from bftfs.filesystem.registry import CREATE, TRUNCATE, WRITE
from bftfs.identifiers import ObjectId, ObjectKind, kind_of

_CONTENTS = frozenset((CREATE, WRITE, TRUNCATE))


# --- audit ----------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="[PATH]", default=".")
@click.option("--client", required=True, help="Whose changes: a client's name or id.")
@click.option("--since", required=True, help="A time: '2 hours ago', 2026-11-21T10:02 …")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(path: str, client: str, since: str, as_json: bool) -> None:
    """List what a client has changed below PATH since a time, and what others built on it."""
    with session_at(path) as session:
        trail = follow(
            session, session.locate(path), client_called(session, client), session.time(since)
        )
        own, built = _audited(trail)
        rows = {
            "client": client,
            "changes": [_row(session, trail, identifier, change) for identifier, change in own],
            "built_on": [_row(session, trail, identifier, change) for identifier, change in built],
        }
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for title, key in (
        (f"{len(own)} changes by {client}", "changes"),
        (f"{len(built)} later changes by others to the same things", "built_on"),
    ):
        click.echo(f"{title}{':' if rows[key] else '.'}")
        for row in rows[key]:
            assert isinstance(row, dict), "a list of rows"
            click.echo(
                f"  {row['time']}  {row['client']:<12} uid {row['uid']:<5} "
                f"{row['operation']:<28} {row['path']}"
            )


def _audited(
    trail: Trail,
) -> tuple[list[tuple[ObjectId, Change]], list[tuple[ObjectId, Change]]]:
    """The client's changes, each once; and what others did later to the same names and files."""
    own: dict[bytes, tuple[ObjectId, Change]] = {}
    built: dict[bytes, tuple[ObjectId, Change]] = {}
    for identifier in trail.touched():
        names: set[bytes] = set()
        begun = False
        for change in trail.changes[identifier]:
            changed = {name for name, _ in change.entries}
            if trail.by_client(change):
                begun = True
                names |= changed
                # An operation on several objects is told of the one that says most: the file.
                if change.timestamp not in own or kind_of(identifier) != ObjectKind.DIRECTORY:
                    own[change.timestamp] = (identifier, change)
            elif begun and (kind_of(identifier) != ObjectKind.DIRECTORY or changed & names):
                built[change.timestamp] = (identifier, change)
    return (
        [own[timestamp] for timestamp in sorted(own)],
        [built[timestamp] for timestamp in sorted(built)],
    )


def _row(session: Session, trail: Trail, identifier: ObjectId, change: Change) -> dict[str, Any]:
    return {
        "time": format_moment(change.time_us),
        "client": session.client_name(change.client),
        "uid": change.operation.uid,
        "operation": said(change),
        "path": trail.paths.get(identifier, identifier.hex()),
    }


# --- undo -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Something to be done; or, without `perform`, a conflict that somebody has to look at."""

    what: str
    perform: Callable[[], None] | None = None
    conflict: bool = False


@click.command()
@click.argument("path", metavar="[PATH]", default=".")
@click.option("--client", required=True, help="Whose changes: a client's name or id.")
@click.option("--since", required=True, help="A time: '2 hours ago', 2026-11-21T10:02 …")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be done.")
def undo(path: str, client: str, since: str, dry_run: bool) -> int:
    """Take back what a client has changed below PATH since a time; keep what others did.

    Where both have changed the same thing, what is there stays, and what was there before the
    client's change is put beside it. Ends with 1 if there are such conflicts.
    """
    with session_at(path) as session:
        trail = follow(
            session, session.locate(path), client_called(session, client), session.time(since)
        )
        before = format_moment(int(time.time() * 1e6))
        steps = Undoing(session, trail, label=client).steps()
        failed = 0
        for step in steps:
            mark = "conflict: " if step.conflict else ""
            try:
                if step.perform is not None and not dry_run:
                    step.perform()
                click.echo(f"{mark}{step.what}")
            except (FileSystemError, OperationFailed) as failure:
                failed += 1
                click.echo(f"not done: {step.what} ({failure})")
    conflicts = sum(step.conflict for step in steps)
    done = "would be taken back" if dry_run else "taken back"
    click.echo(
        f"{len(steps) - conflicts - failed} {done}, {conflicts} conflicts"
        + (f", {failed} not done: run it again" if failed else "")
    )
    if steps and not dry_run:
        click.echo(f"what was before this: .history/{before}")
    return 1 if conflicts or failed else 0


class Undoing:
    """The steps that take a client's changes back."""

    def __init__(self, session: Session, trail: Trail, *, label: str) -> None:
        self._session = session
        self._trail = trail
        self._label = label
        self._who = session.who
        self._wanted: dict[Name, ObjectId | None] = {}

    def steps(self) -> list[Step]:
        """What is to be done, in an order in which it can be done."""
        trail = self._trail
        moves: list[Step] = []
        removals: list[Step] = []
        copies: list[Step] = []
        conflicts: list[Step] = []
        names = [
            Name(directory, name)
            for directory in trail.touched()
            if kind_of(directory) == ObjectKind.DIRECTORY and directory in self._kept()
            for name in self._names_touched(directory)
        ]
        for name in names:
            self._wanted[name] = self._wanted_at(name)
        targets = {child for child in self._wanted.values() if child is not None}
        for name in names:
            wanted, there = self._wanted[name], trail.entries.get(name)
            lost = self._lost_to_others(name)
            if lost is not None:
                beside = self._beside(name)
                conflicts.append(
                    Step(
                        f"{trail.path(name)}: removed by {self._label}, and since used by others; "
                        f"what it was is {_shown(beside.name)}",
                        partial(self._copy_back, lost, beside),
                        True,
                    )
                )
            if wanted == there:
                continue
            if wanted is None:
                assert there is not None, "it is not what is wanted, which is nothing"
                if there in targets and self._misplaced(there):
                    continue  # it is moved back to where it was
                if self._has_others_work(there):
                    conflicts.append(
                        Step(
                            f"{trail.path(name)}: made by {self._label}, and others have worked in "
                            "it: it stays",
                            None,
                            True,
                        )
                    )
                    continue
                removals.append(
                    Step(f"remove {trail.path(name)}", partial(self._remove, name, there))
                )
                continue
            source = self._misplaced(wanted)
            if source is not None:
                moves.append(
                    Step(
                        f"move {trail.path(source)} back to {trail.path(name)}",
                        partial(self._move, source, name),
                    )
                )
                if there is not None:
                    removals.append(
                        Step(
                            f"remove what {self._label} put in place of {trail.path(name)}",
                            partial(self._remove, source, there),
                        )
                    )
                continue
            if there is not None:
                removals.append(
                    Step(
                        f"remove what {self._label} put in place of {trail.path(name)}",
                        partial(self._remove, name, there),
                    )
                )
            copies.append(
                Step(f"bring back {trail.path(name)}", partial(self._copy_back, wanted, name))
            )
        return [*moves, *removals, *copies, *self._changed_in_place(), *conflicts]

    # --- names -------------------------------------------------------------------------------

    def _names_touched(self, directory: ObjectId) -> list[bytes]:
        return sorted(
            {
                name
                for change in self._trail.changes.get(directory, ())
                if self._trail.by_client(change)
                for name, _ in change.entries
            }
        )

    def _at_first(self, name: Name) -> tuple[ObjectId | None, list[tuple[Change, Any]]]:
        """What the name stood for before the client's first change of it; and all since then."""
        happened = self._trail.of_name(name)
        first = next(at for at, each in enumerate(happened) if self._trail.by_client(each[0]))
        past = self._session.history.at(happened[first][0].time_us - 1)
        try:
            found = self._session.perform(past.lookup(name.directory, name.name, self._who))
        except FileSystemError:
            return None, happened[first:]
        return found.identifier, happened[first:]

    def _wanted_at(self, name: Name) -> ObjectId | None:
        """What the name would stand for if only others had changed it."""
        wanted, happened = self._at_first(name)
        for change, entry in happened:
            if not self._trail.by_client(change):
                wanted = None if entry is None else entry.child
        return wanted

    def _lost_to_others(self, name: Name) -> ObjectId | None:
        """What the client took from the name, which others then gave to something else."""
        before, happened = self._at_first(name)
        others = any(not self._trail.by_client(change) for change, _ in happened)
        if before is None or not others or before == self._wanted[name]:
            return None
        if before in self._trail.places or self._is_like(before, self._trail.entries.get(name)):
            return None
        return before

    def _is_like(self, lost: ObjectId, there: ObjectId | None) -> bool:
        """Whether what is there now has all that was lost: it was brought back before."""
        if there is None or kind_of(there) != kind_of(lost):
            return False
        time_us = self._last_seen_us(lost)
        if kind_of(lost) == ObjectKind.DIRECTORY:
            return all(
                Name(there, name) in self._trail.entries
                for name in self._entries_then(lost, time_us)
            )
        past = self._session.history.at(time_us)
        was: Attributes = self._perform(past.attributes(lost, self._who))
        if not was.is_regular:
            return stat.S_ISLNK(was.mode)
        return self._honest_contents(lost) == self._session.contents(there, None)

    def _misplaced(self, identifier: ObjectId) -> Name | None:
        """Where the client has put something that is wanted elsewhere."""
        for place in self._trail.places.get(identifier, ()):
            if place in self._wanted and self._wanted[place] != identifier:
                return place
        return None

    def _has_others_work(self, identifier: ObjectId) -> bool:
        """Whether others have changed the thing, or anything in it, since the client made it."""
        trail = self._trail
        for change in trail.changes.get(identifier, ()):
            if not trail.by_client(change):
                return True
        return any(
            self._has_others_work(child)
            for name, child in trail.entries.items()
            if name.directory == identifier
        )

    def _beside(self, name: Name) -> Name:
        return Name(name.directory, name.name + f".before-{self._label}".encode())

    # --- contents and attributes -------------------------------------------------------------

    def _changed_in_place(self) -> list[Step]:
        """What is to be done to files and directories that are where they belong."""
        trail = self._trail
        steps = []
        for identifier in trail.touched():
            if trail.is_made_by_client(identifier) or identifier not in self._kept():
                continue
            path = trail.paths.get(identifier, identifier.hex())
            if kind_of(identifier) == ObjectKind.INODE:
                steps += self._contents_steps(identifier, path)
        # After all that changes times by the way.
        for identifier in trail.touched():
            if trail.is_made_by_client(identifier) or identifier not in self._kept():
                continue
            debt = owed(self._session, trail, identifier)
            if debt:
                path = trail.paths.get(identifier, identifier.hex())
                steps.append(
                    Step(
                        f"give {path} its attributes back ({debt})",
                        partial(settle, self._session, identifier, debt),
                    )
                )
        return steps

    def _kept(self) -> set[ObjectId]:
        """What is there now, or is moved back."""
        return set(self._trail.places) | {next(iter(self._trail.paths))}

    def _contents_steps(self, identifier: ObjectId, path: str) -> list[Step]:
        changes = [
            change
            for change in self._trail.changes[identifier]
            if change.operation.method in _CONTENTS
        ]
        if not any(map(self._trail.by_client, changes)):
            return []
        honest = self._honest_contents(identifier)
        if honest is not None:
            if honest == self._session.contents(identifier, None):
                return []
            return [
                Step(f"take back what was written to {path}",
                     partial(self._rewrite, identifier, honest))
            ]  # fmt: skip
        places = self._trail.places[identifier]
        beside = self._beside(places[0])
        first = next(change for change in changes if self._trail.by_client(change))
        past = self._session.history.at(first.time_us - 1)
        before = self._session.contents(identifier, first.time_us - 1)
        attributes = everything(self._session, past, identifier)
        return [
            Step(
                f"{path}: changed by {self._label}, and then by others in the same places; "
                f"what it was before is {_shown(beside.name)}",
                partial(self._write_new, beside, before, attributes),
                True,
            )
        ]

    def _honest_contents(self, identifier: ObjectId) -> bytes | None:
        """The contents as others' changes alone would have left them; None if that is unknown."""
        trail = self._trail
        changes = [
            change
            for change in trail.changes.get(identifier, ())
            if change.operation.method in _CONTENTS
        ]
        first = next((at for at, each in enumerate(changes) if trail.by_client(each)), None)
        if first is None:
            last = trail.changes[identifier][-1].time_us if identifier in trail.changes else None
            return self._session.contents(identifier, last)
        was = honest = self._session.contents(identifier, changes[first].time_us - 1)
        # A program that rewrites a file makes several versions: what one client did in a row is one
        # change.
        for is_own, run in groupby(changes[first:], key=trail.by_client):
            is_now = self._session.contents(identifier, list(run)[-1].time_us)
            if not is_own:
                merged = carried_over(before=was, after=is_now, onto=honest)
                if merged is None:
                    return None
                honest = merged
            was = is_now
        return honest

    # --- what steps do -----------------------------------------------------------------------

    def _perform(self, conversation: Any) -> Any:
        return self._session.perform(conversation)

    def _move(self, source: Name, target: Name) -> None:
        files = self._session.files
        flags = RENAME_EXCHANGE if target in self._trail.entries else RENAME_NOREPLACE
        self._perform(
            files.rename(
                source.directory, source.name, target.directory, target.name, self._who, flags=flags
            )
        )

    def _remove(self, name: Name, expected: ObjectId) -> None:
        """Remove what the client put there, with all that is in it."""
        files, who = self._session.files, self._who
        found = self._perform(files.lookup(name.directory, name.name, who))
        if found.identifier != expected:
            raise FileSystemError(errno.ESTALE, "it is something else by now")
        if kind_of(expected) != ObjectKind.DIRECTORY:
            self._perform(files.unlink(name.directory, name.name, who))
            return
        for child, node in self._perform(self._session.listing(expected, None)):
            self._remove(Name(expected, child), node.identifier)
        self._perform(files.remove_directory(name.directory, name.name, who))

    def _copy_back(self, identifier: ObjectId, name: Name) -> None:
        """Make anew what is gone, as others left it."""
        files, who, session = self._session.files, self._who, self._session
        time_us = self._last_seen_us(identifier)
        past = session.history.at(time_us)
        attributes: Attributes = self._perform(past.attributes(identifier, who))
        if identifier in self._trail.places and not attributes.is_directory:
            self._perform(files.link(identifier, name.directory, name.name, who))
            return
        if attributes.is_directory:
            made = self._perform(
                files.make_directory(name.directory, name.name, 0o700, who)
            ).identifier
            for child_name, child in self._entries_then(identifier, time_us).items():
                self._copy_back(child, Name(made, child_name))
            settle(session, made, everything(session, past, identifier))
        elif stat.S_ISLNK(attributes.mode):
            target = session.link_target(identifier, time_us)
            self._perform(files.make_symlink(name.directory, name.name, target, who))
        elif attributes.is_regular:
            honest = self._honest_contents(identifier)
            if honest is None:
                honest = session.contents(identifier, time_us)
            self._write_new(name, honest, everything(session, past, identifier))
        else:
            self._perform(
                files.make_node(
                    name.directory, name.name, attributes.mode, who, device=attributes.device
                )
            )

    def _last_seen_us(self, identifier: ObjectId) -> int:
        """A time at which the thing was as it was before the client's first change of it."""
        changes = self._trail.changes.get(identifier, ())
        first = next((each for each in changes if self._trail.by_client(each)), None)
        return self._session.now_us if first is None else first.time_us - 1

    def _entries_then(self, directory: ObjectId, time_us: int) -> dict[bytes, ObjectId]:
        """What a directory held, with what others did to it later."""
        listed = self._perform(self._session.listing(directory, time_us))
        entries = {name: node.identifier for name, node in listed}
        for change in self._trail.changes.get(directory, ()):
            if change.time_us > time_us and not self._trail.by_client(change):
                for name, entry in change.entries:
                    if entry is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = entry.child
        return entries

    def _write_new(self, name: Name, contents: bytes, attributes: Owed) -> None:
        files, who = self._session.files, self._who
        flags = os.O_WRONLY | os.O_EXCL
        found, opened = self._perform(
            files.create(name.directory, name.name, stat.S_IFREG | 0o600, who, flags=flags)
        )
        self._fill(opened, contents)
        settle(self._session, found.identifier, attributes)

    def _rewrite(self, identifier: ObjectId, contents: bytes) -> None:
        files = self._session.files
        opened = self._perform(files.open(identifier, os.O_WRONLY | os.O_TRUNC, self._who))
        self._fill(opened, contents)

    def _fill(self, opened: Any, contents: bytes) -> None:
        files = self._session.files
        try:
            size = 4 << 20
            for offset in range(0, len(contents), size):
                piece = contents[offset : offset + size]
                if files.write(opened, offset, piece, now_ns=time.time_ns()):
                    self._perform(files.write_behind(opened))
        finally:
            self._perform(files.release(opened))


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
