"""Clusters: `bftfs cluster …` makes one and changes its description, the administrator's work."""

from __future__ import annotations

import json
import os
import pwd
import time
from dataclasses import replace

import click
from rich.table import Table

from bftfs import description_files, limits
from bftfs.cli.announcement import announce, last_seen
from bftfs.cli.client_table import clients_table, day, facts, groups_shown, users_shown
from bftfs.cli.decisions import tell_decisions
from bftfs.cli.epochs import begin_epoch, epoch_shown, with_keys_settled
from bftfs.cli.let_go import let_go
from bftfs.cli.local_cluster import (
    create_cluster,
    smallest_cluster,
    with_new_client,
)
from bftfs.cli.options import data_option, json_option, new_data_option
from bftfs.cli.plain_console import plain_console
from bftfs.cli.signed_elsewhere import adopt_later, description_to_change, edited_description
from bftfs.cluster import ClientEntry, ClusterDescription, Durability
from bftfs.credentials import Grant
from bftfs.crypto import keys
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory
from bftfs.errors import UsageError
from bftfs.known_clients import SHORT_DIGITS, client_called, known_clients
from bftfs.printable import as_word, printable
from bftfs.retention import format_duration, parse_duration


@click.group()
def cluster() -> None:
    """Make a cluster, and manage its clients."""


@cluster.command()
@new_data_option
@click.option(
    "--node",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="One node's address, tcp:HOST:PORT or unix:/PATH; once per node, in order.",
)
@click.option("--b", "byzantine", type=click.IntRange(0), default=1, show_default=True)
@click.option("--t", "faulty", type=click.IntRange(0), default=None, help="Default: b.")
@click.option(
    "--durability",
    type=click.Choice([kind.value for kind in Durability]),
    default=Durability.SYNC.value,
    show_default=True,
    help="sync: on stable storage before the reply; interval: synced every second.",
)
@click.option(
    "--window",
    default=format_duration(limits.DETECTION_WINDOW_US),
    show_default=True,
    help="The detection window: versions younger than this are always kept.",
)
def init(
    directory: DataDirectory,
    addresses: tuple[str, ...],
    byzantine: int,
    faulty: int | None,
    durability: str,
    window: str,
) -> None:
    """Make keys and the signed description of a cluster over several machines.

    Then copy DATA/nodes/I and DATA/cluster.toml* to the machine of node I, and run
    `bftfs node run` there.

    Example: bftfs cluster init --data /srv/files --node tcp:10.0.0.1:7000 --node
    tcp:10.0.0.2:7000 --node tcp:10.0.0.3:7000 --node tcp:10.0.0.4:7000 --node tcp:10.0.0.5:7000
    --node tcp:10.0.0.6:7000
    """
    t = byzantine if faulty is None else faulty
    needed = smallest_cluster(t=t, b=byzantine)
    if not addresses:
        raise UsageError(
            f"b={byzantine}, t={t} needs at least {needed} nodes; "
            "give the address of each with --node"
        )
    description = create_cluster(
        directory,
        list(addresses),
        t=t,
        b=byzantine,
        durability=Durability(durability),
        window_us=parse_duration(window),
    )
    click.echo(
        f"Cluster of {description.n} nodes described in {as_word(directory.description)}\n"
        "On the machine of each node I, with a copy of these files:\n"
        f"  bftfs node run --data {as_word(directory.path)}/nodes/I --cluster "
        f"{as_word(directory.description)}\n"
        "On each client's machine, as root or with `user_allow_other` in /etc/fuse.conf:\n"
        f"  bftfs mount --data {as_word(directory.path)} MOUNTPOINT\n"
        f"Keep {as_word(directory.administrator_key)} where nobody else can read it."
    )


