"""Simulates many seeds, one after the other or on several processors, and records the results.

A campaign can be continued from its record. The record's first line says what is simulated, and at
which commit; every other line is one seed. If a crash of the machine has cut a line short, its seed
is simulated again.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from bftfs.errors import UsageError
from bftfs.printable import as_word
from bftfs.simulation.configuration import Configuration, draw
from bftfs.simulation.scenario import Report, run
from bftfs.simulation.shrinking import MOST_RUNS, shrink, sort_of
from bftfs.simulation.world import SECOND_US
from bftfs.wire.codec import UNREADABLE


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """The report of one configuration and, if it failed, of the smallest that fails alike."""

    report: Report
    smallest: Report | None = None


@dataclass(frozen=True, slots=True)
class CampaignPlan:
    """How each seed of a campaign is run."""

    operations: int
    kind: str | None = None
    most_runs: int = MOST_RUNS  # to make a failing configuration smaller

    def simulate(self, seed: int) -> SeedOutcome:
        """Run one seed."""
        return examine(
            draw(seed, operations=self.operations, kind=self.kind), most_runs=self.most_runs
        )


def examine(configuration: Configuration, *, most_runs: int = MOST_RUNS) -> SeedOutcome:
    """Run a configuration; if it fails, run smaller ones too."""
    report = run(configuration)
    if report.passed or not most_runs:
        return SeedOutcome(report)
    sorts = frozenset(map(sort_of, report.findings))

    def fails_alike(smaller: Configuration) -> bool:
        return not sorts.isdisjoint(map(sort_of, run(smaller).findings))

    return SeedOutcome(report, run(shrink(configuration, fails=fails_alike, most_runs=most_runs)))


def campaign(
    seeds: Iterator[int], plan: CampaignPlan, *, parallel: int = 1
) -> Generator[SeedOutcome, None, None]:
    """The outcomes of all seeds, as they come in; closing the generator stops the work."""
    if parallel == 1:
        for seed in seeds:
            yield plan.simulate(seed)
        return
    executor = ProcessPoolExecutor(parallel, initializer=_leave_interrupts_to_the_parent)
    try:
        running: set[Future[SeedOutcome]] = set()
        for seed in seeds:
            running.add(executor.submit(plan.simulate, seed))
            if len(running) >= 2 * parallel:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from sorted((future.result() for future in done), key=_seed_of)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from sorted((future.result() for future in done), key=_seed_of)
    finally:
        executor.shutdown(cancel_futures=True)


def _seed_of(outcome: SeedOutcome) -> int:
    return outcome.report.configuration.seed


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class SeedResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of one seed's report that a record keeps."""

    seed: int
    kind: str
    size: str
    operations: int
    counts: dict[str, int]  # of what happened
    adversaries: tuple[str, ...]
    findings: tuple[str, ...] = ()

    @classmethod
    def of(cls, report: Report) -> SeedResult:
        """The part of `report` that a record keeps."""
        configuration, sizes = report.configuration, report.configuration.sizes.query_update
        counts = {what: number(report) for what, number in COUNTED.items()}
        return cls(
            configuration.seed,
            configuration.kind,
            f"n={sizes.n}, t={sizes.t}, b={sizes.b}",
            report.operations,
            {what: number for what, number in counts.items() if number},
            tuple(f"node {name}" for _, names in configuration.byzantine_nodes for name in names)
            + tuple(f"client {name}" for name in configuration.byzantine_clients),
            report.findings,
        )


COUNTED: Mapping[str, Callable[[Report], int]] = {
    "events": lambda report: report.events,
    "messages": lambda report: report.traffic.sent,
    "messages lost": lambda report: report.traffic.lost,
    "messages repeated": lambda report: report.traffic.duplicated,
    "messages cut off": lambda report: report.traffic.cut,
    "partitions": lambda report: report.fault_counts.partitions,
    "ways severed": lambda report: report.fault_counts.severed,
    "disks lost": lambda report: report.fault_counts.lost_disks,
    "folders put back": lambda report: report.fault_counts.folders,
    "crashes of nodes": lambda report: report.node_crashes,
    "crashes of clients": lambda report: report.client_crashes,
    "Byzantine nodes": lambda report: len(report.configuration.byzantine_nodes),
    "Byzantine clients": lambda report: len(report.configuration.byzantine_clients),
    "virtual seconds": lambda report: report.virtual_us // SECOND_US,
    "versions collected": lambda report: report.collected,
}


