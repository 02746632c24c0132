"""`bftfs cluster …`, the administrator's work: make a cluster, and change its description.

`bftfs node run` starts one of its nodes by hand.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bftfs import cluster as description_files
from bftfs import limits
from bftfs.cli.options import data_option, new_data_option
from bftfs.cli.processes import require_writable, running_nodes
from bftfs.cluster import ClientEntry, ClusterDescription, Durability
from bftfs.crypto.keys import (
    VOLUME_KEY_BYTES,
    Identity,
    read_identity,
    write_identity,
    write_volume_key,
)
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory
from bftfs.errors import UsageError
from bftfs.retention import format_duration, parse_duration
from bftfs.server.step import Grant

# A socket's path may have 107 bytes; a data directory that lies deeper has its sockets elsewhere.
_SOCKET_PATH_BYTES = 100


@click.group()
def cluster() -> None:
    """Make a cluster, and manage its clients."""


def smallest_cluster(*, t: int, b: int) -> int:
    """The number of nodes that both protocols need for t faults, b Byzantine. [Q/U §4.3.3]"""
    return 3 * t + 2 * b + 1


def local_addresses(directory: DataDirectory, nodes: int) -> list[str]:
    """Unix socket addresses for nodes that all run on this machine."""
    sockets = [directory.node(number).socket.absolute() for number in range(nodes)]
    if any(len(os.fsencode(socket)) > _SOCKET_PATH_BYTES for socket in sockets):
        short = Path(tempfile.gettempdir()) / f"bftfs-{os.urandom(4).hex()}"
        sockets = [short / f"{number}.socket" for number in range(nodes)]
    return [f"unix:{socket}" for socket in sockets]


def create_cluster(
    directory: DataDirectory,
    addresses: list[str],
    *,
    t: int,
    b: int,
    durability: Durability,
    clients: Mapping[str, Grant] | None = None,
    window_us: int = limits.DETECTION_WINDOW_US,
) -> ClusterDescription:
    """Make the files of a new cluster with a node at each address.

    Without a choice of `clients` there is one, for this machine, with all rights.
    """
    require_writable(directory.path, purpose="the cluster's files")
    if directory.description.exists():
        raise UsageError(
            f"{directory.path}: there is a cluster already; start it with `bftfs up`, or choose "
            "another directory"
        )
    directory.path.chmod(0o700)
    _clear_unfinished(directory)
    made = description_files.create(
        addresses, t=t, b=b, draw=os.urandom, durability=durability, window_us=window_us
    )
    write_identity(directory.administrator_key, made.administrator)
    write_volume_key(directory.volume_key, os.urandom(VOLUME_KEY_BYTES))
    for number, identity in enumerate(made.nodes):
        node = directory.node(number)
        node.path.mkdir(parents=True, exist_ok=True)
        node.path.chmod(0o700)
        write_identity(node.key, identity)
    description = made.description
    for name, grant in ({DEFAULT_CLIENT: Grant()} if clients is None else clients).items():
        description = _with_new_client(directory, description, name, grant)
    description_files.store(directory.description, description, made.administrator)
    return description


def _clear_unfinished(directory: DataDirectory) -> None:
    """Remove keys of an interrupted creation: there is no description, which is made last."""
    for key in (
        directory.administrator_key,
        directory.volume_key,
        *directory.client_key(DEFAULT_CLIENT).parent.glob("*.key"),
        *directory.path.glob("nodes/*/node.key"),
    ):
        key.unlink(missing_ok=True)


def _with_new_client(
    directory: DataDirectory, description: ClusterDescription, name: str, grant: Grant
) -> ClusterDescription:
    key = directory.client_key(name)
    identity = Identity.generate(os.urandom(32))
    description = description.with_client(ClientEntry(name, identity.public_key, grant))
    key.parent.mkdir(exist_ok=True)
    key.parent.chmod(0o700)
    write_identity(key, identity)
    return description


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
        f"Cluster of {description.n} nodes described in {directory.description}\n"
        "On the machine of each node I, with a copy of these files:\n"
        f"  bftfs node run --data {directory.path}/nodes/I --cluster {directory.description}\n"
        "On each client's machine, as root or with `user_allow_other` in /etc/fuse.conf:\n"
        f"  bftfs mount --data {directory.path} MOUNTPOINT\n"
        f"Keep {directory.administrator_key} where nobody else can read it."
    )


@cluster.command("add-client")
@data_option
@click.argument("name")
@click.option(
    "--uid",
    "uids",
    type=click.IntRange(0, 2**32 - 2),
    multiple=True,
    help="May act as this uid (repeat; default: any).",
)
@click.option("--read-only", is_flag=True, help="May only read.")
def add_client(directory: DataDirectory, name: str, uids: tuple[int, ...], read_only: bool) -> None:
    """Make a key and a grant for client NAME, and sign the new description."""
    description = description_files.load(directory.description)
    administrator = read_identity(directory.administrator_key)
    grant = Grant(uids=uids or None, write=not read_only)
    description = _with_new_client(directory, description, name, grant)
    _announce(directory, description, administrator)
    click.echo(f"Client {name}: key in {directory.client_key(name)}")
    click.echo("Give the client that file, cluster.toml, cluster.toml.sig and volume.key.")
    _remind_of_others(description)


@cluster.command("revoke-client")
@data_option
@click.argument("name")
def revoke_client(directory: DataDirectory, name: str) -> None:
    """Revoke client NAME's right to connect, at once."""
    description = description_files.load(directory.description).without_client(name)
    told = _announce(directory, description, read_identity(directory.administrator_key))
    click.echo(f"Client {name} may not connect any more; {told} running nodes have cut it off.")
    _remind_of_others(description)


