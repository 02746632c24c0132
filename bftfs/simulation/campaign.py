"""Many seeds, one after the other or on several processors, and what they add up to."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from bftfs.simulation.configuration import draw
from bftfs.simulation.scenario import Report, run


def simulate(seed: int, operations: int, kind: str | None) -> Report:
    """The report of one seed."""
    return run(draw(seed, operations=operations, kind=kind))


def campaign(
    seeds: Iterator[int], *, operations: int, kind: str | None = None, parallel: int = 1
) -> Generator[Report, None, None]:
    """The reports of all seeds, as they come in; closing it stops the work."""
    if parallel == 1:
        for seed in seeds:
            yield simulate(seed, operations, kind)
        return
    executor = ProcessPoolExecutor(parallel, initializer=_leave_interrupts_to_the_parent)
    try:
        running: set[Future[Report]] = set()
        for seed in seeds:
            running.add(executor.submit(simulate, seed, operations, kind))
            if len(running) >= 2 * parallel:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from sorted((future.result() for future in done), key=_seed_of)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from sorted((future.result() for future in done), key=_seed_of)
    finally:
        executor.shutdown(cancel_futures=True)


def _seed_of(report: Report) -> int:
    return report.configuration.seed


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(slots=True)
class Tally:
    """Sums over reports."""

    seeds: int = 0
    operations: int = 0
    events: int = 0
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    cut: int = 0
    node_crashes: int = 0
    client_crashes: int = 0
    partitions: int = 0
    byzantine_nodes: int = 0
    byzantine_clients: int = 0
    failed_seeds: list[int] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count `report`."""
        self.seeds += 1
        self.operations += report.operations
        self.events += report.events
        self.messages += report.traffic.sent
        self.lost += report.traffic.lost
        self.duplicated += report.traffic.duplicated
        self.cut += report.traffic.cut
        self.node_crashes += report.node_crashes
        self.client_crashes += report.client_crashes
        self.partitions += report.weather.partitions + report.weather.severed
        self.byzantine_nodes += len(report.configuration.byzantine_nodes)
        self.byzantine_clients += len(report.configuration.byzantine_clients)
        if not report.passed:
            self.failed_seeds.append(report.configuration.seed)
