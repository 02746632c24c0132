"""`bftfs mend`: remove a name whose object was lost."""

from __future__ import annotations

import errno
import os
from types import MappingProxyType

import click

from bftfs.cli.command_session import absolute, refusals_explained, session_at
from bftfs.errors import UsageError
from bftfs.printable import as_word

_WHY_NOT = MappingProxyType(
    {
        errno.ENOENT: "no such name",
        errno.EEXIST: "what this name stands for is there; nothing has to be mended",
        errno.EACCES: "you may not write to the directory",
        errno.EPERM: "in this directory only its owner may do that",
    }
)


@click.command()
@click.argument("path", metavar="PATH")
def mend(path: str) -> None:
    """Remove a name whose file or directory was lost.

    After a power failure of more nodes than may fail, with `interval` durability, a name may be
    left of what was made in the last second. `ls` shows it, and everything else fails with "Stale
    file handle". If a quorum of nodes has nothing that it stands for, this removes it. `bftfs log`
    of the directory shows that.

    Example: bftfs mend report.txt
    """
    with session_at(path) as session:
        full = absolute(path)
        if full == session.mounted.path:
            raise UsageError(f"{as_word(full)}: this is the whole file system, and no name in it")
        parent = session.locate_at(full.parent, None)
        with refusals_explained(as_word(full), _WHY_NOT):
            session.perform(
                session.files.mend(parent.identifier, os.fsencode(full.name), session.who)
            )
    click.echo(f"{as_word(full)}: removed; nothing was left of what it stood for")
