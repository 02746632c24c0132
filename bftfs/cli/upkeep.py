"""`bftfs heal` and `bftfs scrub`: nodes' background work; `bftfs metrics`: what they count.

On the administrator's machine they reach all nodes, elsewhere those of that machine
(`bftfs.cli.reach`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import msgspec
from rich.box import SIMPLE
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from bftfs import description_files
from bftfs.cli.options import data_option, json_option
from bftfs.cli.plain_console import plain_console
from bftfs.cli.reach import NodeAccess
from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory
from bftfs.envelope import UpkeepRequest, Verb, WorkStatus
from bftfs.errors import UsageError
from bftfs.limits import KIB, MIB
from bftfs.printable import as_word, printable, printable_lines

_WATCH_S = 0.5
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)i?b?(?:/s)?", re.IGNORECASE)
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": KIB * MIB}
_BAR_WIDTH = 24

Report = dict[int, WorkStatus | str]  # by node; a sentence if the command failed there


def _rate(text: str) -> int:
    """Bytes per second, as people write them: 512k, 8MiB, 1.5M/s."""
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not a rate: write bytes per second, such as 512k or 8MiB"
        )
    return round(float(found[1]) * _UNITS[found[2].lower()])


# Verb -> what it does, and its option, if it has one of its own.
_VERBS: dict[Verb, tuple[str, Callable[[Any], Any] | None]] = {
    "start": (
        "{does} now; resumes paused work.",
        click.option("--wait", is_flag=True, help="Wait until it is done, and show the progress."),
    ),
    "pause": ("Pause until resumed or started, also across restarts of a node.", None),
    "resume": ("Continue where the work was paused.", None),
    "throttle": (
        "Limit the work to RATE bytes per second at each node, from now on (512k, 8MiB).",
        click.argument("rate", type=_rate),
    ),
    "status": (
        "Show the progress, the pace, and the remaining time.",
        click.option("--watch", is_flag=True, help="Show the progress until it is done."),
    ),
}
_node = click.option(
    "--node",
    type=int,
    help="This node only. [default: all; without admin.key, those on this machine]",
)


def _group(work: str, purpose: str, does: str) -> click.Group:
    """The commands for one kind of work."""
    group = click.Group(work, help=purpose)
    for verb, (text, own_option) in _VERBS.items():
        run: Any = partial(_run, work, verb)
        if own_option is not None:
            run = own_option(run)
        run = data_option(_node(json_option(run)))
        group.add_command(click.command(verb, help=_help(text.format(does=does), work, verb))(run))
    return group


def _help(text: str, work: str, verb: Verb) -> str:
    rest = {"start": " --wait", "throttle": " 8MiB", "status": " --watch"}.get(verb, "")
    return f"{text}\n\nExample: bftfs {work} {verb}{rest}"


def _run(
    work: str,
    verb: Verb,
    directory: DataDirectory,
    node: int | None,
    *,
    as_json: bool,
    rate: int | None = None,
    wait: bool = False,
    watch: bool = False,
) -> int:
    description = description_files.load(directory.description)
    with NodeAccess(directory, description) as reach:
        numbers = _numbers(directory, description, node, everywhere=reach.reaches_other_machines)
        ask = partial(_control_all, reach, numbers)
        report = None if watch else ask(UpkeepRequest(verb, work, rate))
        if report is None or wait:
            report = _watch(ask, work, quiet=as_json, since=report)
        return _tell(report, reach.next_step, as_json=as_json)


heal = _group(
    "heal",
    "Control how nodes fetch what they lack. They do it by themselves; hurry or slow them here.",
    "Compare everything with the other nodes",
)
scrub = _group(
    "scrub",
    "Control how nodes read, check and repair all that they store. They do it once a week.",
    "Read and check everything",
)


@click.command()
@data_option
@click.argument("node", type=int)
def metrics(directory: DataDirectory, node: int) -> int:
    """Print the metrics of node NODE, in Prometheus' text format.

    Example: bftfs metrics 3
    """
    description = description_files.load(directory.description)
    with NodeAccess(directory, description) as reach:
        _numbers(directory, description, node, everywhere=True)
        reply = reach.ask([node], UpkeepRequest("metrics"))[node]
        if isinstance(reply, str):
            next_step = f"; {reach.next_step}" if reach.next_step else ""
            raise UsageError(f"node {node} {printable(reply)}{next_step}", exit_code=1)
    click.echo(printable_lines(reply.metrics), nl=False)  # a node's words may be anything
    return 0


# --- asking the nodes -------------------------------------------------------------------------


def _control_all(reach: NodeAccess, nodes: list[int], request: UpkeepRequest) -> Report:
    """The answer of each node."""
    replies = reach.ask(nodes, request)
    report: Report = {}
    for node in nodes:
        reply = replies[node]
        if isinstance(reply, str):
            report[node] = printable(reply)
        else:
            report[node] = reply.status or "gives no answer to this"
    return report


def _numbers(
    directory: DataDirectory, description: ClusterDescription, node: int | None, *, everywhere: bool
) -> list[int]:
    """The numbers of the chosen nodes: `everywhere`, or on this machine."""
    if node is not None and not 0 <= node < description.n:
        raise UsageError(f"there is no node {node}: the cluster has nodes 0 to {description.n - 1}")
    chosen = range(description.n) if node is None else [node]
    here = [number for number in chosen if directory.node(number).path.is_dir()]
    if everywhere:
        return list(chosen)
    if not here:
        which = "no node" if node is None else f"node {node}"
        raise UsageError(
            f"{as_word(directory.path)}: {which} {'has its' if node is not None else 'has'} "
            "files here; "
            "run this where the node runs, or on the administrator's machine, where admin.key is"
        )
    return here


def _watch(
    ask: Callable[[UpkeepRequest], Report], work: str, *, quiet: bool, since: Report | None
) -> Report:
    """Show the progress until no node is at work. Gives their last answers.

    Nodes whose answer is still that in `since` have not begun yet.
    """
    before = since or {}
    columns = (
        TextColumn("node {task.description}", markup=False),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=plain_console(stderr=True, quiet=quiet)) as shown:
        tasks: dict[int, TaskID] = {}
        while True:
            report = ask(UpkeepRequest("status", work))
            report |= {at: said for at, said in before.items() if isinstance(said, str)}
            for number, said in report.items():
                if number not in tasks:
                    tasks[number] = shown.add_task(str(number), total=1.0, said="")
                if isinstance(said, WorkStatus):
                    words = f"{said.state}  {_pace(said)}"
                    shown.update(tasks[number], completed=said.progress, said=words)
                else:
                    shown.update(tasks[number], said=said)
            if not any(_goes_on(said, before.get(number)) for number, said in report.items()):
                return report
            time.sleep(_WATCH_S)


def _goes_on(said: WorkStatus | str, since: WorkStatus | str | None) -> bool:
    if isinstance(said, str) or said.state == "paused":
        return False
    has_yet_to_begin = isinstance(since, WorkStatus) and _passes(said) == _passes(since)
    return said.state == "running" or has_yet_to_begin


def _passes(said: WorkStatus) -> int:
    return said.figures.get("passes", 0)


# --- telling people ---------------------------------------------------------------------------


def _tell(report: Report, next_step: str, *, as_json: bool) -> int:
    """Print the report; exit code 1 if a node did not obey."""
    silent = {number: said for number, said in report.items() if isinstance(said, str)}
    if as_json:
        told = [
            {"node": number, "error": said}
            if isinstance(said, str)
            else {"node": number, **msgspec.structs.asdict(said)}
            for number, said in report.items()
        ]
        click.echo(json.dumps(told, indent=2))
    else:
        _print(report)
        for number, why in silent.items():
            click.echo(f"bftfs: node {number} {why}", err=True)
        if next_step:
            click.echo(f"bftfs: {next_step}", err=True)
    return 1 if silent else 0


def _print(report: Report) -> None:
    table = Table("node", "state", "progress", "pace", "last complete", "done", box=SIMPLE)
    for number, said in report.items():
        if isinstance(said, str):
            continue
        progress = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=said.progress, width=_BAR_WIDTH // 2)
        progress.add_row(bar, f"{said.progress:.0%}")
        limit = f"{volume(said.limit_bytes_per_second)}/s"
        table.add_row(
            str(number),
            said.state,
            progress,
            f"at most {limit}"
            if said.state != "running"
            else f"{_pace(said) or 'begins'}, of {limit}",
            _moment(said.ended_s),
            ", ".join(_figure(name, value) for name, value in said.figures.items() if value),
        )
    if table.row_count:
        plain_console().print(table)


def _pace(said: WorkStatus) -> str:
    if said.state != "running":
        return ""
    # Objects are not counted in bytes.
    pace = f"{volume(said.bytes_per_second)}/s" if said.bytes_per_second else ""
    remaining = "" if said.remaining_s is None else f"{duration(said.remaining_s)} left"
    return ", ".join(filter(None, (pace, remaining)))


def _figure(name: str, value: int) -> str:
    name = printable(name)  # a node's words may be anything
    if name.startswith("bytes "):
        return f"{volume(value)} {name.removeprefix('bytes ')}"
    return f"{value} {name}"


def volume(size: float) -> str:
    """An amount of bytes, for people."""
    if size < KIB:
        return f"{size:.0f} B"
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size / KIB:.1f} KiB"


def duration(seconds: float) -> str:
    """An amount of time, for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _moment(since_epoch_s: float | None) -> str:
    if since_epoch_s is None:
        return "not since the start"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since_epoch_s))
