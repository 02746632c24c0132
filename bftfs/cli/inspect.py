"""`bftfs inspect`: the objects and blocks of a path, and how many more faults they survive.

All nodes are asked. The results count what this client has checked itself: fragments against their
version, and answers of nodes against each other. Facts that rest on one node's word only are called
claims.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.table import Table

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cli.command_session import CommandSession, Located, session_at, session_of
from bftfs.cli.options import json_option
from bftfs.cli.plain_console import plain_console
from bftfs.data_directory import DEFAULT_CLIENT
from bftfs.errors import UsageError
from bftfs.filesystem.block_names import PAGE, BlockName
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import GET_ATTRIBUTES
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import WHOLE, ObjectId
from bftfs.limits import SECOND_US
from bftfs.printable import as_word, printable
from bftfs.query_update import inspection as object_inspection
from bftfs.query_update.history import ZERO, time_of
from bftfs.query_update.inspection import Copy, ObjectReport
from bftfs.read_write import inspection as block_inspection
from bftfs.read_write.inspection import BlockReport, Fragment
from bftfs.restoration.telling import file_kind
from bftfs.server.comparison import health_reports

_WIDTH = 200  # columns, if the output is no terminal
_BLOCKS = 256  # shown if no others are asked for
_IN_FLIGHT = 8
_SCRUBBED = "bftfs_scrubbed_seconds"

_MARKS = {
    Fragment.GOOD: "ok",
    Fragment.FALSE: "FALSE",
    Fragment.LACKING: "lacks",
    Fragment.SILENT: "silent",
    Fragment.REFUSED: "refuses",
}


@click.command()
@click.argument("path")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="The cluster's files: no mount is needed, and PATH begins at the root of its file system.",
)
@click.option(
    "--client", default=DEFAULT_CLIENT, show_default=True, help="With --data: as this client."
)
@click.option("--blocks", default=None, metavar="FIRST-LAST", help="Inspect these blocks only.")
@json_option
def inspect(path: str, data: Path | None, client: str, blocks: str | None, as_json: bool) -> int:
    """Show the objects and blocks of PATH, their nodes, and how many faults they survive.

    Writes that were not closed or synced are not seen. Exit code 1 if something cannot be read now.

    Example: bftfs inspect report.txt
    """
    opened = session_at(path) if data is None else session_of(data, client=client)
    with opened as session:
        if data is not None and not path.startswith("/"):
            raise UsageError(
                f"{as_word(path)}: with --data, a path begins with /, the root of all files"
            )
        located = session.locate(path)
        if located.time_us is not None:
            raise UsageError(
                f"{as_word(path)}: inspect shows what is stored now; leave out the time"
            )
        report = inspected(session, located, _range(blocks))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    everything = [*report["objects"], *report["blocks"]]
    return 1 if any(each["survives"] < 0 for each in everything) else 0


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise UsageError(f"--blocks {text}: give numbers of blocks, such as 0-99 or 7")
    return int(first), int(last or first)


# --- asking -------------------------------------------------------------------------------------


def inspected(
    session: CommandSession, located: Located, chosen: tuple[int, int] | None
) -> dict[str, Any]:
    """The report, as `--json` prints it; of these blocks, from the first to the last one."""
    description = session.description
    thresholds = description.read_write
    steps = list(session.steps(session.files, located.path))
    # Of its own: to show which nodes answer, it waits patiently once, also for those that were
    # slow.
    peers = Peers(ThresholdQuorums(description.query_update))
    objects = session.network.perform_many(
        (
            object_inspection.inspect(
                peers,
                identifier,
                description.query_update,
                GET_ATTRIBUTES,
                NoArguments(),
                session.who,
            )
            for _, identifier in steps
        ),
        in_flight=_IN_FLIGHT,
    )
    parts: list[tuple[int, int]] = []
    count, block_bytes = 0, 0
    layout = located.attributes.layout
    found: list[BlockReport] = []
    if layout is not None:
        block_bytes = layout.block_bytes
        count = -(-located.attributes.size // block_bytes)
        first, last = chosen or (0, min(count, _BLOCKS) - 1)
        numbers = range(first, min(last + 1, count))
        parts = list(_parts(session, located.identifier, numbers))
        found = session.network.perform_many(
            (
                block_inspection.inspect(
                    peers, thresholds, layout.block(located.identifier, *part), session.who
                )
                for part in parts
            ),
            in_flight=_IN_FLIGHT,
        )
    return {
        "path": located.given,
        "kind": file_kind(located.attributes),
        "size": located.attributes.size,
        "n": description.n,
        "t": description.t,
        "b": description.b,
        "fragments": thresholds.N,
        "needed": thresholds.m,
        "block_bytes": block_bytes,
        "blocks_in_all": count,
        "inspected": format_time_name(session.now_us),
        "objects": [
            _object(name, report) for (name, _), report in zip(steps, objects, strict=True)
        ],
        "blocks": [
            _block(session, *part, report) for part, report in zip(parts, found, strict=True)
        ],
        "scrubbed_claims": _scrubs(session, peers),
    }


def _parts(
    session: CommandSession, identifier: ObjectId, numbers: range
) -> Iterator[tuple[int, int]]:
    """The numbers and slots of these blocks and of their patches, as the inode names them."""
    named: dict[int, BlockName] = {}
    for first in range(numbers.start - numbers.start % PAGE, numbers.stop, PAGE):
        named |= session.perform(session.files.block_names(identifier, first, session.who))
    for number in numbers:
        yield number, WHOLE
        if number in named:
            yield from ((number, patch.slot) for patch in named[number].patches)


def _scrubs(session: CommandSession, peers: Peers) -> dict[str, str | None]:
    """The time of each node's last complete scrub, as it claims."""
    replies = session.perform(health_reports(peers, range(session.description.n)))
    scrubbed: dict[str, str | None] = {}
    for member in session.description.members:
        reply = replies.get(member.node)
        figures = {} if reply is None else {each.name: each.value for each in reply.background}
        since = figures.get(_SCRUBBED)
        scrubbed[str(member.node)] = format_time_name(round(since * SECOND_US)) if since else None
    return scrubbed


