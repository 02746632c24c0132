"""`bftfs simulate`: look for violations in simulated clusters, and replay one from its seed."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path

import click
import msgspec
from rich.progress import Progress, TextColumn

import bftfs
from bftfs.cli.plain_console import plain_console
from bftfs.errors import ImpossibleThresholds, UsageError
from bftfs.printable import as_word
from bftfs.simulation.campaign import (
    CampaignPlan,
    CampaignRecord,
    CampaignTally,
    Heading,
    SeedOutcome,
    SeedResult,
    campaign,
    examine,
    summary,
)
from bftfs.simulation.configuration import KINDS, Configuration, from_json, to_json
from bftfs.simulation.shrinking import MOST_RUNS
from bftfs.simulation.twins import SCENES, enumerate_schedules
from bftfs.wire.codec import UNREADABLE

DEFAULT_COUNT = 100
DEFAULT_OPERATIONS = 200


@click.command()
@click.option("--seed", type=click.IntRange(min=0), help="The first seed. [default: random]")
@click.option(
    "--count",
    "number",
    type=click.IntRange(min=0),
    help=f"How many seeds. [default: {DEFAULT_COUNT}, or 1 with --seed]",
)
@click.option(
    "--operations",
    type=click.IntRange(1, 100_000),
    default=DEFAULT_OPERATIONS,
    show_default=True,
    help="Operations of correct clients per seed.",
)
@click.option("--kind", type=click.Choice(KINDS), help="The workload. [default: drawn by the seed]")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Seeds to run at the same time, each in a process of its own.",
)
@click.option("--until-stopped", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--until-operations",
    "enough",
    type=click.IntRange(min=1),
    help="Go on until so many operations were simulated, those in the record included.",
)
@click.option(
    "--save",
    "saved_in",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("failed-seeds"),
    show_default=True,
    help="Save the configurations of failed seeds in this directory.",
)
@click.option(
    "--shrink",
    "most_runs",
    type=click.IntRange(min=0),
    default=MOST_RUNS,
    show_default=True,
    help="Runs to spend on making a failing configuration smaller.",
)
@click.option(
    "--record",
    "recorded_in",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append each seed's result to this file; seeds that are in it are not run again.",
)
@click.option(
    "--summary",
    "summed_up_in",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page about all seeds, those in the record included, to this file.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Run the configuration in this file, instead of a seed's.",
)
@click.option(
    "--twins",
    "rounds",
    type=click.IntRange(1, 4),
    help="Instead: try all schedules of this many rounds in which a node or a client has a twin.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per seed.")
def simulate(
    seed: int | None,
    number: int | None,
    operations: int,
    kind: str | None,
    parallel: int,
    until_stopped: bool,
    enough: int | None,
    saved_in: Path,
    most_runs: int,
    recorded_in: Path | None,
    summed_up_in: Path | None,
    replay: Path | None,
    rounds: int | None,
    as_json: bool,
) -> int:
    """Run clusters in a simulated world, and look for violations of what is promised.

    The real servers and clients meet message loss, crashes, partitions and Byzantine nodes and
    clients, all drawn from a seed; checkers judge what the clients saw and what the disks hold. The
    same seed gives the same run: the command that replays a failure is printed with it. A seed that
    fails is made smaller, as long as it goes on failing in the same way.

    Example: bftfs simulate --count 300
    """
    if rounds is not None:
        return _twins(rounds)
    heading = Heading(_commit(), operations, kind)
    record: CampaignRecord | CampaignTally
    if recorded_in is None:
        record, known = (tally := CampaignTally()), frozenset[int]()
    else:
        record = CampaignRecord(recorded_in, heading)
        tally, known = record.tally, frozenset(record.seeds)
    seeds = _seeds(seed, number, endless=until_stopped or enough is not None)
    new = (each for each in seeds if each not in known)
    plan = CampaignPlan(operations, kind, most_runs)
    outcomes = _replay(replay, most_runs) if replay else campaign(new, plan, parallel=parallel)
    began, known_operations = time.monotonic(), tally.operations.total()

    def rate() -> float:
        new_operations = tally.operations.total() - known_operations
        return new_operations / max(time.monotonic() - began, 0.001)

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        console=plain_console(stderr=True),
        transient=True,
        auto_refresh=False,
        disable=as_json,
    )
    line = progress.add_task("")
    try:
        with progress:
            for outcome in _until(enough, tally, outcomes):
                report = outcome.report
                record.add(SeedResult.of(report))
                saved = None if report.passed else _save(outcome, saved_in)
                if as_json:
                    told = {"commit": heading.commit, "passed": report.passed, **asdict(report)}
                    click.echo(json.dumps(told, default=msgspec.to_builtins))
                elif saved is not None:
                    click.echo(_failure(outcome, heading, replay, saved))
                standing = (
                    f"{tally.seeds.total()} seeds, {tally.operations.total()} operations "
                    f"({rate():.0f}/s), {len(tally.failed)} failed"
                )
                progress.update(line, description=standing, refresh=True)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
    finally:
        outcomes.close()
        if isinstance(record, CampaignRecord):
            record.close()
    seconds = time.monotonic() - began
    click.echo(_summary(tally, seconds, rate()), err=as_json)
    if summed_up_in is not None:
        command = f"bftfs simulate {_options_of(heading)}"
        summed_up_in.write_text(summary(tally, heading=heading, command=command))
    return 1 if tally.failed else 0


def _seeds(seed: int | None, number: int | None, *, endless: bool) -> Iterator[int]:
    """`number` seeds from `seed` on; by default only that one, or many from a random one on."""
    first = secrets.randbelow(1 << 31) if seed is None else seed
    if number is None:
        number = DEFAULT_COUNT if seed is None else 1
    return count(first) if endless else iter(range(first, first + number))


def _until(
    enough: int | None, tally: CampaignTally, outcomes: Iterator[SeedOutcome]
) -> Iterator[SeedOutcome]:
    """The outcomes, until the tally has enough operations."""
    while enough is None or tally.operations.total() < enough:
        outcome = next(outcomes, None)
        if outcome is None:
            return
        yield outcome


def _options_of(heading: Heading) -> str:
    """The options that make the same simulations again."""
    kind = f" --kind {heading.kind}" if heading.kind else ""
    return f"--operations {heading.operations}{kind}"


def _twins(rounds: int) -> int:
    """Enumerate schedules with twins; the exit code."""
    tried = violations = 0
    for scene in SCENES:
        for schedule, findings in enumerate_schedules(scene, rounds):
            tried += 1
            if findings:
                violations += 1
                click.echo(f"{scene}, {schedule}:")
                for finding in findings:
                    click.echo(f"  {finding}")
    click.echo(f"{tried} schedules with twins: {violations or 'no'} violations found")
    return 1 if violations else 0


def _replay(path: Path, most_runs: int) -> Generator[SeedOutcome, None, None]:
    try:
        configuration = from_json(path.read_bytes())
    except (*UNREADABLE, ImpossibleThresholds) as error:
        raise UsageError(
            f"{as_word(path)}: not the configuration of a simulation: {error}"
        ) from error
    yield examine(configuration, most_runs=most_runs)


def _save(outcome: SeedOutcome, directory: Path) -> Path:
    """Keep what failed: the configuration as it was drawn and, beside it, the smallest one."""
    configuration = outcome.report.configuration
    name = f"{configuration.kind}-{configuration.seed}-{configuration.operations}"
    path = directory / f"{name}.json"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json(configuration) + b"\n")
    if outcome.smallest is not None:
        path = directory / f"{name}-small.json"
        path.write_bytes(to_json(outcome.smallest.configuration) + b"\n")
    return path


def _failure(outcome: SeedOutcome, heading: Heading, replay: Path | None, saved: Path) -> str:
    report, smallest = outcome.report, outcome.smallest
    again = f"--seed {report.configuration.seed} {_options_of(heading)}"
    if replay is not None:
        again = f"--replay {replay}"
    lines = [
        f"Seed {report.configuration.seed} failed at commit {heading.commit} "
        f"({_described(report.configuration)}):",
        *(f"  - {finding}" for finding in report.findings),
        f"  Replay: bftfs simulate {again}",
    ]
    if smallest is not None:
        lines += [
            f"  Made smaller ({_described(smallest.configuration)}):",
            *(f"  - {finding}" for finding in smallest.findings),
            f"  Replay: bftfs simulate --replay {saved}",
        ]
    return "\n".join(lines)


def _described(configuration: Configuration) -> str:
    sizes = configuration.sizes.query_update
    kept = configuration.operations if configuration.kept is None else len(configuration.kept)
    parts = [
        configuration.kind,
        f"n={sizes.n} t={sizes.t} b={sizes.b}",
        f"{kept} operations of {len(configuration.clients)} clients",
    ]
    for node, names in configuration.byzantine_nodes:
        parts.append(f"node {node} is {'/'.join(names)}")
    parts += [f"a client is {name}" for name in configuration.byzantine_clients]
    return ", ".join(parts)


def _summary(tally: CampaignTally, seconds: float, rate: float) -> str:
    failed = " No violation found."
    if tally.failed:
        failed = f"\nFAILED: {len(tally.failed)} seeds: " + " ".join(map(str, tally.failed))
    happened = ", ".join(f"{number} {what}" for what, number in tally.counts.items())
    return (
        f"{tally.seeds.total()} seeds in {seconds:.1f} s: {tally.operations.total()} "
        f"operations ({rate:.0f}/s): {happened}.{failed}"
    )


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
