"""The options that all scenarios share, as values."""

import functools
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import click
from rich.console import Console

from benchmarks import report, result
from benchmarks.disturbance import Disturbance
from benchmarks.errors import BenchmarkError
from benchmarks.machine import FileSystem
from benchmarks.processes import WatchedProcess, nodes_of, processes_of
from benchmarks.result import Parameter, Result, Setting, TargetDescription
from benchmarks.session import Session
from benchmarks.workspace import Target, targets
from bftfs.cluster import Durability
from bftfs.data_directory import NodeDirectory

Decorator: TypeAlias = Callable[[Callable[..., None]], Callable[..., None]]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes: `4096`, `64KiB`, `1GiB`."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number of bytes that the text means."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:iB)?", value.strip())
        if match is None:
            self.fail(f"'{value}' is not a size; write 4096, 64KiB or 1GiB", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Common:
    """The options of every scenario that runs in a directory."""

    directory: Path
    against: Path | None
    repeat: int
    json: Path | None
    watched: tuple[WatchedProcess, ...]
    nodes: tuple[NodeDirectory, ...]  # whose traffic is counted
    disturbances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeCommon:
    """The options of every scenario that starts nodes of its own."""

    repeat: int
    json: Path | None
    durability: Durability
    below: Path | None  # where the nodes' temporary directory is made; None: where others are


_DIRECTORY = click.Path(exists=True, file_okay=False, writable=True, path_type=Path)


def _both(repeat: int) -> tuple[Decorator, ...]:
    """The options of every scenario."""
    return (
        click.option("--repeat", type=click.IntRange(1, 1000), default=repeat, show_default=True),
        click.option(
            "--json",
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write every sample there.",
        ),
    )


def node_options(repeat: int, durability: Durability = Durability.SYNC) -> Decorator:
    """The options of `NodeCommon`, given to the command as its first argument."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_common(
            *, repeat: int, json: Path | None, durability: str, below: Path | None, **own: object
        ) -> None:
            command(NodeCommon(repeat, json, Durability(durability), below), **own)

        options: tuple[Decorator, ...] = (
            *_both(repeat),
            click.option(
                "--durability",
                type=click.Choice([kind.value for kind in Durability]),
                default=durability.value,
                show_default=True,
                help="sync: on stable storage before the reply; interval: synced every second.",
            ),
            click.option(
                "--below",
                metavar="DIR",
                type=_DIRECTORY,
                help="Where the nodes' directory is made (by default where temporary files are).",
            ),
        )
        decorated: Callable[..., None] = with_common
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def common_options(repeat: int) -> Decorator:
    """The options of `Common`, given to the command as its first argument."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_common(
            *,
            directory: Path,
            against: Path | None,
            repeat: int,
            json: Path | None,
            pid: tuple[str, ...],
            cluster: Path | None,
            during: tuple[str, ...],
            **own: object,
        ) -> None:
            watched = tuple(WatchedProcess.parse(text) for text in pid)
            nodes: tuple[NodeDirectory, ...] = ()
            if cluster is not None:
                watched += processes_of(cluster)
                nodes = nodes_of(cluster)
            command(Common(directory, against, repeat, json, watched, nodes, during), **own)

        options: tuple[Decorator, ...] = (
            click.argument("directory", metavar="DIR", type=_DIRECTORY),
            click.option(
                "--against",
                metavar="DIR",
                type=_DIRECTORY,
                help="Run there too, in turn with DIR, and print ratios.",
            ),
            *_both(repeat),
            click.option(
                "--pid",
                metavar="NAME=PID",
                multiple=True,
                help="Record memory and CPU time of this process for each phase; repeatable.",
            ),
            click.option(
                "--cluster",
                metavar="DATA",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                help="Record those of the nodes and mounts of the local cluster in DATA, and the"
                " requests and bytes that its nodes got.",
            ),
            click.option(
                "--during",
                metavar="PHASE[#ROUND][@WHEN]:COMMAND",
                multiple=True,
                help="Run a shell command in the midst of a phase on DIR: when it starts, or when"
                " a fraction of it is done (0.5), or after seconds (3s); repeatable.",
            ),
        )
        decorated: Callable[..., None] = with_common
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def measure(
    scenario: str,
    common: Common,
    phases: Sequence[str],
    parameters: dict[str, Parameter],
    run: Callable[[Session, tuple[Target, ...]], None],
) -> None:
    """Run a scenario in directories; print and write its result; exit with 1 if anything failed."""
    session = Session(
        watched=common.watched,
        nodes=common.nodes,
        disturbances=[Disturbance.parse(text, phases) for text in common.disturbances],
        announce=_announce,
    )
    measured = targets(common.directory, common.against)
    descriptions = [
        TargetDescription(target.name, FileSystem.of(target.directory)) for target in measured
    ]
    _measure(
        scenario, session, common.json, parameters, descriptions, lambda: run(session, measured)
    )


def measure_nodes(
    scenario: str,
    common: NodeCommon,
    parameters: dict[str, Parameter],
    run: Callable[[Session, str], None],
    *,
    against: str | None = None,
) -> None:
    """Run a scenario on nodes of its own, as `measure` does; `against` names known figures."""
    session = Session(announce=_announce)
    target = f"nodes ({common.durability.value})"
    place = FileSystem.of(common.below or Path(tempfile.gettempdir()))
    descriptions = [TargetDescription(target, place)]
    if against is not None:
        descriptions.append(TargetDescription(against, None))
    known: dict[str, Parameter] = {
        "repeat": common.repeat,
        "durability": common.durability.value,
    }
    _measure(
        scenario,
        session,
        common.json,
        known | parameters,
        descriptions,
        lambda: run(session, target),
    )


def measure_cases(
    scenario: str,
    directory: Path | None,
    cases: Sequence[str],
    json: Path | None,
    parameters: dict[str, Parameter],
    run: Callable[[Session], None],
) -> None:
    """Run a scenario in one directory, in several cases that are compared, as `measure` does.

    None: it needs no directory.
    """
    session = Session(announce=_announce)
    place = FileSystem.of(directory) if directory is not None else None
    descriptions = [TargetDescription(name, place) for name in cases]
    _measure(scenario, session, json, parameters, descriptions, lambda: run(session))


def _announce(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, style="dim")


def _measure(
    scenario: str,
    session: Session,
    json: Path | None,
    parameters: dict[str, Parameter],
    descriptions: Sequence[TargetDescription],
    run: Callable[[], None],
) -> None:
    if json is not None:
        result.require_writable(json)
    setting = Setting.now()
    run()
    finish(
        Result.of(
            session,
            setting,
            scenario=scenario,
            command=command_line(),
            parameters=parameters,
            targets=descriptions,
        ),
        json,
    )


def finish(measured: Result, json: Path | None) -> None:
    """Print and write a result; exit with 1 if anything failed."""
    if json is not None:
        result.write(measured, json)
    report.show(measured, report.console())
    if measured.failures:
        raise SystemExit(1)


def command_line() -> str:
    """The command that repeats this run."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


class Commands(click.Group):
    """A group whose commands end a user's mistake with one message."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BenchmarkError as error:
            raise click.ClickException(str(error)) from error
