"""`bftfs usage`: who and what holds the room of a cluster, and what of it becomes free when.

The nodes tell what they store (`bftfs.server.usage`), to the administrator's key. No node is
believed alone: each figure is the middle one of what at least N - t nodes say. At most b of these
lie, so it lies between the figures of two correct nodes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.box import SIMPLE
from rich.table import Table

from bftfs import description_files, limits
from bftfs.cli.command_session import CommandSession, Located, absolute, session_at
from bftfs.cli.options import data_path_option, json_option
from bftfs.cli.plain_console import plain_console
from bftfs.cli.processes import mounts_of
from bftfs.cli.progress import Progress
from bftfs.cli.reach import NodeAccess
from bftfs.cli.upkeep import volume
from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory
from bftfs.envelope import HeldVersions, UpkeepRequest
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.file_history import several_at_once
from bftfs.filesystem.operations import FoundObject
from bftfs.identifiers import ClientId, ObjectId
from bftfs.known_clients import SHORT_DIGITS, labels_of
from bftfs.printable import as_word, printable
from bftfs.runtime import clock
from bftfs.server.comparison import told_by_a_correct_one
from mount.mountpoint import containing

_DAY_US: Final = 86_400 * limits.SECOND_US
_DAYS: Final = (0, 1, 7)  # by which the past becomes free: the bounds of what is asked for
_ELSEWHERE: Final = "(gone, or elsewhere)"  # files that are not below the path, or no more
_SHOWN: Final = 20  # rows of a table
_PAGES_MORE: Final = 1.5  # as many pages as others have told, nodes may go on for
_REFUSED_DIRECTORIES: Final = {errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOENT}

Key = tuple[str, ClientId]  # a subtree, and a client


class Sums(NamedTuple):
    """Bytes of contents that versions hold, each byte of a file counted once."""

    now: int = 0  # files show them
    snapshots: int = 0  # only snapshots do
    past: tuple[int, ...] = ()  # by when it was superseded

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        past = self.past or (0,) * len(other.past)
        return Sums(
            self.now + other.now,
            self.snapshots + other.snapshots,
            tuple(mine + more for mine, more in zip(past, other.past, strict=True)),
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.now + self.snapshots + sum(self.past)


class Survey(NamedTuple):
    """The sums that each node reports, and the reasons why the other nodes have reported none."""

    told: dict[int, dict[Key, Sums]]
    missed: dict[int, str]

    def middle(self, *, subtree: str | None = None, client: ClientId | None = None) -> Sums:
        """The middle one of the nodes' figures, for a subtree or a client, or for all."""
        by_node = []
        for sums in self.told.values():
            total = Sums()
            for (of_subtree, of_client), each in sums.items():
                if subtree in (None, of_subtree) and client in (None, of_client):
                    total = total.plus(each)
            by_node.append(total)
        kinds = max((len(each.past) for each in by_node), default=0)
        return Sums(
            _middle([each.now for each in by_node]),
            _middle([each.snapshots for each in by_node]),
            tuple(
                _middle([each.past[kind] if each.past else 0 for each in by_node])
                for kind in range(kinds)
            ),
        )

    def subtrees(self, *, b: int) -> list[str]:
        """Those that more than b nodes tell of."""
        return told_by_a_correct_one(
            ((subtree for subtree, _ in sums) for sums in self.told.values()), b=b
        )

    def clients(self, *, b: int) -> list[ClientId]:
        """Those that more than b nodes tell of."""
        return told_by_a_correct_one(
            ((client for _, client in sums) for sums in self.told.values()), b=b
        )


