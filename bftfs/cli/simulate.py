"""`bftfs simulate`: look for violations in simulated clusters, and replay one from its seed."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path

import click
import msgspec

import bftfs
from bftfs.errors import ImpossibleThresholds, UsageError
from bftfs.simulation.campaign import Tally, campaign
from bftfs.simulation.configuration import KINDS, from_json, to_json
from bftfs.simulation.scenario import Report, run

DEFAULT_COUNT = 100
DEFAULT_OPERATIONS = 200


@click.command()
@click.option("--seed", type=click.IntRange(min=0), help="The first seed. [default: random]")
@click.option(
    "--count",
    "number",
    type=click.IntRange(min=1),
    help=f"How many seeds. [default: {DEFAULT_COUNT}, or 1 with --seed]",
)
@click.option(
    "--operations",
    type=click.IntRange(1, 100_000),
    default=DEFAULT_OPERATIONS,
    show_default=True,
    help="Operations of correct clients per seed.",
)
@click.option("--kind", type=click.Choice(KINDS), help="What they do. [default: drawn by the seed]")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Seeds at a time, each on a processor of its own.",
)
@click.option("--until-stopped", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--save",
    "saved_in",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the configurations of seeds that failed.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Run the configuration in this file, instead of a seed's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per seed.")
def simulate(
    seed: int | None,
    number: int | None,
    operations: int,
    kind: str | None,
    parallel: int,
    until_stopped: bool,
    saved_in: Path | None,
    replay: Path | None,
    as_json: bool,
) -> int:
    """Run clusters in a simulated world, and look for violations of what is promised.

    The real servers and clients meet message loss, crashes, partitions and Byzantine nodes and
    clients, all drawn from a seed; checkers judge what the clients saw and what the disks hold. The
    same seed gives the same run: the command that replays a failure is printed with it.
    """
    first = secrets.randbelow(1 << 31) if seed is None else seed
    if number is None:
        number = DEFAULT_COUNT if seed is None else 1
    seeds: Iterator[int] = count(first) if until_stopped else iter(range(first, first + number))
    tally = Tally()
    progress = _Progress(tally, quiet=as_json)
    reports = (
        campaign(seeds, operations=operations, kind=kind, parallel=parallel)
        if replay is None
        else _replay(replay)
    )
    try:
        for report in reports:
            tally.add(report)
            if saved_in is not None and not report.passed:
                _save(report, saved_in)
            if as_json:
                click.echo(json.dumps(_as_json(report)))
            elif not report.passed:
                progress.clear()
                chosen = f" --kind {kind}" if kind else ""
                again = f"--seed {report.configuration.seed} --operations {operations}{chosen}"
                click.echo(_failure(report, f"--replay {replay}" if replay else again))
            progress.show()
    except KeyboardInterrupt:
        progress.clear()
        click.echo("Stopped.", err=True)
    finally:
        reports.close()
    progress.clear()
    click.echo(_summary(tally, progress.seconds), err=as_json)
    return 1 if tally.failed_seeds else 0


def _replay(path: Path) -> Generator[Report, None, None]:
    try:
        configuration = from_json(path.read_bytes())
    except (msgspec.MsgspecError, ImpossibleThresholds) as error:
        raise UsageError(f"{path}: not the configuration of a simulation: {error}") from error
    yield run(configuration)


def _save(report: Report, directory: Path) -> None:
    configuration = report.configuration
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{configuration.kind}-{configuration.seed}-{configuration.operations}.json"
    (directory / name).write_bytes(to_json(configuration) + b"\n")


class _Progress:
    """One line on a terminal, written over and over."""

    def __init__(self, tally: Tally, *, quiet: bool) -> None:
        self._tally = tally
        self._shown = sys.stderr.isatty() and not quiet
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def show(self) -> None:
        """Say how far it is."""
        if self._shown:
            tally = self._tally
            line = (
                f"{tally.seeds} seeds, {tally.operations} operations "
                f"({tally.operations / self.seconds:.0f}/s), "
                f"{len(tally.failed_seeds)} failed"
            )
            click.echo(f"\r{line:<78}", nl=False, err=True)

    def clear(self) -> None:
        """Make room for other output."""
        if self._shown:
            click.echo(f"\r{'':78}\r", nl=False, err=True)


def _failure(report: Report, again: str) -> str:
    configuration = report.configuration
    sizes = configuration.sizes.query_update
    byzantine = ", ".join(
        [f"node {node} is {'/'.join(names)}" for node, names in configuration.byzantine_nodes]
        + [f"a client is {name}" for name in configuration.byzantine_clients]
    )
    findings = "\n".join(f"  - {finding}" for finding in report.findings)
    return (
        f"Seed {configuration.seed} failed at commit {_commit()} "
        f"({configuration.kind}, n={sizes.n} t={sizes.t} b={sizes.b}"
        f"{', ' + byzantine if byzantine else ''}):\n{findings}\n"
        f"  Replay: bftfs simulate {again}"
    )


def _summary(tally: Tally, seconds: float) -> str:
    failed = ""
    if tally.failed_seeds:
        failed = f"\nFAILED: {len(tally.failed_seeds)} seeds: " + " ".join(
            map(str, tally.failed_seeds)
        )
    return (
        f"{tally.seeds} seeds in {seconds:.1f} s: {tally.operations} operations "
        f"({tally.operations / max(seconds, 0.001):.0f}/s), {tally.events} events, "
        f"{tally.messages} messages ({tally.lost} lost, {tally.duplicated} repeated, "
        f"{tally.cut} cut off), {tally.node_crashes} node and {tally.client_crashes} client "
        f"crashes, {tally.partitions} partitions, {tally.byzantine_nodes} Byzantine nodes and "
        f"{tally.byzantine_clients} clients.{failed or ' No violation found.'}"
    )


def _as_json(report: Report) -> dict[str, object]:
    fields = asdict(report)
    return {"commit": _commit(), "passed": report.passed, **fields}


def _commit() -> str:
    """The commit that runs, if this is a source tree; else the version."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(bftfs.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return bftfs.__version__
    return found.stdout.strip()