@dataclass(slots=True)
class CampaignTally:
    """Sums over results."""

    seeds: Counter[str] = field(default_factory=Counter)  # by kind of workload
    operations: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # seeds, by size of the cluster
    adversaries: Counter[str] = field(default_factory=Counter)  # how often each took part
    failed: dict[int, tuple[str, ...]] = field(default_factory=dict)  # what was found, by seed

    def add(self, result: SeedResult) -> None:
        """Count `result`."""
        self.seeds[result.kind] += 1
        self.operations[result.kind] += result.operations
        self.sizes[result.size] += 1
        self.counts.update(result.counts)
        self.adversaries.update(result.adversaries)
        if result.findings:
            self.failed[result.seed] = result.findings


# --- the record ------------------------------------------------------------------------------


class Heading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Identifies a campaign: another one must not go on with its record."""

    commit: str
    operations: int  # of correct clients, per seed, as they are drawn
    kind: str | None


class CampaignRecord:
    """A file that reports are appended to."""

    def __init__(self, path: Path, heading: Heading) -> None:
        self.tally = CampaignTally()
        self.seeds: set[int] = set()
        fresh = not path.exists() or path.stat().st_size == 0
        whole = 0 if fresh else self._take_up(path, heading)
        self._file: IO[bytes] = path.open("ab")
        if not fresh:
            self._file.truncate(whole)
        else:
            self._write(heading)

    def _take_up(self, path: Path, heading: Heading) -> int:
        """Count the results that the file has; return how many bytes of it are whole lines."""
        with path.open("rb") as file:
            first = file.readline()
            try:
                found = msgspec.json.decode(first, type=Heading)
            except UNREADABLE as error:
                raise UsageError(
                    f"{as_word(path)}: not the record of a campaign: {error}"
                ) from error
            if found != heading:
                raise UsageError(
                    f"{as_word(path)}: the record of another campaign ({found}); this one is "
                    f"{heading}. "
                    "Give it a record of its own."
                )
            whole = len(first)
            for encoded in file:
                if not encoded.endswith(b"\n"):
                    break
                try:
                    result = msgspec.json.decode(encoded, type=SeedResult)
                except UNREADABLE as error:
                    raise UsageError(f"{as_word(path)}: a damaged line: {error}") from error
                whole += len(encoded)
                self.seeds.add(result.seed)
                self.tally.add(result)
        return whole

    def add(self, result: SeedResult) -> None:
        """Record one seed."""
        self.tally.add(result)
        self.seeds.add(result.seed)
        self._write(result)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: Heading | SeedResult) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


def summary(tally: CampaignTally, *, heading: Heading, command: str) -> str:
    """A page about a campaign."""
    kinds = _table(
        ("workload", "seeds", "operations"),
        [(kind, tally.seeds[kind], tally.operations[kind]) for kind in sorted(tally.seeds)]
        + [("all", tally.seeds.total(), tally.operations.total())],
    )
    violations = (
        "None."
        if not tally.failed
        else "\n".join(
            f"- seed {seed}: {'; '.join(findings)}"
            for seed, findings in sorted(tally.failed.items())
        )
    )
    return f"""# A campaign of the simulator

`{command}` at commit {heading.commit}.

{tally.operations.total():,} operations of correct clients in {tally.seeds.total():,} runs, each
with a cluster, faults and adversaries of its own, drawn from its seed. An operation is a call that
a correct client made, and that the checkers judged. Violations found: {len(tally.failed)}. This
page is written by `bftfs simulate --summary`.

## Operations

{kinds}

## Clusters

{_table(("size", "seeds"), _ranked(tally.sizes))}

## Faults and events

{_table(("what", "how many"), ((what, tally.counts[what]) for what in COUNTED))}

## Adversaries

How often each took part; Byzantine nodes go on in the quiet phase.

{_table(("adversary", "how often"), sorted(tally.adversaries.items()))}

## Violations

{violations}
"""


def _ranked(counted: Counter[str]) -> Iterable[tuple[str, int]]:
    return sorted(counted.items(), key=lambda pair: -pair[1])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str | int, ...]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" + " ---: |" * (len(titles) - 1)]
    lines += [
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines)
