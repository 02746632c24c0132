"""`bftfs audit` and `bftfs undo`: list what a client has changed, and take it back."""

from __future__ import annotations

import json
import time
from operator import itemgetter
from typing import Any, Final

import click

from bftfs.cli.command_session import CommandSession, session_at
from bftfs.cli.versions import said
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.errors import FileSystemError, OperationFailed, UsageError
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId, ObjectId
from bftfs.restoration.changes import ChangeLog, audited, read_changes
from bftfs.restoration.undo import Undo

_ID_DIGITS: Final = 8


# --- audit ----------------------------------------------------------------------------------


@click.command()
@click.argument("path", metavar="[PATH]", default=".")
@click.option("--client", required=True, help="Whose changes: a client's name or id.")
@click.option("--since", required=True, help="A time: '2 hours ago', 2026-11-21T10:02 …")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(path: str, client: str, since: str, as_json: bool) -> None:
    """List what a client has changed below PATH since a time, and what others built on it."""
    with session_at(path) as session:
        log = _read_changes(session, path, client, since)
        own, built = audited(log)
        rows = {
            "client": client,
            "changes": sorted(
                [
                    *(_row(session, log, identifier, change) for identifier, change in own),
                    *_foreign_rows(session, log, client),
                ],
                key=itemgetter("time"),
            ),
            "built_on": [_row(session, log, identifier, change) for identifier, change in built],
        }
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for title, key in (
        (f"{len(rows['changes'])} changes by {client}", "changes"),
        (f"{len(built)} later changes by others to the same things", "built_on"),
    ):
        click.echo(f"{title}{':' if rows[key] else '.'}")
        for row in rows[key]:
            assert isinstance(row, dict), "a list of rows"
            click.echo(
                f"  {row['time']}  {row['client']:<12} uid {_known(row['uid']):<5} "
                f"{row['operation']:<28} {row['path']}"
            )


def _row(
    session: CommandSession, log: ChangeLog, identifier: ObjectId, change: Change
) -> dict[str, Any]:
    return {
        "time": format_time_name(change.time_us),
        "client": session.client_name(change.client),
        "uid": change.operation.uid,
        "operation": said(change),
        "path": log.path_of(identifier),
    }


def _known(uid: int | None) -> str:
    return "?" if uid is None else str(uid)


def _foreign_rows(session: CommandSession, log: ChangeLog, client: str) -> list[dict[str, Any]]:
    """Blocks that the client wrote, and that no update of its own covers."""
    rows = []
    for identifier, foreign in log.foreign_blocks.items():
        own = sorted((each for each in foreign if each.by_client), key=lambda each: each.time_us)
        for cover in dict.fromkeys(each.shown_by for each in own):
            blocks = [each for each in own if each.shown_by is cover]
            told = "no update has covered"
            if cover is not None:
                told = f"{session.client_name(cover.client)} covered"
            rows.append(
                {
                    "time": format_time_name(blocks[0].time_us),
                    "client": client,
                    "uid": None,
                    "operation": f"write {len(blocks)} block{'s' * (len(blocks) > 1)} that {told}",
                    "path": log.path_of(identifier),
                }
            )
    return rows


# --- undo -----------------------------------------------------------------------------------


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
        log = _read_changes(session, path, client, since)
        before = format_time_name(int(time.time() * 1e6))
        steps = session.perform(Undo(session.view, log, label=client).steps())
        failed = 0
        for step in steps:
            mark = "conflict: " if step.conflict else ""
            try:
                if step.perform is not None and not dry_run:
                    session.perform(step.perform())
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


# --- whose changes --------------------------------------------------------------------------


def _read_changes(session: CommandSession, path: str, client: str, since: str) -> ChangeLog:
    root = session.locate(path)
    whose, since_us = _client_called(session, client), session.time(since)
    reading = read_changes(
        session.view, root.identifier, path=str(root.path), client=whose, since_us=since_us
    )
    try:
        return session.perform(reading)
    except FileSystemError as refusal:
        raise UsageError(
            f"you may not read everything there ({refusal}): run this as root", exit_code=1
        ) from None


def _client_called(session: CommandSession, text: str) -> ClientId:
    """The client of that name, known or revoked; or the client whose id begins with `text`."""
    for entry in session.description.clients:
        if entry.name == text:
            return entry.client
    key = session.directory.client_key(text)
    if "/" not in text and key.exists():  # it was revoked, and its key is still here
        return client_id_of(public_key=read_identity(key).public_key)
    if len(text) >= _ID_DIGITS and all(digit in "0123456789abcdef" for digit in text):
        whole = text.ljust(32, "0")
        for entry in session.description.clients:
            if entry.client.hex().startswith(text):
                return entry.client
        if len(text) == len(whole):
            return ClientId(bytes.fromhex(text))
    known = ", ".join(entry.name for entry in session.description.clients)
    raise UsageError(
        f"{text}: no client is called so; there are {known}. A client that was revoked is named by "
        "its whole id (32 digits), which `bftfs log --json` shows"
    )