def _announce(
    directory: DataDirectory, description: ClusterDescription, administrator: Identity
) -> int:
    """Store the description, and have the nodes that run here read it. Gives their number."""
    description_files.store(directory.description, description, administrator)
    running = running_nodes(directory, description)
    for pid in running.values():
        os.kill(pid, signal.SIGHUP)
    return len(running)


def _remind_of_others(description: ClusterDescription) -> None:
    if not all(member.address.startswith("unix:") for member in description.members):
        click.echo(
            "Copy cluster.toml and cluster.toml.sig to the nodes on other machines, too: they "
            "notice the change at the next request."
        )


@cluster.command()
@data_option
def sign(directory: DataDirectory) -> None:
    """Sign cluster.toml after editing it by hand."""
    description = description_files.load_unsigned(directory.description)
    description_files.store(
        directory.description, description, read_identity(directory.administrator_key)
    )
    click.echo(f"Signed {directory.description}")


@cluster.command()
@data_option
def show(directory: DataDirectory) -> None:
    """Print the nodes and clients of the cluster."""
    description = description_files.load(directory.description)
    console = Console(highlight=False)
    sizes, blocks = description.query_update, description.read_write
    console.print(
        f"cluster {description.cluster_id.hex()}: n={sizes.n} t={sizes.t} b={sizes.b}; "
        f"Q/U q={sizes.q} r={sizes.r}; PASIS QC={blocks.QC} m={blocks.m}; "
        f"durability {description.durability.value}"
    )
    table = Table("node", "address")
    for member in description.members:
        table.add_row(str(member.node), member.address)
    console.print(table)
    table = Table("client", "uids", "may write")
    for entry in description.clients:
        uids = "any" if entry.grant.uids is None else ", ".join(map(str, entry.grant.uids))
        table.add_row(entry.name, uids, "yes" if entry.grant.write else "no")
    console.print(table)


@click.group()
def node() -> None:
    """Storage nodes: one process, one directory each."""


@node.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The node's directory, as `bftfs cluster init` made it (DIR/nodes/I).",
)
@click.option(
    "--cluster",
    "description",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The signed cluster description, cluster.toml.",
)
def run(data: Path, description: Path) -> None:
    """Run a node until SIGTERM or Ctrl-C."""
    from nodes.__main__ import main as node_main

    sys.exit(node_main(["--data", str(data), "--cluster", str(description)]))