def _object(name: str, report: ObjectReport) -> dict[str, Any]:
    return {
        "name": name,
        "object": report.object.hex(),
        "version": None if report.version == ZERO else format_time_name(time_of(report.version)),
        "complete": report.complete,
        "survives": report.survives,
        "reasons": list(report.reasons),
        "nodes": [
            {
                "node": hosting.node,
                "has": hosting.copy.value,
                "claims": None if not hosting.claims else format_time_name(time_of(hosting.claims)),
            }
            for hosting in report.hostings
        ],
    }


def _block(session: CommandSession, number: int, slot: int, report: BlockReport) -> dict[str, Any]:
    version = report.version
    return {
        "number": number,
        "patch": slot or None,
        "block": report.block.hex(),
        "hole": version is None,
        "version": None if version is None else format_time_name(version.time),
        "written_by": None if version is None else session.client_name(version.client),
        "classification": report.classification.value,
        "verified": report.verified_since_us is not None,
        "verified_since": _since(report.verified_since_us),
        "survives": report.survives,
        "reasons": list(report.reasons),
        "passed_over": [
            {
                "version": format_time_name(each.version.time),
                "written_by": session.client_name(each.version.client),
                "hosts": each.hosts,
                "poisonous": each.poisonous,
            }
            for each in report.passed_over
        ],
        "nodes": [
            {
                "node": holding.node,
                "fragment": holding.index,
                "has": holding.fragment.value,
                "claims_verified": holding.claims_verified,
                "claims_since": _since(holding.claims_since_us),
            }
            for holding in report.holdings
        ],
    }


def _since(time_us: int | None) -> str | None:
    return format_time_name(time_us) if time_us else None


# --- telling people -----------------------------------------------------------------------------


