"""`bftfs status`: the nodes' reports on themselves, and the mounts on this machine."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bftfs import description_files
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cli.decisions import decisions_known, decisions_told
from bftfs.cli.epochs import epoch_shown
from bftfs.cli.options import data_option, json_option
from bftfs.cli.plain_console import plain_console
from bftfs.cli.processes import last_words, mount_processes, running_nodes
from bftfs.cli.reach import is_local, what_to_start
from bftfs.cli.upkeep import duration, volume
from bftfs.cluster import ClusterDescription
from bftfs.crypto.keys import Identity, read_identity
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory, NodeDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import NotAdmitted, UsageError
from bftfs.filesystem.attributes import inode_number
from bftfs.limits import VERIFY_SLOPE_FROM
from bftfs.printable import as_word, printable
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.server.comparison import health_reports, told_by_a_correct_one, with_a_correct_one
from mount.identity import identity_of

_POOL_WORTH_SAYING = 0.85  # the share from which on a node collects, and soon slows writers
_WRITES_REFUSED = "writes are refused"  # the beginning of that reason in a node's health
_NODES_SENTENCE = "node: "  # the beginning of the last message of `python -m nodes`
_NOT_ADMITTED = NotAdmitted.__name__  # the beginning of that reason for a lost connection
_REFUSES = "does not know the client's key (any more)"
_WATCH_S = 2.0


_AHEAD = (
    "objects (files, directories) have times of the future: they were changed while clocks were "
    "ahead. They can be used as ever; the past has what was changed since, once clocks come there. "
    "In a mount, `find -inum NUMBER` finds them:"
)


@click.command()
@data_option
@click.option("--client", default=DEFAULT_CLIENT, show_default=True, help="Ask as this client.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@json_option
def status(directory: DataDirectory, client: str, watch: bool, as_json: bool) -> int:
    """Show the state of the nodes. Exit code 1 if more are down than the cluster tolerates.

    Example: bftfs status --watch
    """
    if watch and as_json:
        raise UsageError("--watch is for people, and --json for programs: choose one")
    while True:
        report = report_of(directory, client=client)
        if as_json:
            click.echo(json.dumps(report, indent=2))
        else:
            if watch:
                click.clear()
            tell(report, plain_console())
        if not watch:
            return 0 if report["available"] else 1
        time.sleep(_WATCH_S)


_DECISIONS = 3  # to let history go, that are shown


def report_of(directory: DataDirectory, *, client: str) -> dict[str, Any]:
    """All that is known of the cluster, as `--json` prints it."""
    description = description_files.load(directory.description)
    nodes = node_states(directory, description, client=client)
    down = sum(1 for node in nodes if not node["up"])
    told = [node.pop("let_go") for node in nodes if node["up"]]
    return {
        "cluster": description.cluster_id.hex(),
        "n": description.n,
        "t": description.t,
        "client": client,
        "b": description.b,
        "available": down <= description.t,
        "quorums": quorums(description, nodes),
        "degraded": degraded(nodes),
        "unverified": unverified(nodes),
        "pool": pool(nodes),
        "objects": objects(nodes, b=description.b),
        "writers": writers(nodes),
        "descriptions": descriptions(description, nodes),
        "key_epoch": description.epoch_number,
        "keys": epoch_shown(description),
        "let_go": decisions_told(description, decisions_known(description, told)),
        "ahead": ahead(nodes, b=description.b),
        "ahead_inodes": ahead_inodes(nodes, b=description.b),
        "nodes": nodes,
        "mounts": [
            {"pid": process.pid, "mountpoint": str(process.mountpoint)}
            for process in mount_processes(directory)
        ],
    }


def node_states(
    directory: DataDirectory, description: ClusterDescription, *, client: str
) -> list[dict[str, Any]]:
    """Per node: number, address, pid, and its report on itself, if it answers."""
    identity = _asking(directory, client)
    peers = Peers(ThresholdQuorums(description.query_update))
    with BlockingNetwork(description, identity, decode=REPLIES.decode) as network:
        replies = network.perform(health_reports(peers, range(description.n)))
        unreachable = dict(network.links.unreachable())
    running = running_nodes(directory, description)
    states = []
    for member in description.members:
        local = is_local(directory, description, member.node)
        state: dict[str, Any] = {"node": member.node, "address": member.address, "local": local}
        why = unreachable.get(member.node, "")
        reply = replies.get(member.node)
        if reply is None:
            state |= {
                "pid": running.get(member.node),
                "up": False,
                "healthy": False,
                "reasons": [_REFUSES]
                if why.startswith(_NOT_ADMITTED)
                else _silence(directory.node(member.node))
                if local or not why
                else [f"does not answer at {member.address} ({why})"],
            }
        else:
            state |= {
                "pid": reply.pid,
                "up": True,
                "healthy": reply.healthy,
                "reasons": list(map(printable, reply.reasons)),
                "uptime_s": reply.uptime_us / 1e6,
                "store_bytes": reply.store_bytes,
                "used_bytes": reply.used_bytes,
                "free_bytes": reply.free_bytes,
                "objects": reply.objects,
                "memory_bytes": reply.memory_bytes,
                "requests": reply.requests,
                "description": reply.description_serial,
                "description_digest": reply.description_digest.hex(),
                "let_go": reply.let_go,
                "ahead": sorted({inode_number(identifier) for identifier in reply.ahead}),
                "background": {figure.name: figure.value for figure in reply.background},
            }
        states.append(state)
    return states


def _asking(directory: DataDirectory, client: str) -> Identity:
    """The principal that asks: the client, or the administrator if only that key is here."""
    if client == DEFAULT_CLIENT and not directory.client_key(client).exists():
        with suppress(UsageError):
            return read_identity(directory.administrator_key)
    return identity_of(directory, client)


# --- of the whole cluster ---------------------------------------------------------------------


def quorums(description: ClusterDescription, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The nodes that each protocol needs, those that are whole, and how many more may fail.

    A node that is rebuilding a lost store is up, but counts as failed.
    """
    whole = sum(1 for node in nodes if node["up"] and not _figure(node, "bftfs_recovering"))
    objects, blocks = description.query_update, description.read_write
    return {
        "whole": whole,
        "objects": {
            "n": objects.n,
            "quorum": objects.q,
            "repairable": objects.r,
            "more_may_fail": whole - objects.q,
        },
        "blocks": {
            "n": blocks.N,
            "answers": blocks.responses,
            "fragments_needed": blocks.m,
            "more_may_fail": whole - blocks.responses,
        },
    }


