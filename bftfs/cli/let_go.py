"""`bftfs cluster let-go`: the administrator lets history go before its time, visibly to everybody.

The decision stands in the signed description of the cluster, with its moment and its date, and
reaches the nodes as a revocation does. `bftfs log`, `retention show`, `cluster clients`, `cluster
show` and `status` tell of it.
"""

from __future__ import annotations

import click

from bftfs import description_files, limits
from bftfs.cli.announcement import announce
from bftfs.cli.decisions import what_goes
from bftfs.cli.options import data_option
from bftfs.cli.progress import Progress
from bftfs.cli.reach import NodeAccess
from bftfs.cli.signed_elsewhere import description_to_change
from bftfs.cli.times import past_time
from bftfs.cli.upkeep import volume
from bftfs.cli.usage import survey
from bftfs.cluster import ClusterDescription
from bftfs.crypto import keys
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId
from bftfs.known_clients import client_called, labels_of
from bftfs.retention import LetGo, format_duration
from bftfs.runtime import clock


@click.command("let-go")
@data_option
@click.option("--before", default=None, help="What was superseded before that. [default: now]")
@click.option("--client", "name", default=None, help="Only versions of this revoked client.")
@click.option("--since", default=None, help="With --client: only what it made from then on.")
@click.option("--yes", is_flag=True, help="Do it. Without, it is only said what would go.")
def let_go(
    directory: DataDirectory, before: str | None, name: str | None, since: str | None, yes: bool
) -> int:
    """Let history go before its time, to make room. It cannot be taken back.

    What was overwritten or removed before that time goes, though the detection window and policies
    keep it. The present stays, and so does what snapshots show: see `bftfs snapshot list` first,
    and `bftfs usage`. With --client, what the versions of others show stays as well; revoke the
    client and undo its changes before: afterwards undo finds them no more. The decision is signed
    with admin.key, told to all nodes, and shown to everybody by `bftfs log`, `bftfs retention show`
    and `bftfs status`.

    Example: bftfs cluster let-go --client mallory --since 'yesterday 14:00' --yes
    """
    now_us = clock.now_us()
    if yes:
        description = description_to_change(directory)
    else:
        description = description_files.load(directory.description)
    client = None if name is None else _revoked(description, name)
    if since is not None and client is None:
        raise UsageError("--since is for the versions of one client: name it with --client")
    now_s = -(-now_us // limits.SECOND_US)  # rounded up: what was undone by now is the past
    before_s = now_s if before is None else _seconds(before, now_us)
    since_s = 0 if since is None else _seconds(since, now_us)
    if client is None:
        latest_s = (now_us - limits.LET_GO_AFTER_US) // limits.SECOND_US
        if before is not None and before_s > latest_s:
            raise UsageError(
                f"{before}: choose a time of {format_duration(limits.LET_GO_AFTER_US)} ago or "
                "earlier, since clients may date their changes back"
            )
        before_s = min(before_s, latest_s)
    later = description.letting_go(before_s=before_s, at_s=now_s, client=client, since_s=since_s)
    decision = later.let_go[-1]
    administrator = keys.read_identity(directory.administrator_key)
    click.echo(
        f"{what_goes(decision, labels_of(later))}: {_amount(directory, description, decision)}."
    )
    if not yes:
        click.echo("Nothing was done. This cannot be taken back: say --yes to do it.")
        return 0
    signed = description_files.store(directory.description, later, administrator)
    code = announce(directory, signed, done="have it")
    if client is None:
        click.echo("They let it go now, one file after another; `bftfs usage` shows what is left.")
    else:
        wait = format_duration(limits.LET_GO_SETTLED_US)
        click.echo(
            f"They let it go in {wait}, when no change can be dated back so far any more; "
            "`bftfs usage` shows what is left."
        )
    return code


def _revoked(description: ClusterDescription, name: str) -> ClientId:
    client = client_called(description, name)
    if description.client(client) is not None:
        raise UsageError(
            f"{name} may still connect: `bftfs cluster revoke-client {name}` comes first, then "
            "`bftfs undo`, which makes its work the past"
        )
    return client


def _seconds(text: str, now_us: int) -> int:
    time_us = past_time(text, now_us=now_us)
    if time_us is None:
        raise UsageError(f"{text!r} is not a time; write 2026-11-21T10:02, or 10 minutes ago")
    return time_us // limits.SECOND_US


def _amount(directory: DataDirectory, description: ClusterDescription, decision: LetGo) -> str:
    """How much goes, as the nodes tell."""
    bounds = (decision.before_s * limits.SECOND_US,)
    with NodeAccess(directory, description) as access, Progress("versions looked at:") as progress:
        found = survey(access, description, {}, bounds, progress)
    if len(found.told) < description.n - description.t:
        return "how much that is, too few nodes tell"
    past = found.middle(client=decision.client).past
    amount = past[0] if past else 0
    if not amount and decision.client is not None:
        return "nothing; what files show is not the past before `bftfs undo` has taken it back"
    return f"at most {volume(amount)} of contents, of the past"
