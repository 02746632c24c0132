"""`bftfs status`: what every node says of itself, and where the cluster is mounted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bftfs import cluster as description_files
from bftfs.cli.mount import mount_processes
from bftfs.cli.processes import last_words, running_nodes
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Receive, Send
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory, NodeDirectory
from bftfs.envelope import REPLIES, HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.runtime.blocking import BlockingNetwork

PATIENCE_US = 2_000_000
_POOL_WORTH_SAYING = 0.85  # of it being taken: the node collects, and soon slows writers
_NODES_SENTENCE = "node: "  # with which `python -m nodes` says why it ends


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The cluster's files.")
@click.option("--client", default=DEFAULT_CLIENT, show_default=True, help="Ask with this key.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(data: Path, client: str, as_json: bool) -> int:
    """How the nodes are. Exit code 1 if more nodes are down than the cluster tolerates."""
    directory = DataDirectory.existing(data.absolute())
    description = description_files.load(directory.description)
    nodes = node_states(directory, description, client=client)
    down = sum(1 for node in nodes if not node["up"])
    report = {
        "cluster": description.cluster_id.hex(),
        "n": description.n,
        "t": description.t,
        "b": description.b,
        "available": down <= description.t,
        "nodes": nodes,
        "mounts": [
            {"pid": process.pid, "mountpoint": str(process.mountpoint)}
            for process in mount_processes(directory)
        ],
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report, down=down)
    return 0 if report["available"] else 1


def node_states(
    directory: DataDirectory, description: ClusterDescription, *, client: str
) -> list[dict[str, Any]]:
    """Per node: number, address, pid, and its own account of itself if it answers."""
    identity = read_identity(directory.client_key(client))
    with BlockingNetwork(description, identity, decode=REPLIES.decode) as network:
        replies = network.perform_many(
            (_ask(member.node) for member in description.members), in_flight=description.n
        )
    running = running_nodes(directory, description)
    states = []
    for member, reply in zip(description.members, replies, strict=True):
        state: dict[str, Any] = {
            "node": member.node,
            "address": member.address,
            "pid": running.get(member.node) if reply is None else reply.pid,
            "up": reply is not None,
            "healthy": reply is not None and reply.healthy,
            "reasons": (
                _silence(directory.node(member.node)) if reply is None else list(reply.reasons)
            ),
        }
        if reply is not None:
            state |= {
                "uptime_s": reply.uptime_us / 1e6,
                "store_bytes": reply.store_bytes,
                "memory_bytes": reply.memory_bytes,
                "requests": reply.requests,
                "background": {figure.name: figure.value for figure in reply.background},
            }
        states.append(state)
    return states


def _silence(node: NodeDirectory) -> list[str]:
    """Why a node does not answer: the sentence with which a local one has ended, if it has."""
    words = last_words(node.log, lines=1)
    return ["does not answer", *([words] if words.startswith(_NODES_SENTENCE) else [])]


async def _ask(node: NodeId) -> HealthReply | None:
    await Send(node, HealthRequest())
    delivery = await Receive(PATIENCE_US)
    message = None if delivery is None else delivery.message
    return message if isinstance(message, HealthReply) else None


def _work(node: dict[str, Any]) -> list[str]:
    """What the node is busy with in the background, for people."""
    figures = node.get("background", {})
    said = []
    for what in ("objects", "blocks"):
        progress = figures.get(f"bftfs_heal_{what}_progress", 1.0)
        if progress < 1:
            rebuilt = figures.get(f"bftfs_heal_{what}_rebuilt", 0)
            said.append(f"heals: {progress:.0%} of {what} compared, {rebuilt:.0f} rebuilt")
        if failed := figures.get(f"bftfs_heal_{what}_failed", 0):
            said.append(f"{failed:.0f} times {what} could not be rebuilt")
    if limit := figures.get("bftfs_pool_limit_bytes", 0):
        taken = figures.get("bftfs_pool_bytes", 0) / limit
        if taken >= _POOL_WORTH_SAYING:
            said.append(f"{taken:.0%} of the history pool is taken")
    if demands := figures.get("bftfs_verification_demands", 0):
        said.append(f"{demands:.0f} writes waited for verification: their client was at a limit")
    return said


def _print(report: dict[str, Any], *, down: int) -> None:
    console = Console(highlight=False)
    table = Table(
        "node", "address", "pid", "state", "store", "memory", "requests", "unverified", "up for"
    )
    for node in report["nodes"]:
        state = "; ".join([*(["ok"] if node["healthy"] else []), *node["reasons"], *_work(node)])
        if node["up"]:
            table.add_row(
                str(node["node"]),
                node["address"],
                str(node["pid"]),
                state,
                f"{node['store_bytes'] / 2**20:.1f} MiB",
                f"{node['memory_bytes'] / 2**20:.0f} MiB",
                str(node["requests"]),
                f"{node['background'].get('bftfs_possible_versions', 0):.0f}",
                f"{node['uptime_s']:.0f} s",
            )
        else:
            table.add_row(str(node["node"]), node["address"], str(node["pid"] or "-"), state)
    console.print(table)
    tolerated = report["t"]
    if down == 0:
        console.print(f"all nodes answer; any {tolerated} may fail, {report['b']} of them may lie")
    elif report["available"]:
        console.print(f"{down} down, {tolerated - down} more may fail: files can be used")
    else:
        console.print(
            f"{down} down, and only {tolerated} may be: operations wait until enough are back; "
            "`bftfs up` restarts local ones"
        )
    for mounted in report["mounts"]:
        console.print(f"mounted at {mounted['mountpoint']} by process {mounted['pid']}")
