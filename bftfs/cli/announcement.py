"""Tells all nodes a new description, and asks them when each client was connected last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import click

from bftfs.cli.reach import NodeAccess
from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory
from bftfs.description_files import SignedDescription
from bftfs.envelope import UpkeepRequest
from bftfs.identifiers import ClientId
from bftfs.printable import printable
from bftfs.server.comparison import with_a_correct_one

# In what a node says that has seen a later description, or another one.
_LATER = ("was sent an older one", "was sent another one")

# In what one says that knows of others, which take more.
_CONTRADICTED = ("does not admit them", "only the rights that all of them grant")


def announce(directory: DataDirectory, signed: SignedDescription, *, done: str) -> int:
    """Tell all nodes; `done` says what those that hear of it do.

    Exit code 1 if some did not hear of it. A node of this machine that does not run reads the
    description when it starts, and is no reason for that.
    """
    try:
        with NodeAccess(directory, signed.description) as access:
            deaf = access.announce(signed)
            stopped, next_step = access.stopped, access.next_step
    except KeyboardInterrupt:
        click.echo(
            "\nbftfs: it is signed, and nodes may not have heard of it; `bftfs cluster tell` tells "
            "all of them",
            err=True,
        )
        raise
    heard = [node for node in range(signed.description.n) if node not in deaf]
    if heard:
        click.echo(f"{_named(heard)} {done if len(heard) > 1 else _of_one(done)}.")
    if stopped:
        one = len(stopped) == 1
        click.echo(
            f"{_named(stopped)} {'does' if one else 'do'} not run here, and "
            f"{'reads' if one else 'read'} it when started."
        )
    missed = {node: why for node, why in deaf.items() if node not in stopped}
    for node, why in missed.items():
        heard_it = (
            "has heard of it, and"
            if any(each in why for each in _CONTRADICTED)
            else "has not heard of it: it"
        )
        click.echo(f"bftfs: node {node} {heard_it} {printable(why)}", err=True)
    if any(words in why for why in missed.values() for words in _LATER):
        click.echo(
            "bftfs: if you have just changed the clients on another machine, too: `bftfs cluster "
            "tell` brings the later description here; see that it has both changes",
            err=True,
        )
    if missed:
        click.echo(
            "bftfs: a node that comes up later hears of it from the others within a minute; "
            "`bftfs cluster tell` tells all again" + (f"; {next_step}" if next_step else ""),
            err=True,
        )
    return 1 if missed else 0


def last_seen(
    directory: DataDirectory, description: ClusterDescription
) -> tuple[dict[ClientId, int], dict[int, str]]:
    """When each client was connected last, in seconds since the epoch; nodes that do not say it.

    The latest moment that a correct node tells, since the nodes were started.
    """
    with NodeAccess(directory, description) as access:
        replies = access.ask(range(description.n), UpkeepRequest("clients"))
    told: defaultdict[ClientId, list[int]] = defaultdict(list)
    missed = {}
    for node, reply in replies.items():
        if isinstance(reply, str):
            missed[node] = reply
        else:
            for use in {use.client: use for use in reply.clients}.values():
                told[use.client].append(use.seen_s)
    found = {
        client: with_a_correct_one(moments, b=description.b) for client, moments in told.items()
    }
    return {client: moment for client, moment in found.items() if moment}, missed


def _named(nodes: Iterable[int]) -> str:
    numbers = [str(node) for node in nodes]
    return f"{'Node' if len(numbers) == 1 else 'Nodes'} {', '.join(numbers)}"


def _of_one(done: str) -> str:
    """The words for what several nodes do, for one."""
    return done.replace("have", "has").replace("admit", "admits")