@cluster.command("add-client")
@data_option
@click.argument("name")
@click.option(
    "--uid",
    "uids",
    type=click.IntRange(0, 2**32 - 2),
    multiple=True,
    help="May act as this uid (repeat; default: yours, unless you are root).",
)
@click.option(
    "--gid",
    "gids",
    type=click.IntRange(0, 2**32 - 2),
    multiple=True,
    help="May claim this group (repeat; default: the groups of these users on this machine).",
)
@click.option("--any-uid", is_flag=True, help="May act as any user, root included, in any group.")
@click.option(
    "--squash-root", is_flag=True, help="Root on that machine acts as nobody (uid 65534)."
)
@click.option("--read-only", is_flag=True, help="May only read.")
@click.option(
    "--share",
    type=click.IntRange(1, 100),
    default=None,
    metavar="PERCENT",
    help="Of each node's room, for its versions of contents. [default: as the cluster says, 50]",
)
def add_client(
    directory: DataDirectory,
    name: str,
    uids: tuple[int, ...],
    gids: tuple[int, ...],
    any_uid: bool,
    squash_root: bool,
    read_only: bool,
    share: int | None,
) -> int:
    """Make a key and a grant for client NAME, and sign the new description.

    The grant has the users that the client may act as, and their groups: nodes refuse all others.

    Example: bftfs cluster add-client alice --uid 1000 --gid 1000 --gid 27
    """
    administrator = keys.read_identity(directory.administrator_key)
    if any_uid:
        if uids or gids:
            raise UsageError("--any-uid covers all users and groups: leave --uid and --gid out")
        grant = Grant(write=not read_only, squash_root=squash_root)
    else:
        uids = tuple(dict.fromkeys(uids or (_own_uid(),)))
        gids = tuple(dict.fromkeys(gids or (gid for uid in uids for gid in _groups_of(uid))))
        grant = Grant(uids, write=not read_only, gids=gids, squash_root=squash_root)
    described = description_to_change(directory)
    if any(each.name == name for each in described.clients):
        raise UsageError(
            f"there is a client {as_word(name)} already: `bftfs cluster tell` tells all nodes of "
            "it, `bftfs cluster clients` lists all; choose another name for another client"
        )
    description = with_new_client(directory, described, name, grant, share)
    description = with_keys_settled(directory, description, ())
    signed = description_files.store(directory.description, description, administrator)
    click.echo(
        f"Client {name}: key in {as_word(directory.client_key(name))}\n"
        f"It may act as uid {users_shown(grant)}, with groups {groups_shown(grant)}.\n"
        f"Its versions of contents may use {share or description.client_share} % of the room."
    )
    files = "cluster.toml and cluster.toml.sig"
    if not description.epochs:
        files = "cluster.toml, cluster.toml.sig and volume.key"
    click.echo(f"Give the client that file, {files}.")
    return announce(directory, signed, done="admit it")


def _own_uid() -> int:
    """The uid of the user who runs this; nobody gives away root's rights without saying so."""
    uid = os.getuid()
    if uid == 0:
        raise UsageError(
            "say whom the client may act as: `--uid UID` (also several times), or `--any-uid` for "
            "all users, root included"
        )
    return uid


def _groups_of(uid: int) -> list[int]:
    """The groups of a user of this machine, its own first; none of root's, which needs none."""
    if uid == 0:
        return []
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        raise UsageError(
            f"no user of this machine has uid {uid}: say with --gid (also several times) which "
            f"groups it is in, its own first, such as `--gid {uid}`"
        ) from None
    return os.getgrouplist(user.pw_name, user.pw_gid)


@cluster.command("revoke-client")
@data_option
@click.argument("name")
@click.option("--yes", is_flag=True, help=f"Also the client of this machine, {DEFAULT_CLIENT}.")
def revoke_client(directory: DataDirectory, name: str, yes: bool) -> int:
    """Revoke the right to connect of client NAME (or its id, or NAME:ID), at once.

    All nodes are told, wherever they run. Exit code 1 if some of them could not be reached. A new
    key epoch begins: no key that the client has opens what is written from then on. What was
    written before stays as it is: see `bftfs re-encrypt`.

    Example: bftfs cluster revoke-client alice
    """
    administrator = keys.read_identity(directory.administrator_key)
    description = description_to_change(directory)
    entry = _present_client(description, name)
    if entry.name == DEFAULT_CLIENT and not yes:
        raise UsageError(
            f"client {DEFAULT_CLIENT} is the one with which `bftfs up` mounts on this machine; to "
            "revoke it nevertheless, say --yes"
        )
    later = description.without_client(entry.name, at_s=int(time.time()))
    later = with_keys_settled(directory, later, (description,))
    signed = description_files.store(directory.description, later, administrator)
    click.echo(f"Client {entry.name} may not connect any more.")
    return announce(directory, signed, done="have cut it off")