def degraded(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The objects and blocks that nodes lack, as of their last comparison with the others."""
    return {
        "objects": _total(nodes, "bftfs_heal_objects_lacking"),
        "blocks": _total(nodes, "bftfs_heal_blocks_lacking"),
        "damaged_objects": _total(nodes, "bftfs_damaged_objects"),
        "rebuilding_nodes": [node["node"] for node in nodes if _figure(node, "bftfs_recovering")],
        "absent_nodes": [node["node"] for node in nodes if not node["up"]],
        "compared_at": {
            str(node["node"]): _figure(node, "bftfs_heal_pass_timestamp_seconds") or None
            for node in nodes
            if node["up"]
        },
    }


def unverified(nodes: list[dict[str, Any]]) -> dict[str, int]:
    """The largest backlogs: block versions not verified, and objects with incomplete updates."""
    versions = [_figure(node, "bftfs_possible_versions") for node in nodes]
    objects = [_figure(node, "bftfs_possible_objects") for node in nodes]
    return {
        "block_versions": round(max(versions, default=0)),
        "objects": round(max(objects, default=0)),
    }


def pool(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of each node's history pool that is taken, and the largest."""
    shares = {str(node["node"]): _share(node) for node in nodes if node["up"]}
    return {"shares": shares, "fullest": max(shares.values(), default=0.0)}


def objects(nodes: list[dict[str, Any]], *, b: int) -> int:
    """How many objects there are: what a correct node says, or what is between two of them."""
    counts = sorted(node["objects"] for node in nodes if node["up"])
    return counts[b] if len(counts) > b else 0


def _share(node: dict[str, Any]) -> float:
    room = node["used_bytes"] + node["free_bytes"]
    return node["used_bytes"] / room if room else 1.0


def writers(nodes: list[dict[str, Any]]) -> list[str]:
    """The reasons why writers are slow or refused, the worst first."""
    said = [
        f"node {node['node']}: {reason}"
        for node in nodes
        for reason in node["reasons"]
        if reason.startswith(_WRITES_REFUSED)
    ]
    for node in nodes:
        fullness = _figure(node, "bftfs_possible_versions_fullness")
        if fullness > VERIFY_SLOPE_FROM:
            said.append(
                f"node {node['node']}: unverified versions are at {fullness:.0%} of a limit: "
                f"beyond {VERIFY_SLOPE_FROM:.0%}, writes wait for verification now and then"
            )
        if node["up"] and _share(node) >= _POOL_WORTH_SAYING:
            said.append(f"node {node['node']}: its room for versions is {_share(node):.0%} taken")
    for name, why in (
        ("bftfs_verification_demands", "writes have waited for verification, at a limit"),
        (
            "bftfs_verification_slowed",
            "writes have waited for some verification, beyond half of a limit",
        ),
        ("bftfs_repair_demands", "updates have waited because their client left others incomplete"),
    ):
        if waited := _total(nodes, name):
            said.append(f"{waited} {why}, at all nodes together, since they were started")
    return said


def descriptions(description: ClusterDescription, nodes: list[dict[str, Any]]) -> list[str]:
    """How the descriptions of the nodes and of this machine differ, and what to do about it."""
    serials = {node["node"]: node["description"] for node in nodes if node["up"]}
    mine = description.serial
    latest = max(mine, with_a_correct_one(serials.values(), b=description.b))
    tell = "`bftfs cluster tell`, where admin.key is"
    said = [
        f"node {node} has number {serial}, older than its peers' or this machine's, number "
        f"{latest}: it hears from its peers within a minute, and at once by {tell}"
        for node, serial in serials.items()
        if serial < latest
    ]
    if mine < latest:
        said.append(
            f"this machine has number {mine}, older than the nodes', number {latest}: copy "
            "cluster.toml and cluster.toml.sig here from the administrator's machine"
        )
    return said + [
        f"node {node['node']} and this machine have different ones, both number {mine}: sign "
        "the right one again (`bftfs cluster sign`)"
        for node in nodes
        if node["up"]
        and node["description"] == mine
        and node["description_digest"] != description.digest.hex()
    ]


def ahead(nodes: list[dict[str, Any]], *, b: int) -> int:
    """How many objects have times in the future, as b + 1 nodes say."""
    counts = (round(_figure(node, "bftfs_heal_objects_ahead")) for node in nodes if node["up"])
    return with_a_correct_one(counts, b=b)


def ahead_inodes(nodes: list[dict[str, Any]], *, b: int) -> list[int]:
    """The inode numbers of some of these objects, which b + 1 nodes name."""
    claims = (node["ahead"] for node in nodes if node["up"])
    return sorted(told_by_a_correct_one(claims, b=b))


def _figure(node: dict[str, Any], name: str) -> float:
    """A figure in a node's report; 0 if it is not there."""
    value: float = node.get("background", {}).get(name, 0.0)
    return value


def _total(nodes: list[dict[str, Any]], name: str) -> int:
    return sum(round(_figure(node, name)) for node in nodes)


# --- of one node ------------------------------------------------------------------------------


def _silence(node: NodeDirectory) -> list[str]:
    """Reasons for a node that does not answer: for a local one, its last message."""
    words = last_words(node.log, lines=1)
    return ["does not answer", *([words] if words.startswith(_NODES_SENTENCE) else [])]


def _work(node: dict[str, Any]) -> list[str]:
    """The background work of a node, for people."""
    figures = node.get("background", {})
    said = []
    for what in ("objects", "blocks"):
        progress = figures.get(f"bftfs_heal_{what}_progress", 1.0)
        if progress < 1:
            rebuilt = figures.get(f"bftfs_heal_{what}_rebuilt", 0)
            said.append(f"heals: {progress:.0%} of {what} compared, {rebuilt:.0f} rebuilt")
        if failed := figures.get(f"bftfs_heal_{what}_failed", 0):
            said.append(f"{failed:.0f} times {what} could not be rebuilt")
    if node.get("used_bytes") and _share(node) >= _POOL_WORTH_SAYING:
        said.append(f"{_share(node):.0%} of the history pool is taken")
    if demands := figures.get("bftfs_verification_demands", 0):
        said.append(f"{demands:.0f} writes waited for verification: their client was at a limit")
    return said


def _summary(report: dict[str, Any]) -> list[str]:
    """The numbers of the whole cluster, in sentences."""
    objects, blocks = report["quorums"]["objects"], report["quorums"]["blocks"]
    whole = report["quorums"]["whole"]
    lack, waiting = report["degraded"], report["unverified"]
    parts = [f"{lack[what]} {what} that some node lacks" for what in ("objects", "blocks")]
    parts.append(f"{lack['damaged_objects']} damaged objects")
    for name, why in (("absent_nodes", "away"), ("rebuilding_nodes", "rebuilding")):
        if lack[name]:
            parts.append(f"what nodes {', '.join(map(str, lack[name]))} host ({why})")
    lacking = "; ".join(part for part in parts if part[0] != "0") or "nothing that nodes have found"
    return [
        f"quorums: {whole} of {objects['n']} nodes are up and whole; objects need "
        f"{objects['quorum']} ({_more(objects)}), blocks {blocks['answers']} ({_more(blocks)})",
        f"degraded: {lacking} ({_compared(lack['compared_at'], time.time())})",
        f"unverified: {waiting['block_versions']} versions of blocks, {waiting['objects']} objects"
        " (at the node with most)",
        f"room: {report['pool']['fullest']:.1%} is taken at the fullest node; "
        f"{report['objects']:,} objects (files, directories and the like, with deleted ones)",
        *(f"writers: {limit}" for limit in report["writers"] or ["nothing limits them"]),
        *(f"description: {difference}" for difference in report["descriptions"]),
        f"keys: {report['keys']}",
        *(f"history: {sentence}" for sentence in report["let_go"][-_DECISIONS:]),
        *([_ahead(report["ahead"], report["ahead_inodes"])] if report["ahead"] else []),
    ]


def _compared(compared_at: dict[str, float | None], now_s: float) -> str:
    """How old the nodes' knowledge is of what they lack."""
    times = [at for at in compared_at.values() if at is not None]
    not_yet = [number for number, at in compared_at.items() if at is None]
    said = []
    if times:
        age = duration(max(0.0, now_s - min(times)))
        said.append(f"as of {age} ago, when nodes last began to compare everything")
    if times and not_yet:
        which = f"nodes {', '.join(not_yet)} have" if not_yet[1:] else f"node {not_yet[0]} has"
        said.append(f"{which} not done that since the start")
    return "; ".join(said) or "nodes have not compared everything since their start"


def _ahead(count: int, numbers: list[int]) -> str:
    """A sentence about the objects whose times are in the future."""
    more = count - len(numbers)
    named = [*map(str, numbers), *([f"{more} more"] if more > 0 else [])]
    return f"times: {count} {_AHEAD} {', '.join(named)}"


def _more(protocol: dict[str, Any]) -> str:
    more = protocol["more_may_fail"]
    return f"{more} more may fail" if more >= 0 else f"{-more} too few"


def sentences(report: dict[str, Any]) -> list[str]:
    """What nodes remark, what can be used, and the numbers of the whole cluster."""
    said = [*_remarks(report["nodes"]), _availability(report)]
    if any(node["up"] for node in report["nodes"]):  # else nothing is known
        said += _summary(report)
    return said


def tell(report: dict[str, Any], console: Console) -> None:
    """Print the report for people: a table that fits 80 columns, and sentences."""
    console.print(_table(report["nodes"]))
    soft = not console.is_terminal  # what reads from a pipe breaks lines itself, or not at all
    for line in sentences(report):
        console.print(line, soft_wrap=soft)
    for mounted in report["mounts"]:
        where = as_word(mounted["mountpoint"])
        console.print(f"mounted at {where} by process {mounted['pid']}", soft_wrap=soft)


def _table(nodes: list[dict[str, Any]]) -> Table:
    """A row per node. Addresses of local nodes are all alike, and left out."""
    remote = any(not node["address"].startswith("unix:") for node in nodes)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns = ("node", "state", "pid", "store", "unverified", "up for")
    for name in (*columns, *(("address",) if remote else ("memory", "requests"))):
        table.add_column(name, no_wrap=name != "address", overflow="fold")
    for node in nodes:
        state = "down" if not node["up"] else "ok" if node["healthy"] else "degraded"
        if _REFUSES in node["reasons"]:
            state = "refuses"
        figures = ["", "", ""]
        more = [node["address"].removeprefix("tcp:")] if remote else []
        if node["up"]:
            figures = [
                volume(node["store_bytes"]),
                f"{_figure(node, 'bftfs_possible_versions'):.0f}",
                duration(node["uptime_s"]),
            ]
            more = more or [f"{node['memory_bytes'] / 2**20:.0f} MiB", str(node["requests"])]
        table.add_row(str(node["node"]), state, str(node["pid"] or "-"), *figures, *more)
    return table


def _remarks(nodes: list[dict[str, Any]]) -> list[str]:
    """The remarks of all nodes: each sentence once, after the nodes that make it."""
    who: dict[str, list[int]] = {}
    for node in nodes:
        for said in (*node["reasons"], *_work(node)):
            who.setdefault(said, []).append(node["node"])
    return [
        f"{'node' if len(numbers) == 1 else 'nodes'} {', '.join(map(str, numbers))}: {said}"
        for said, numbers in who.items()
    ]


def _availability(report: dict[str, Any]) -> str:
    """One sentence: users can read and write files, or what keeps them from it."""
    tolerated, nodes = report["t"], report["nodes"]
    refusing = sum(_REFUSES in node["reasons"] for node in nodes)
    if refusing > report["b"]:
        return (
            f"client {report['client']} is revoked, or not known yet: {refusing} nodes refuse its "
            "key; ask as another one (--client), or ask the administrator"
        )
    down = [node["node"] for node in nodes if not node["up"]]
    if not down:
        return f"all nodes answer; any {tolerated} may fail, {report['b']} of them may lie"
    if len(down) == len(nodes):
        return f"no node answers; {_what_to_start(nodes)}"
    if report["available"]:
        return f"{len(down)} down, {tolerated - len(down)} more may fail: files can be used"
    return (
        f"{len(down)} down, and only {tolerated} may be: operations wait for "
        f"{len(down) - tolerated} more of nodes {', '.join(map(str, down))}; "
        f"{_what_to_start(nodes)}"
    )


def _what_to_start(nodes: list[dict[str, Any]]) -> str:
    """What to do about the nodes that do not answer."""
    down = [node for node in nodes if not node["up"]]
    here = [node["node"] for node in down if node["local"]]
    return what_to_start(here=here, away=[node["node"] for node in down if not node["local"]])
