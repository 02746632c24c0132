"""The result of one run of a scenario, and its form in JSON.

The file holds the fields of `Result` and, for readers without this program, `summary`: the rows of
the table.  The summary is derived from the samples and is not read back.
"""

import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.disturbance import DisturbanceRun
from benchmarks.errors import BenchmarkError
from benchmarks.machine import Commit, FileSystem, Machine
from benchmarks.measurement import Measure, Sample, Spread, time_ratio
from benchmarks.session import Failure, Session

SCHEMA = 1

Parameter = str | int | float | bool | None | list[int]


@dataclass(frozen=True, slots=True)
class TargetDescription:
    """A directory that was measured."""

    name: str
    filesystem: FileSystem | None  # None: the target is not a directory


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that one run gave, and what is needed to repeat it."""

    schema: int
    scenario: str
    command: str
    started: str
    commit: Commit | None
    machine: Machine
    parameters: dict[str, Parameter]
    targets: tuple[TargetDescription, ...]
    samples: tuple[Sample, ...]
    disturbances: tuple[DisturbanceRun, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        session: Session,
        setting: "Setting",
        *,
        scenario: str,
        command: str,
        parameters: dict[str, Parameter],
        targets: Iterable[TargetDescription],
    ) -> "Result":
        """The measurements of `session`."""
        return cls(
            schema=SCHEMA,
            scenario=scenario,
            command=command,
            started=setting.started,
            commit=setting.commit,
            machine=setting.machine,
            parameters=parameters,
            targets=tuple(targets),
            samples=tuple(session.samples),
            disturbances=tuple(session.disturbance_runs),
            failures=tuple(session.failures),
            notes=tuple(session.notes),
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """When and where a run began; taken before anything is measured."""

    started: str
    commit: Commit | None
    machine: Machine

    @classmethod
    def now(cls) -> "Setting":
        """Here and now."""
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(started, Commit.here(), Machine.here())


@dataclass(frozen=True, slots=True)
class Row:
    """One phase in one variant, over all rounds: on each target, and as a ratio of times."""

    variant: str
    phase: str
    measure: Measure
    spreads: tuple[Spread | None, ...]  # by target
    ratio: Spread | None  # time on the first target by time on the second


def summary(samples: Iterable[Sample], targets: Iterable[str]) -> tuple[Row, ...]:
    """The rows of the table, in the order in which the phases first ran."""
    names = tuple(targets)
    groups: dict[tuple[str, str, Measure], dict[str, list[Sample]]] = {}
    for sample in samples:
        by_target = groups.setdefault((sample.variant, sample.phase, sample.measure), {})
        by_target.setdefault(sample.target, []).append(sample)
    rows = []
    for (variant, phase, measure), by_target in groups.items():
        sides = [by_target.get(name, []) for name in names]
        spreads = tuple(Spread.of(s.value for s in side) if side else None for side in sides)
        ratio = time_ratio(*sides) if len(sides) == 2 else None
        rows.append(Row(variant, phase, measure, spreads, ratio))
    return tuple(rows)


def require_writable(path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be written afterwards."""
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BenchmarkError(f"cannot write {path}; is there a directory {path.parent}?")


def write(result: Result, path: Path) -> None:
    """Write the result as JSON, with its summary."""
    content: dict[str, object] = msgspec.to_builtins(result)
    rows = summary(result.samples, (target.name for target in result.targets))
    content["summary"] = msgspec.to_builtins(rows)
    text = msgspec.json.format(msgspec.json.encode(content), indent=1)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> Result:
    """A result that `write` has written."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BenchmarkError(f"{path} is not a result of these benchmarks: {error}") from error
    if result.schema != SCHEMA:
        raise BenchmarkError(f"{path} has schema {result.schema}, this program reads {SCHEMA}")
    return result