def _present_client(description: ClusterDescription, text: str) -> ClientEntry:
    """The client to revoke; a `UsageError` that says so if it was revoked."""
    for entry in description.clients:
        if entry.name == text:
            return entry
    client = client_called(description, text)
    present = description.client(client)
    if present is not None:
        return present
    for past in description.past_clients:
        if past.client == client:
            raise UsageError(
                f"client {past.name} ({client.hex()[:SHORT_DIGITS]}) was revoked on "
                f"{day(past.revoked_s)}; `bftfs cluster tell` tells all nodes again",
                exit_code=1,
            )
    raise UsageError(f"{text}: there is no such client; `bftfs cluster clients` lists them")


@cluster.command("new-epoch")
@data_option
def new_epoch(directory: DataDirectory) -> int:
    """Begin a new key epoch: clients write with a new key from now on.

    A revocation does so by itself. It is of use where files of a client may have been copied. Nodes
    are told, and give clients the key. What was written before stays as it is: see `bftfs
    re-encrypt`.

    Example: bftfs cluster new-epoch
    """
    administrator = keys.read_identity(directory.administrator_key)
    description = description_to_change(directory)
    later = begin_epoch(directory, replace(description, serial=description.serial + 1))
    signed = description_files.store(directory.description, later, administrator)
    return announce(directory, signed, done="have it")


@cluster.command()
@data_option
def tell(directory: DataDirectory) -> int:
    """Tell all nodes the present description again. Exit code 1 if some do not hear.

    Example: bftfs cluster tell
    """
    return announce(directory, adopt_later(directory), done="have it")


@cluster.command()
@data_option
def sign(directory: DataDirectory) -> int:
    """Sign cluster.toml after editing it by hand, and tell all nodes.

    A client that was taken out of it is revoked.

    Example: bftfs cluster sign
    """
    administrator = keys.read_identity(directory.administrator_key)
    description = edited_description(directory)
    signed = description_files.store(directory.description, description, administrator)
    click.echo(f"Signed {as_word(directory.description)}, number {description.serial}")
    return announce(directory, signed, done="have it")


@cluster.command()
@data_option
def show(directory: DataDirectory) -> None:
    """Print the nodes and clients of the cluster.

    Example: bftfs cluster show
    """
    description = description_files.load(directory.description)
    console = plain_console()
    sizes, blocks = description.query_update, description.read_write
    console.print(
        f"cluster {description.cluster_id.hex()}, description number {description.serial}: "
        f"n={sizes.n} t={sizes.t} b={sizes.b}; "
        f"Q/U q={sizes.q} r={sizes.r}; PASIS QC={blocks.QC} m={blocks.m}; "
        f"durability {description.durability.value}; {epoch_shown(description)}"
    )
    table = Table("node", "address")
    for member in description.members:
        table.add_row(str(member.node), member.address)
    console.print(table)
    clients = known_clients(description)
    console.print(clients_table(tuple(c for c in clients if c.grant is not None), dated=False))
    tell_decisions(description, description.let_go)


@cluster.command()
@data_option
@click.option("--use", is_flag=True, help="Ask the nodes, too, when each was connected last.")
@json_option
def clients(directory: DataDirectory, use: bool, as_json: bool) -> int:
    """List the clients, present and revoked: ids, rights, and when each was added and revoked.

    Exit code 1 if some nodes could not be asked.

    Example: bftfs cluster clients --use
    """
    description = description_files.load(directory.description)
    known = known_clients(description)
    seen_s, missed = last_seen(directory, description) if use else (None, {})
    if as_json:
        listed = [facts(each) for each in known]
        for each, fact in zip(known, listed, strict=True):
            if seen_s is not None:
                fact["seen_s"] = seen_s.get(each.client)
        click.echo(json.dumps(listed, indent=2))
    else:
        plain_console().print(clients_table(known, dated=True, seen_s=seen_s))
        click.echo(f"{epoch_shown(description).capitalize()}.")
        tell_decisions(description, description.let_go)
    for number, why in missed.items():
        click.echo(f"bftfs: node {number} was not asked: it {printable(why)}", err=True)
    return 1 if missed else 0


cluster.add_command(let_go)