def _print(report: dict[str, Any]) -> None:
    console = plain_console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(f"{as_word(report['path'])}: {report['kind']}, {report['size']} bytes")
    nodes = [f"node {node}" for node in range(report["n"])]
    console.print(_objects_table(report, nodes))
    console.print("survives: the number of further nodes that may fail without harm")
    if report["blocks"]:
        console.print(_blocks_table(report, nodes))
        console.print(
            f"A block is read from any {report['needed']} of {report['fragments']} fragments; the "
            "table has the fragment of each node. ok: checked by this client at "
            f"{_shown(report['inspected'])}; v: the node claims to have verified it. Verified "
            f"since: by then {report['b'] + 1} nodes had verified it, as they claim, and no more "
            f"than {report['b']} of them lie."
        )
    shown, count = len({row["number"] for row in report["blocks"]}), report["blocks_in_all"]
    if shown < count:
        console.print(f"{shown} of {count} blocks are shown; --blocks FIRST-LAST shows others")
    for line in sentences(report):
        console.print(printable(line))
    claims = report["scrubbed_claims"].items()
    said = ", ".join(f"node {node} {_shown(at)}" for node, at in claims if at is not None)
    console.print(f"stores scrubbed last (or made), as the nodes claim: {said or 'never'}")


def _objects_table(report: dict[str, Any], nodes: list[str]) -> Table:
    table = Table("object", "version", *nodes, "survives", box=SIMPLE)
    for row in report["objects"]:
        table.add_row(
            as_word(row["name"]),
            _shown(row["version"]) or "(initial)",
            *("ok" if each["has"] == Copy.LATEST.value else each["has"] for each in row["nodes"]),
            _survives(row["survives"]),
        )
    return table


def _blocks_table(report: dict[str, Any], nodes: list[str]) -> Table:
    columns = ("block", "version", "written by", *nodes, "verified since", "survives")
    table = Table(*columns, box=SIMPLE)
    for row in report["blocks"]:
        table.add_row(
            label(row),
            "hole" if row["hole"] else _shown(row["version"]),
            row["written_by"] or "",
            *map(_cell, row["nodes"]) if not row["hole"] else [""] * report["n"],
            _verified(row),
            _survives(row["survives"]),
        )
    return table


def label(row: dict[str, Any]) -> str:
    """The first cell of a row of the blocks' table: a block's number, and its patch if any."""
    return f"{row['number']}" + (f" patch {row['patch']}" if row["patch"] else "")


def _shown(text: str | None) -> str:
    """A time, to the second."""
    return "" if text is None else text[:19].replace("T", " ")


def _cell(node: dict[str, Any]) -> str:
    mark = _MARKS[Fragment(node["has"])]
    return f"{node['fragment']} {mark}{' v' if node['claims_verified'] else ''}"


def _verified(row: dict[str, Any]) -> str:
    if not row["verified"]:
        return "" if row["hole"] else "not yet"
    return _shown(row["verified_since"]) or "(not kept)"


def _survives(more: int) -> str:
    return "unusable" if more < 0 else str(more)


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """Why something is degraded, and what readers pass over. Nodes' words are not `printable`."""
    yield from _reasons(report)
    yield from _passed_over(report)


def _passed_over(report: dict[str, Any]) -> Iterator[str]:
    """Later versions that readers pass over, with the reason."""
    for row in report["blocks"]:
        for each in row["passed_over"]:
            what = "is poisonous" if each["poisonous"] else f"is at {each['hosts']} nodes only"
            yield (
                f"block {label(row)}: readers pass over the version that {each['written_by']} "
                f"wrote at {_shown(each['version'])}: it {what}"
            )


def _reasons(report: dict[str, Any]) -> Iterator[str]:
    """The reasons for degradation, each once, with the objects and blocks concerned."""
    places = [(f"object {as_word(row['name'])}", row) for row in report["objects"]]
    places += [(f"block {label(row)}", row) for row in report["blocks"]]
    where: dict[str, list[str]] = {}
    for place, row in places:
        for reason in row["reasons"]:
            where.setdefault(reason, []).append(place)
    if not where:
        yield "nothing is degraded: every node has all of its objects and fragments"
    for reason, here in where.items():
        some = ", ".join(here[:4]) + (f" and {len(here) - 4} more" if len(here) > 4 else "")
        yield f"degraded: {reason} ({some})"
