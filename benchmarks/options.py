"""What the scenarios have in common on the command line, as values."""

import functools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import click
from rich.console import Console

from benchmarks import report, result
from benchmarks.disturbance import Disturbance
from benchmarks.errors import BenchmarkError
from benchmarks.machine import FileSystem
from benchmarks.processes import WatchedProcess
from benchmarks.result import Parameter, Result, Setting, TargetDescription
from benchmarks.session import Session
from benchmarks.workspace import Target, targets

Rest = ParamSpec("Rest")

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
    watched: tuple[str, ...]
    disturbances: tuple[str, ...]


_DIRECTORY = click.Path(exists=True, file_okay=False, writable=True, path_type=Path)


def common_options(
    repeat: int,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
            during: tuple[str, ...],
            **own: object,
        ) -> None:
            command(Common(directory, against, repeat, json, pid, during), **own)

        options = (
            click.argument("directory", metavar="DIR", type=_DIRECTORY),
            click.option(
                "--against",
                metavar="DIR",
                type=_DIRECTORY,
                help="Run there too, in turn with DIR, and print ratios.",
            ),
            click.option(
                "--repeat", type=click.IntRange(1, 1000), default=repeat, show_default=True
            ),
            click.option(
                "--json",
                metavar="FILE",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write every sample there.",
            ),
            click.option(
                "--pid",
                metavar="NAME=PID",
                multiple=True,
                help="Record memory and CPU time of this process for each phase; repeatable.",
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
    """Run a scenario; print and write its result; exit with 1 if anything failed."""
    progress = Console(stderr=True)

    def announce(text: str) -> None:
        progress.print(text, markup=False, highlight=False, style="dim")

    session = Session(
        watched=[WatchedProcess.parse(text) for text in common.watched],
        disturbances=[Disturbance.parse(text, phases) for text in common.disturbances],
        announce=announce,
    )
    if common.json is not None:
        result.require_writable(common.json)
    setting = Setting.now()
    measured = targets(common.directory, common.against)
    descriptions = [
        TargetDescription(target.name, FileSystem.of(target.directory)) for target in measured
    ]
    run(session, measured)
    finish(
        Result.of(
            session,
            setting,
            scenario=scenario,
            command=command_line(),
            parameters=parameters,
            targets=descriptions,
        ),
        common.json,
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
