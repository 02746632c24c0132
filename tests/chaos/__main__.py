"""`python -m tests.chaos`: real nodes, real mounts, real faults, for as long as one likes.

Needs root, /dev/fuse and /dev/net/tun. Exit code 1 if anything was found; what the run left behind
(journals, logs) is then kept.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from tests.chaos.faults import EVERYTHING
from tests.chaos.run import Report, Run


def _chosen(_context: object, _parameter: object, value: str | None) -> tuple[str, ...]:
    if value is None:
        return EVERYTHING
    names = tuple(value.split(","))
    for name in names:
        if name not in EVERYTHING:
            raise click.BadParameter(f"{name}: choose of {', '.join(EVERYTHING)}")
    return names


@click.command()
@click.option("--seed", type=int, default=None, help="Of the first run. Default: a new one.")
@click.option("--runs", type=click.IntRange(1), default=1, help="One after the other; seeds count.")
@click.option("--seconds", type=click.FloatRange(5), default=120.0, show_default=True)
@click.option("--faults", "kinds", callback=_chosen, help="Separated by commas. Default: all.")
@click.option("--data", type=click.Path(path_type=Path), default=None, help="For journals, logs.")
@click.option("--t", "faulty", type=click.IntRange(1), default=1, show_default=True)
@click.option("--b", "byzantine", type=click.IntRange(0), default=1, show_default=True)
def main(
    seed: int | None,
    runs: int,
    seconds: float,
    kinds: tuple[str, ...],
    data: Path | None,
    faulty: int,
    byzantine: int,
) -> None:
    """Disturb a cluster of 3t + 2b + 1 nodes, and judge what its users saw."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    first = secrets.randbelow(1 << 31) if seed is None else seed
    parent = Path(tempfile.mkdtemp(prefix="bftfs-chaos-")) if data is None else data
    total = Report(first)
    for number in range(first, first + runs):
        root = parent / str(number)
        root.mkdir(parents=True)
        click.echo(f"seed {number}, {seconds:g} s, in {root}")
        run = Run(root, seed=number, seconds=seconds, kinds=kinds, t=faulty, b=byzantine)
        report = run.perform()
        for ending in report.nodes_out:
            click.echo(ending)
        for finding in report.findings:
            click.echo(f"FINDING {finding}")
        click.echo(report.summary())
        if report.findings:
            click.echo(f"Repeat with --seed {number} --seconds {seconds:g}; journals, logs: {root}")
        else:
            shutil.rmtree(root)
        total.add(report)
    click.echo(f"all runs: {total.summary()}\n{total.table()}")
    if total.findings:
        sys.exit(1)
    if data is None:
        shutil.rmtree(parent)


if __name__ == "__main__":
    main()
