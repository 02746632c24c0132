"""`bftfs up` and `bftfs down`: a whole cluster and a mount on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import click

from bftfs import cluster as description_files
from bftfs.cli import processes
from bftfs.cli.cluster import create_cluster, local_addresses, smallest_cluster
from bftfs.cli.options import data_option, new_data_option
from bftfs.cluster import ClusterDescription, Durability
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.runtime.sockets import unconnected

START_PATIENCE_S = 30.0


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
    """
    if directory.description.exists():
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
        click.echo(f"Made a cluster of {description.n} nodes in {directory.path}")
    started = start_nodes(directory, description)
    click.echo(
        f"{description.n} nodes are running ({started} started); "
        f"any {description.t} may fail, {description.b} of them may lie"
    )
    if mountpoint is None:
        return
    mountpoint = mountpoint.absolute()
    try:
        os.lstat(mountpoint)
    except FileNotFoundError:
        processes.require_writable(mountpoint, purpose="the mount")
    except OSError:
        pass  # a mount whose process was killed; mounting removes it
    is_new = processes.mount_cluster(directory, mountpoint, options=options)
    click.echo(
        f"{'Mounted' if is_new else 'Already mounted'} at {mountpoint}\n"
        "\n"
        "Try next:\n"
        f"  echo hello > {mountpoint}/hello && cat {mountpoint}/hello\n"
        f"  bftfs status --data {directory.path}\n"
        f"  kill -9 $(cat {directory.node(0).pid})   # any one node; the files stay readable and "
        "writable; `bftfs up` again restarts it\n"
        f"  bftfs down --data {directory.path}   # the data stays"
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


def start_nodes(directory: DataDirectory, description: ClusterDescription) -> int:
    """Start the nodes that do not run, and wait until all listen. Gives how many were started."""
    started: dict[int, subprocess.Popen[bytes]] = {}
    running = processes.running_nodes(directory, description)
    for member in description.members:
        if member.node in running:
            continue
        started[member.node] = processes.start(directory.node(member.node), directory.description)
    deadline = time.monotonic() + START_PATIENCE_S
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
            words = processes.last_words(log)
            raise UsageError(
                f"node {member.node} {why}; the end of its log {log}:\n  {words}", exit_code=1
            )
    return len(started)


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
    """Unmount a local cluster and stop its nodes. The data stays."""
    description = description_files.load(directory.description)
    for mountpoint in processes.mounts_of(directory):
        processes.unmount_path(directory, mountpoint)
        click.echo(f"Unmounted {mountpoint}")
    processes.await_end_of_mounts(directory)
    running = processes.running_nodes(directory, description)
    for number, pid in running.items():
        node = directory.node(number)
        if not processes.stop(pid, node):
            raise UsageError(
                f"node {number} (process {pid}) does not stop; see its log {node.log}",
                exit_code=1,
            )
    click.echo(f"Stopped {len(running)} nodes; the data is in {directory.path}")
    if destroy:
        shutil.rmtree(directory.path)
        click.echo(f"Deleted {directory.path}")
