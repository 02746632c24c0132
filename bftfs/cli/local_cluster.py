"""A whole cluster on this machine: `bftfs up` makes, starts and mounts it, `bftfs down` stops it.

`bftfs node run` starts one node by hand. The administrator's commands are in `bftfs.cli.cluster`,
which needs more, and takes longer to import.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click

from bftfs import description_files, limits
from bftfs.cli import processes
from bftfs.cli.options import data_option, data_words, new_data_option
from bftfs.cluster import ClientEntry, ClusterDescription, Durability, create
from bftfs.credentials import Grant
from bftfs.crypto import keys
from bftfs.crypto.digest import client_id_of
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory, NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.known_clients import SHORT_DIGITS
from bftfs.printable import as_word
from bftfs.runtime.sockets import unconnected

START_PATIENCE_S = 30.0

# A socket's path may have 107 bytes; a data directory that lies deeper has its sockets elsewhere.
_SOCKET_PATH_BYTES = 100
_CLIENT_SHARE = 50  # percent of the room of a new cluster, of each client but the first


# --- making one ------------------------------------------------------------------------------


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
    processes.require_writable(directory.path, purpose="the cluster's files")
    if directory.has_cluster():
        raise UsageError(
            f"{as_word(directory.path)}: there is a cluster already; start it with `bftfs "
            "up`, or choose "
            "another directory"
        )
    directory.require_free()
    directory.path.chmod(0o700)
    _clear_unfinished(directory)
    directory.unfinished.touch()
    made = create(
        addresses,
        t=t,
        b=b,
        draw=os.urandom,
        durability=durability,
        window_us=window_us,
        client_share=_CLIENT_SHARE,
    )
    keys.write_identity(directory.administrator_key, made.administrator)
    keys.write_volume_key(directory.volume_key, os.urandom(keys.VOLUME_KEY_BYTES))
    for number, identity in enumerate(made.nodes):
        node = directory.node(number)
        node.path.mkdir(parents=True, exist_ok=True)
        node.path.chmod(0o700)
        keys.write_identity(node.key, identity)
    description = made.description
    for name, grant in ({DEFAULT_CLIENT: Grant()} if clients is None else clients).items():
        share = 100 if name == DEFAULT_CLIENT else None
        description = with_new_client(directory, description, name, grant, share)
    description_files.store(directory.description, description, made.administrator)
    directory.unfinished.unlink()
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


def with_new_client(
    directory: DataDirectory,
    description: ClusterDescription,
    name: str,
    grant: Grant,
    share: int | None,
) -> ClusterDescription:
    """The description with one more client, whose new key is in the directory."""
    key = directory.client_key(name)
    identity = keys.Identity.generate(os.urandom(32))
    entry = ClientEntry(name, identity.public_key, grant, int(time.time()), share)
    description = description.with_client(entry)
    key.parent.mkdir(exist_ok=True)
    key.parent.chmod(0o700)
    _put_aside(key, description)
    keys.write_identity(key, identity)
    return description


def _put_aside(key: Path, description: ClusterDescription) -> None:
    """Rename the key of a revoked client, whose name is given to another one."""
    if not key.exists():
        return
    client = client_id_of(public_key=keys.read_identity(key).public_key)
    if any(past.client == client for past in description.past_clients):
        aside = key.with_name(f"{key.stem}:{client.hex()[:SHORT_DIGITS]}.key")
        key.replace(aside)
        click.echo(f"The key of the {key.stem} that was revoked is now {aside}")


# --- starting and stopping ---------------------------------------------------------------------


@click.command()
@new_data_option
@click.option(
    "--mount",
    "mountpoint",
    type=Path,  # click.Path would stat it, which waits for a cluster that is not started yet
    help="Mount it here (made if missing).",
)
@click.option("--nodes", type=click.IntRange(1), default=None, help="Default: 3t + 2b + 1.")
@click.option("--b", "byzantine", type=click.IntRange(0), default=None, help="Byzantine nodes. [1]")
@click.option(
    "--t", "faulty", type=click.IntRange(0), default=None, help="Faulty nodes in all. [b]"
)
@click.option(
    "--durability",
    type=click.Choice([kind.value for kind in Durability]),
    default=None,
    help="For a new cluster. [sync]",
)
@click.option("-o", "options", default="", help="Mount options, as of `bftfs mount`.")
def up(
    directory: DataDirectory,
    mountpoint: Path | None,
    nodes: int | None,
    byzantine: int | None,
    faulty: int | None,
    durability: str | None,
    options: str,
) -> None:
    """Start a local cluster (made if there is none) and mount it.

    Repeating it is harmless: nodes that run are left alone, others are started.

    Example: bftfs up --mount ~/bftfs
    """
    if mountpoint is not None:
        # Checked first, so that a failure leaves nothing behind.
        mountpoint = processes.require_mountable(directory, mountpoint, options=options)
    if directory.has_cluster():
        description = description_files.load(directory.description)
        _refuse_other_sizes(description, nodes=nodes, b=byzantine, t=faulty)
    else:
        b = 1 if byzantine is None else byzantine
        t = b if faulty is None else faulty
        description = create_cluster(
            directory,
            local_addresses(directory, nodes or smallest_cluster(t=t, b=b)),
            t=t,
            b=b,
            durability=Durability(durability or Durability.SYNC.value),
        )
        click.echo(f"Made a cluster of {description.n} nodes in {as_word(directory.path)}")
    begun = start_nodes(directory, description)
    for node, why in begun.failed.items():
        click.echo(f"bftfs: node {node} {why}", err=True)
    more = description.t - len(begun.failed)
    click.echo(
        f"{description.n - len(begun.failed)} of {description.n} nodes are running "
        f"({begun.started} started); any {description.t} may fail, {description.b} of them may lie"
        + (f": {more} more from now on, until these are mended" if begun.failed else "")
    )
    if mountpoint is None:
        return
    is_new = processes.mount_cluster(directory, mountpoint, options=options)
    data = data_words(directory)
    click.echo(
        f"{'Mounted' if is_new else 'Already mounted'} at {as_word(mountpoint)}\n"
        "\n"
        "Try next:\n"
        f"  echo hello > {as_word(mountpoint)}/hello && cat {as_word(mountpoint)}/hello\n"
        f"  bftfs status{data}\n"
        f"  kill -9 $(cat {as_word(directory.node(0).pid)})   # any one node; the files stay "
        "readable and "
        "writable; `bftfs up` again restarts it\n"
        f"  bftfs down{data}   # the data stays"
    )


def _refuse_other_sizes(
    description: ClusterDescription, *, nodes: int | None, b: int | None, t: int | None
) -> None:
    for name, asked, there in (
        ("nodes", nodes, description.n),
        ("b", b, description.b),
        ("t", t, description.t),
    ):
        if asked is not None and asked != there:
            raise UsageError(
                f"this cluster has {name}={there}, not {asked}; leave --{name} out, or make "
                "another cluster with another --data"
            )


class Begun(NamedTuple):
    """The result of starting nodes: how many were started, and why others could not be."""

    started: int
    failed: dict[NodeId, str]  # by node; at most t of them


def start_nodes(directory: DataDirectory, description: ClusterDescription) -> Begun:
    """Start the nodes that do not run, and wait until they listen.

    A `UsageError` if more than t do not: without a quorum nothing can be done.
    """
    started: dict[int, subprocess.Popen[bytes]] = {}
    running = processes.running_nodes(directory, description)
    for member in description.members:
        if member.node in running:
            continue
        started[member.node] = processes.start(directory.node(member.node), directory.description)
    deadline = time.monotonic() + START_PATIENCE_S
    failed: dict[NodeId, str] = {}
    for member in description.members:
        process = started.get(member.node)
        while not _listens(member.address):
            if process is not None and process.poll() is not None:
                why = f"stopped at once (exit code {process.returncode})"
            elif time.monotonic() > deadline:
                why = f"does not answer at {member.address} after {START_PATIENCE_S:.0f} s"
            else:
                time.sleep(0.02)
                continue
            log = directory.node(member.node).log
            failed[member.node] = f"{why}; the end of its log {log}:\n  {processes.last_words(log)}"
            break
    if len(failed) > description.t:
        others = "".join(f"\nnode {node} {why}" for node, why in list(failed.items())[1:])
        node, why = next(iter(failed.items()))
        raise UsageError(
            f"node {node} {why}{others}\n{len(failed)} nodes do not run, and only "
            f"{description.t} may fail: nothing is mounted",
            exit_code=1,
        )
    return Begun(len(started.keys() - failed.keys()), failed)


def _listens(address: str) -> bool:
    try:
        probe, target = unconnected(address)
    except OSError:
        return False
    with probe:
        probe.settimeout(1.0)
        return probe.connect_ex(target) == 0


@click.command()
@data_option
@click.option("--destroy", is_flag=True, help="Delete all of its data and keys afterwards.")
def down(directory: DataDirectory, destroy: bool) -> None:
    """Unmount a local cluster and stop its nodes. The data stays.

    Example: bftfs down
    """
    description = description_files.load(directory.description)
    for mountpoint in processes.mounts_of(directory):
        processes.unmount_path(directory, mountpoint)
        click.echo(f"Unmounted {as_word(mountpoint)}")
    processes.await_end_of_mounts(directory)
    running = processes.running_nodes(directory, description)
    for number, pid in running.items():
        node = directory.node(number)
        if not processes.stop(pid, node):
            raise UsageError(
                f"node {number} (process {pid}) does not stop; see its log {node.log}",
                exit_code=1,
            )
    click.echo(f"Stopped {len(running)} nodes; the data is in {as_word(directory.path)}")
    if destroy:
        left = directory.destroy()
        shown = as_word(directory.path)
        if left:
            names = ", ".join(map(as_word, left[:3])) + (" …" if len(left) > 3 else "")
            click.echo(f"Deleted the cluster in {shown}; what else is there stays: {names}")
        else:
            click.echo(f"Deleted {shown}")


# --- one node ------------------------------------------------------------------------------------


@click.group()
def node() -> None:
    """Storage nodes: one process, one directory each."""


@node.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> int:
    """Run a node until SIGTERM or Ctrl-C."""
    from nodes.__main__ import main as node_main

    return node_main(arguments, name="bftfs node run")


@node.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The node's directory (DIR/nodes/I).",
)
def convert(data: Path) -> None:
    """Take over the store of a stopped node that release 0.1 has written.

    It needs room for a copy of the store for a while. Nothing has changed if it is interrupted.

    Example: bftfs node convert --data /srv/files/nodes/3
    """
    from nodes.store_conversion import convert as convert_store

    store = NodeDirectory(data).store
    if convert_store(store):
        click.echo(f"Converted {as_word(store)}: the node can be started")
    else:
        click.echo(f"Nothing to do: {as_word(store)} has the present format")
