"""Another source tree's program in turns with this one: the same scenario, one round each.

A machine's speed changes from minute to minute.  So the programs are not measured one after the
other but in turns, and each round's two runs make one ratio: what slows both cancels out.  Which of
them begins alternates, because the second finds warmer caches.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import result
from benchmarks.deployment import PROJECT
from benchmarks.errors import BenchmarkError
from benchmarks.measurement import Sample
from benchmarks.options import command_line
from benchmarks.result import Result, TargetDescription
from benchmarks.session import Failure


def run(other: Path, scenario: tuple[str, ...], rounds: int) -> Result:
    """`rounds` rounds of `python -m benchmarks SCENARIO…` in this tree and in `other`.

    `other` holds a checkout of this project, of a commit that has the scenario; both run in this
    interpreter, with its packages.  The result's targets are the two commits, this one first.
    """
    if not (other / "benchmarks" / "__main__.py").is_file():
        raise BenchmarkError(f"{other}: no checkout of bftfs there; make one with git worktree add")
    if other.resolve() == PROJECT:
        raise BenchmarkError(f"{other} is this tree itself; name a checkout of another commit")
    sides = {PROJECT: "this program", other.resolve(): "the other"}
    samples: list[Sample] = []
    failures: list[Failure] = []
    last: dict[Path, Result] = {}
    for number in range(rounds):
        order = list(sides)
        if number % 2:
            order.reverse()
        for tree in order:
            measured = last[tree] = _one_round(tree, scenario)
            name, first = sides[tree], measured.targets[0].name
            samples += [
                replace(sample, target=name, round=number)
                for sample in measured.samples
                if sample.target == first
            ]
            failures += [replace(f, target=name, round=number) for f in measured.failures]
    here = last[PROJECT]
    place = here.targets[0].filesystem
    commit = last[other.resolve()].commit
    return replace(
        here,
        command=command_line(),
        targets=tuple(TargetDescription(name, place) for name in sides.values()),
        samples=tuple(samples),
        failures=tuple(failures),
        parameters=here.parameters | {"repeat": rounds},
        notes=(*here.notes, f"the other: commit {commit.hash if commit else 'unknown'}"),
    )


def _one_round(tree: Path, scenario: tuple[str, ...]) -> Result:
    with tempfile.TemporaryDirectory(prefix="benchmark-turn-") as scratch:
        written = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benchmarks", *scenario, "--repeat", "1", "--json"]
        done = subprocess.run(
            [*command, written],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if not written.exists():
            raise BenchmarkError(f"{tree}: {' '.join(scenario)} ended with {done.returncode}")
        return result.read(written)
