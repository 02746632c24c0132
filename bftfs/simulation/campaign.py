"""Many seeds, one after the other or on several processors, and what they add up to."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

import msgspec

from bftfs.simulation.configuration import Configuration, draw
from bftfs.simulation.scenario import Report, run
from bftfs.simulation.shrinking import MOST_RUNS, shrink, sort_of


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
        """The essence of `report`."""
        configuration, traffic = report.configuration, report.traffic
        sizes = configuration.sizes.query_update
        happened = (
            report.events,
            traffic.sent,
            traffic.lost,
            traffic.duplicated,
            traffic.cut,
            report.fault_counts.partitions,
            report.fault_counts.severed,
            report.fault_counts.lost_disks,
            report.node_crashes,
            report.client_crashes,
            len(configuration.byzantine_nodes),
            len(configuration.byzantine_clients),
            report.virtual_us // 1_000_000,
            report.collected,
        )
        return cls(
            configuration.seed,
            configuration.kind,
            f"n={sizes.n}, t={sizes.t}, b={sizes.b}",
            report.operations,
            {what: number for what, number in zip(COUNTED, happened, strict=True) if number},
            tuple(f"node {name}" for _, names in configuration.byzantine_nodes for name in names)
            + tuple(f"client {name}" for name in configuration.byzantine_clients),
            report.findings,
        )


COUNTED = (
    "events",
    "messages",
    "messages lost",
    "messages repeated",
    "messages cut off",
    "partitions",
    "ways severed",
    "disks lost",
    "crashes of nodes",
    "crashes of clients",
    "Byzantine nodes",
    "Byzantine clients",
    "virtual seconds",
    "versions collected",
)


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
