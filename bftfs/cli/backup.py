"""`bftfs send` and `bftfs receive`: backups, as streams, and directories made of them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

import click

from bftfs.backup.receiving import Receiving
from bftfs.backup.sending import BackupSource, Sending
from bftfs.cli.command_session import CommandSession, Located, absolute, session_at
from bftfs.cli.progress import Progress
from bftfs.cli.retention import push_writes
from bftfs.errors import UsageError
from bftfs.filesystem.time_names import format_time_name
from bftfs.limits import MIB
from bftfs.printable import as_word
from bftfs.restoration.telling import file_kind
from bftfs.runtime import clock


@click.command()
@click.argument("path", metavar="PATH[@TIME]")
@click.option(
    "--from", "base", metavar="TIME", help="Send what has changed since then: a snapshot …"
)
@click.option("--history", is_flag=True, help="Also send the earlier versions of each file.")
def send(path: str, base: str | None, history: bool) -> None:
    """Write directory PATH as a backup to the standard output, for `bftfs receive`.

    It is sent as it is now, or as it was at TIME, which may be a snapshot: names, contents, owners,
    modes, times, extended attributes, symlinks, hard links, holes. With --from, only what has
    changed since is sent; the receiver has to have what was there at just that time. With
    --history, the contents that files had before are sent as well; with --from, those that were
    replaced since.

    A backup is not encrypted: anybody who has it can read it. `bftfs send PATH > FILE` keeps it in
    a file.

    Example: bftfs send --from autumn photos@winter
    """
    output = _piped(sys.stdout, "`bftfs send PATH > FILE`, or `bftfs send PATH | bftfs receive …`")
    with session_at(path) as session:
        located = _directory(session, path)
        at_us = located.time_us
        if at_us is None:  # as it is now, with what programs have written
            push_writes(session)
            at_us = clock.now_us()
        from_us = None if base is None else session.time(base)
        if from_us is not None and from_us >= at_us:
            raise UsageError(
                f"--from {base}: is not before what is to be sent; name an earlier time"
            )
        source = BackupSource(
            session.description.cluster_id,
            located.identifier,
            str(located.path),
            at_us,
            from_us,
            history,
        )
        with Progress("sent") as progress:
            sending = Sending(session.view, source, output.write, told=progress)
            try:
                session.perform(sending.send())
                output.flush()
            except BrokenPipeError:
                _forget(sys.stdout)
                raise UsageError(
                    "the program that takes the backup has ended; see its message", exit_code=1
                ) from None
            except OSError as error:
                raise UsageError(
                    f"the backup cannot be written: {error.strerror}", exit_code=1
                ) from None
    shown = as_word(located.path)
    lost = f", {sending.lost_versions} versions are no longer kept" * bool(sending.lost_versions)
    click.echo(
        f"{shown}: as of {format_time_name(at_us)}: {sending.objects} changes, "
        f"{sending.written_bytes / MIB:.1f} MiB{lost}",
        err=True,
    )
    click.echo(
        f"send what changes from now on with: bftfs send --from {format_time_name(at_us)} "
        f"{as_word(located.path)}",
        err=True,
    )


def _directory(session: CommandSession, path: str) -> Located:
    located = session.locate(path)
    if not stat.S_ISDIR(located.attributes.mode):
        raise UsageError(
            f"{located.shown}: is a {file_kind(located.attributes)}; send the directory in which "
            "it is, or use `bftfs cat`"
        )
    return located


@click.command()
@click.argument("directory", metavar="DIRECTORY", type=Path)
def receive(directory: Path) -> None:
    """Make DIRECTORY what a backup from the standard input tells, or bring it up to date.

    DIRECTORY is on any file system of any machine, and needs no cluster. A whole backup needs an
    empty or a new directory, an increment one that holds what it was made from. Nothing is changed
    before all of the backup is here. Interrupted, the same command goes on. What the directory is a
    backup of, and earlier versions of files, are in DIRECTORY/.bftfs-backup.

    Owners, devices and some attributes can be made by root only; whatever may not be set is
    counted. As root, receive only backups of people whom you trust with that.

    Example: bftfs receive /backup/photos
    """
    stream = _piped(sys.stdin, "`bftfs receive DIRECTORY < FILE`, or behind `bftfs send PATH |`")
    full = absolute(str(directory))
    with Progress("received MiB:") as progress:
        receiving = Receiving(full, told=lambda received: progress(received // MIB))
        try:
            state = receiving.receive(stream.read)
        except PermissionError:
            raise
        except OSError as error:
            raise UsageError(
                f"{as_word(error.filename or full)}: {error.strerror}; the same command goes on",
                exit_code=1,
            ) from None
    counts = receiving.counts
    click.echo(
        f"{as_word(full)}: {state.shown}: {counts.files} files, {counts.file_bytes / MIB:.1f} MiB"
        + f", {counts.versions} earlier versions" * bool(counts.versions)
    )
    if counts.refused:
        click.echo(
            f"bftfs: {counts.refused} attributes could not be set here, the first: "
            f"{counts.first_refused}",
            err=True,
        )


def _piped(stream: object, instead: str) -> BinaryIO:
    """The bytes of a standard stream, which must not be a terminal."""
    if stream.isatty():  # type: ignore[attr-defined]
        raise UsageError(f"a backup is no text for a terminal; use {instead}")
    buffer: BinaryIO = stream.buffer  # type: ignore[attr-defined]
    return buffer


def _forget(stream: object) -> None:
    """Have Python not write to a closed pipe once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
