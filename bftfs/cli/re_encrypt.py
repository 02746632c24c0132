"""`bftfs re-encrypt`: write files again, as they are, with the key of the present epoch."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import click

from bftfs.cli.command_session import CommandSession, Located, session_at
from bftfs.cli.progress import Progress
from bftfs.cli.upkeep import volume
from bftfs.errors import FileSystemError, OperationFailed, UsageError
from bftfs.filesystem.operations import FoundObject
from bftfs.limits import MIB
from bftfs.printable import as_word

BLOCKS_AT_ONCE: Final = 32  # that one update of a file names
_FAILURES_SHOWN: Final = 20


@dataclass(slots=True)
class _Done:
    """What was done so far."""

    files: int = 0  # of which something was written again
    bytes: int = 0  # that were written again
    failures: list[str] = field(default_factory=list)


@click.command("re-encrypt")
@click.argument("path", metavar="PATH")
@click.option(
    "--rate",
    type=click.FloatRange(0.001),
    default=None,
    metavar="MIB",
    help="Look at no more than so many MiB per second.",
)
def re_encrypt(path: str, rate: float | None) -> int:
    """Write a file, or all files below a directory, again with the present key.

    After a revocation, clients write with a new key. What was there before is still sealed with
    keys that the revoked client has; this changes it for files as they are now. They stay in use
    meanwhile, and keep their bytes and times of change. A user who is not root loses set-user-id
    bits of programs by it, as by any write.

    It may be interrupted, and run again: what is done is left as it is. To have it run in the
    background, start it with `&` or as a service, perhaps with --rate.

    History and snapshots keep the old versions, sealed with the old keys, until they go: see
    `bftfs retention` and `bftfs cluster let-go`.

    Example: bftfs re-encrypt ~/bftfs --rate 10
    """
    with session_at(path) as session:
        located = session.locate(path)
        if located.time_us is not None:
            raise UsageError(f"{located.shown}: history is not written again; name PATH alone")
        done = _Done()
        found = list(_files(session, located))
        total = sum(node.attributes.size for _, node in found)
        with Progress("bytes looked at:") as progress:
            looked_at = 0
            for name, node in found:
                for size in _renew(session, name, node, done):
                    looked_at += size
                    progress(looked_at, total)
                    if rate is not None:
                        time.sleep(size / (rate * MIB))
    click.echo(
        f"{located.shown}: {done.files} of {len(found)} files had contents with earlier keys; "
        f"{volume(done.bytes)} written again."
    )
    if done.files:
        click.echo(
            "Their versions of before are sealed with the keys of before, as long as history keeps "
            "them."
        )
    for failure in done.failures[:_FAILURES_SHOWN]:
        click.echo(f"bftfs: {failure}", err=True)
    if done.failures[_FAILURES_SHOWN:]:
        click.echo(f"bftfs: and {len(done.failures) - _FAILURES_SHOWN} more", err=True)
    if done.failures:
        click.echo(
            f"bftfs: {len(done.failures)} files were left as they are; run this again as a user "
            "who may read and write them",
            err=True,
        )
    return 1 if done.failures else 0


def _files(session: CommandSession, located: Located) -> Iterator[tuple[str, FoundObject]]:
    """The regular files at and below a path, each once, with their paths."""
    tree = session.tree(located) if located.attributes.is_directory else {"": located.node}
    seen = set()
    for name, node in tree.items():
        if node.attributes.is_regular and node.identifier not in seen:
            seen.add(node.identifier)
            yield os.path.join(located.given, name) if name else located.given, node


def _renew(session: CommandSession, name: str, node: FoundObject, done: _Done) -> Iterator[int]:
    """Write a file again, piece by piece; yields how many of its bytes were looked at."""
    files, perform = session.files, session.perform
    renewed = 0
    try:
        file = perform(files.open(node.identifier, os.O_RDONLY, session.who))
        try:
            size, block_bytes = file.contents.size, file.contents.layout.block_bytes
            for first in range(0, -(-size // block_bytes), BLOCKS_AT_ONCE):
                renewed += perform(files.seal_again(file, first, first + BLOCKS_AT_ONCE))
                yield min(BLOCKS_AT_ONCE * block_bytes, size - first * block_bytes)
        finally:
            perform(files.release(file))
            done.files += renewed > 0
            done.bytes += min(renewed * block_bytes, size)
    except FileSystemError as failure:
        if failure.code != errno.ESTALE:  # it was removed meanwhile
            why = os.strerror(failure.code)
            done.failures.append(f"{as_word(name)}: {why}")
    except OperationFailed as failure:
        done.failures.append(f"{as_word(name)}: {failure}")