def _middle(claims: Sequence[int]) -> int:
    """Between the claims of two correct nodes, of more than 2b nodes."""
    return sorted(claims)[len(claims) // 2] if claims else 0


def survey(
    access: NodeAccess,
    description: ClusterDescription,
    subtrees: Mapping[ObjectId, str],
    bounds: tuple[int, ...],
    progress: Callable[[int], None],
) -> Survey:
    """Ask all nodes for all that they store, page after page.

    A node that tells much more than the others, or out of order, is left out: it may lie for ever.
    """
    told: dict[int, dict[Key, Sums]] = {node: {} for node in range(description.n)}
    missed: dict[int, str] = {}
    cursors = dict.fromkeys(told, b"")
    enough = description.n - description.t
    pages = most = 0
    while cursors:
        requests = {
            node: UpkeepRequest("usage", after=after, bounds=bounds)
            for node, after in cursors.items()
        }
        replies = access.ask_over_channels(requests)
        pages += 1
        progress(pages * limits.USAGE_ROWS)
        for node, reply in replies.items():
            after = cursors.pop(node)
            if isinstance(reply, str) or reply.usage is None:
                missed[node] = reply if isinstance(reply, str) else "gives no answer to this"
                continue
            for held in reply.usage.held:
                _add(told[node], held, description.read_write.m, subtrees, len(bounds) + 1)
            if reply.usage.after > after:
                cursors[node] = reply.usage.after
            elif reply.usage.after:
                missed[node] = "tells what it stores out of order"
        if not most and description.n - len(cursors) - len(missed) >= enough:
            most = int(pages * _PAGES_MORE) + 1
        if most and pages >= most:
            missed |= dict.fromkeys(cursors, "tells much more than other nodes")
            cursors = {}
    for node in missed:
        del told[node]
    return Survey(told, missed)


def _add(
    sums: dict[Key, Sums],
    held: HeldVersions,
    m: int,
    subtrees: Mapping[ObjectId, str],
    kinds: int,
) -> None:
    """Add what a node tells; it has 1/m of the contents."""
    past = (*held.past, *[0] * kinds)[:kinds]
    key = subtrees.get(held.file, _ELSEWHERE), held.client
    more = Sums(m * held.now, m * held.snapshots, tuple(m * each for each in past))
    sums[key] = sums.get(key, Sums()).plus(more)


# --- the tree -----------------------------------------------------------------------------------


def _subtrees(session: CommandSession, top: Located, progress: Progress) -> dict[ObjectId, str]:
    """Each object below a directory, by the first name on the way to it.

    Directories that the user may not read are left out.
    """
    found: dict[ObjectId, str] = {top.identifier: "."}
    level = [(top.identifier, "")]

    async def listed(directory: ObjectId) -> list[tuple[bytes, FoundObject]]:
        try:
            return await session.view.listing(directory, None)
        except FileSystemError as refusal:
            if refusal.code in _REFUSED_DIRECTORIES:
                return []
            raise

    while level:
        entries = session.perform(several_at_once([partial(listed, each) for each, _ in level]))
        below = []
        for (_, subtree), listing in zip(level, entries, strict=True):
            for name, node in listing:
                label = subtree or os.fsdecode(name)
                if node.identifier in found:
                    continue
                found[node.identifier] = label
                if node.attributes.is_directory:
                    below.append((node.identifier, label))
        progress(len(found))
        level = below
    return found


def _names(directory: DataDirectory, path: str | None) -> tuple[dict[ObjectId, str], Path | None]:
    """The subtrees of the path, or of a mount of this machine, if there is one."""
    if path is None:
        path = next(map(str, mounts_of(directory)), None)
    if path is None:
        return {}, None
    with session_at(path) as session, Progress("looked at") as progress:
        top = session.locate_at(absolute(path), None)
        if not top.attributes.is_directory:
            return {top.identifier: as_word(top.path.name)}, top.path
        return _subtrees(session, top, progress), top.path


def _place(path: str | None, data: Path) -> DataDirectory:
    """The cluster's directory: that of the mount in which the path is, if there is a path."""
    if path is not None:
        mounted = containing(absolute(path))
        if mounted is None:
            raise UsageError(
                f"{as_word(path)}: not in a mount of bftfs; leave it out, and name the cluster "
                "with --data"
            )
        data = Path(mounted.source)
    return DataDirectory.existing(data.absolute())


# --- the command --------------------------------------------------------------------------------


@click.command()
@click.argument("path", required=False)
@data_path_option
@json_option
def usage(path: str | None, directory: Path, as_json: bool) -> int:
    """Show who and what holds the room, and what of the past becomes free when.

    Without PATH, of all that is stored, and of each subtree of a mount that is on this machine.
    It needs the administrator's key (admin.key), and tells of contents, as `du` and `df` do; names
    and attributes come on top. Each figure is the middle one of what the nodes say. Exit code 1 if
    some did not.

    Example: bftfs usage ~/bftfs/photos
    """
    place = _place(path, directory)
    description = description_files.load(place.description)
    subtrees, top = _names(place, path)
    now_us = clock.now_us()
    horizon_us = now_us - description.window_us - limits.CLOCK_SKEW_US
    bounds = tuple(max(horizon_us + days * _DAY_US, 0) for days in _DAYS)
    with NodeAccess(place, description) as access, Progress("versions looked at:") as progress:
        if not access.reaches_other_machines:
            raise UsageError(f"only the administrator is told what is stored: {access.why_not}")
        found = survey(access, description, subtrees, bounds, progress)
        next_step = access.next_step
    for node, why in found.missed.items():
        click.echo(f"bftfs: node {node} is left out: it {printable(why)}", err=True)
    if len(found.told) < description.n - description.t:
        raise UsageError(
            f"only {len(found.told)} of {description.n} nodes tell what they store, and "
            f"{description.n - description.t} are needed to believe it"
            + (f"; {next_step}" if next_step else ""),
            exit_code=1,
        )
    _tell(found, description, top, as_json=as_json)
    return 1 if found.missed else 0


def _tell(
    found: Survey, description: ClusterDescription, top: Path | None, *, as_json: bool
) -> None:
    labels = labels_of(description)
    clients = {
        labels.get(each, each.hex()[:SHORT_DIGITS]): found.middle(client=each)
        for each in found.clients(b=description.b)
    }
    trees = {each: found.middle(subtree=each) for each in found.subtrees(b=description.b)}
    whole = found.middle()
    past = (*whole.past, 0, 0, 0, 0)
    goes = {
        "now, when the room is short (the detection window has passed)": past[0],
        "within a day": past[1],
        "within a week": past[2],
        "later, as the detection window passes": past[3],
        "not before its snapshots are deleted": whole.snapshots,
    }
    if as_json:
        report = {
            "nodes": sorted(found.told),
            "clients": {name: _facts(each) for name, each in clients.items()},
            "subtrees": {name: _facts(each) for name, each in trees.items()} if top else {},
            "past_free": {
                "now": past[0],
                "within_a_day": past[1],
                "within_a_week": past[2],
                "later": past[3],
            },
            **_facts(whole),
        }
        click.echo(json.dumps(report, indent=2))
        return
    console = plain_console()
    console.print(_table("client", clients, whole))
    if top is not None:
        words = {
            name if name == _ELSEWHERE else as_word(name): each for name, each in trees.items()
        }
        console.print(_table(f"below {as_word(top)}", words, whole))
    table = Table("the past that becomes free", box=SIMPLE)
    table.add_column("", justify="right")
    for when, amount in goes.items():
        if amount:
            table.add_row(when, volume(amount))
    if table.row_count:
        console.print(table)


def _facts(sums: Sums) -> dict[str, int]:
    return {"now": sums.now, "snapshots": sums.snapshots, "past": sum(sums.past)}


def _table(title: str, rows: dict[str, Sums], whole: Sums) -> Table:
    """The rows that hold most, the rest of them as one, and all together."""
    table = Table(box=SIMPLE, show_footer=True)
    ordered = sorted(rows.items(), key=lambda row: row[1].total, reverse=True)
    shown, rest = ordered[:_SHOWN], ordered[_SHOWN:]
    if rest:
        other = Sums()
        for _, each in rest:
            other = other.plus(each)
        shown.append((f"({len(rest)} others)", other))
    table.add_column(title, footer="all", overflow="fold")
    for name, figure in (
        ("now", whole.now),
        ("snapshots", whole.snapshots),
        ("past", sum(whole.past)),
    ):
        table.add_column(name, footer=volume(figure), justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, each in shown:
        share = each.total / whole.total if whole.total else 0.0
        table.add_row(
            name, *map(volume, (each.now, each.snapshots, sum(each.past))), f"{share:.0%}"
        )
    return table
