"""Tables, made from results."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from benchmarks.measurement import Measure, Sample, Spread
from benchmarks.processes import ProcessUse
from benchmarks.result import Result, TargetDescription, summary
from benchmarks.scenarios import fragility

_WIDTH_OF_A_FILE = 140


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough in a file."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_WIDTH_OF_A_FILE)


def show(result: Result, console: Console) -> None:
    """Print everything that a reader of one result wants to see first."""
    _describe(result, console)
    if result.scenario == fragility.NAME:
        console.print(_fragility(result))
        _close(result, console)
        return
    console.print(_figures(result))
    if any(sample.latencies for sample in result.samples):
        console.print(_latencies(result))
    if any(sample.details for sample in result.samples):
        console.print(_details(result))
    if any(sample.processes for sample in result.samples):
        console.print(_processes(result))
    _close(result, console)


def _close(result: Result, console: Console) -> None:
    """Events and failures during the run."""
    for run in result.disturbances:
        status = "did not end" if run.exit_status is None else f"exit status {run.exit_status}"
        console.print(
            f"round {run.round}: {run.after_s:.2f} s into {run.phase}: {run.command} ({status})",
            markup=False,
            highlight=False,
        )
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for failure in result.failures:
        console.print(
            f"FAILED: {failure.target}, round {failure.round}, {failure.phase}: {failure.message}",
            style="bold red",
            markup=False,
            highlight=False,
        )


def merge(result: Result, against: Result) -> Result:
    """One result that compares the first target of two runs of one scenario."""
    first = result.targets[0].name
    second = against.targets[0].name
    renamed = second if second != first else f"{second} (against)"
    samples = [s for s in result.samples if s.target == first]
    samples += [replace(s, target=renamed) for s in against.samples if s.target == second]
    return replace(
        result,
        targets=(
            result.targets[0],
            TargetDescription(renamed, against.targets[0].filesystem),
        ),
        samples=tuple(samples),
        failures=(*result.failures, *against.failures),
        notes=tuple(dict.fromkeys((*result.notes, *against.notes))),
    )


def _describe(result: Result, console: Console) -> None:
    machine = result.machine
    commit = "no commit"
    if result.commit is not None:
        commit = result.commit.hash[:12] + (" and changes" if result.commit.modified else "")
    console.print(f"{result.command}  ({result.started}, {commit})", markup=False, highlight=False)
    console.print(
        f"{machine.cores} x {machine.processor}, {machine.memory_mib} MiB,"
        f" Linux {machine.kernel}, {machine.distribution}, Python {machine.python},"
        f" load {machine.load_average}",
        markup=False,
        highlight=False,
    )


def _figures(result: Result) -> Table:
    names = [target.name for target in result.targets]
    rows = summary(result.samples, names)
    table = Table(title=f"{result.scenario}: median (smallest – largest)")
    table.add_column("phase")
    if any(row.variant for row in rows):
        table.add_column("of")
    table.add_column("unit")
    for target in result.targets:
        kind = f"\n({target.filesystem.kind})" if target.filesystem else ""
        table.add_column(target.name + kind, justify="right", overflow="fold")
    if len(names) == 2:
        table.add_column("time ratio", justify="right")
    for row in rows:
        cells = [row.phase]
        if any(other.variant for other in rows):
            cells.append(row.variant)
        cells.append(row.measure)
        cells += [_spread(spread, row.measure) for spread in row.spreads]
        if len(names) == 2:
            cells.append(_ratio(row.ratio))
        table.add_row(*cells)
    return table


def _fragility(result: Result) -> Table:
    table = Table(
        title="correct clients under attack, beside fault-free work in the same minute: medians"
        " (smallest – largest)"
    )
    for heading in ("Byzantine", "workload"):
        table.add_column(heading)
    for heading in (
        "throughput kept",
        "median latency",
        "99 %",
        "longest",
        "longest wait",
        "falls short",
    ):
        table.add_column(heading, justify="right")
    for line in fragility.lines(result.samples):
        kept = line.throughput
        spread = f" ({kept.minimum:.2f} – {kept.maximum:.2f})" if kept.count > 1 else ""
        table.add_row(
            line.variant,
            line.workload,
            f"{kept.median:.2f}{spread}",
            *(f"{ratio:.2f}x" for ratio in (line.median, line.p99, line.longest)),
            f"{line.stall_s:.2f} s",
            f"of {line.aim:.2f}, {fragility.STALL_S:.0f} s" if line.falls_short else "",
        )
    return table


def _latencies(result: Result) -> Table:
    table = Table(title="single operations, µs: medians of the rounds")
    for heading in ("target", "phase", "of"):
        table.add_column(heading)
    for heading in ("median", "90 %", "99 %", "longest"):
        table.add_column(heading, justify="right")
    for key, samples in _grouped(result.samples).items():
        latencies = [sample.latencies for sample in samples if sample.latencies]
        if latencies:
            ranks = zip(*((r.median, r.p90, r.p99, r.maximum) for r in latencies), strict=True)
            table.add_row(*key, *(f"{Spread.of(rank).median:,.0f}" for rank in ranks))
    return table


def _details(result: Result) -> Table:
    table = Table(title="details: medians of the rounds")
    for heading in ("target", "phase", "of", "what was found"):
        table.add_column(heading)
    for key, samples in _grouped(result.samples).items():
        names = dict.fromkeys(name for sample in samples for name in sample.details)
        found = (
            f"{name} {_detail([s.details[name] for s in samples if name in s.details])}"
            for name in names
        )
        if names:
            table.add_row(*key, ", ".join(found))
    return table


def _grouped(samples: Sequence[Sample]) -> dict[tuple[str, str, str], list[Sample]]:
    """By target, phase and variant."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.target, sample.phase, sample.variant), []).append(sample)
    return groups


def _detail(values: Sequence[float | str]) -> str:
    numbers = [value for value in values if not isinstance(value, str)]
    if numbers:
        return f"{Spread.of(numbers).median:.5g}"
    return " ".join(dict.fromkeys(str(value) for value in values))


def _processes(result: Result) -> Table:
    table = Table(title="processes: CPU in the phase (median), memory after it (largest)")
    for heading in ("target", "phase", "of", "process"):
        table.add_column(heading)
    for heading in ("user s", "system s", "RSS MiB", "anonymous", "of files", "peak"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, str, str, str], list[ProcessUse]] = {}
    for sample in result.samples:
        for use in sample.processes:
            key = (sample.target, sample.phase, sample.variant, use.name)
            groups.setdefault(key, []).append(use)
    for key, uses in groups.items():
        table.add_row(*key, *_use(uses))
    return table


def _use(uses: Sequence[ProcessUse]) -> list[str]:
    alive = [use for use in uses if use.alive]
    if not alive:
        return ["gone", "", "", "", "", ""]

    def mib(kib: int) -> str:
        return f"{kib / 1024:.1f}"

    return [
        f"{Spread.of(use.user_s for use in alive).median:.2f}",
        f"{Spread.of(use.system_s for use in alive).median:.2f}",
        mib(max(use.resident_kib for use in alive)),
        mib(max(use.anonymous_kib for use in alive)),
        mib(max(use.file_backed_kib for use in alive)),
        mib(max(use.peak_resident_kib for use in alive)),
    ]


def _spread(spread: Spread | None, measure: Measure) -> str:
    if spread is None:
        return "-"
    figures = 3 if measure is Measure.SECONDS else 0
    values = (spread.median, spread.minimum, spread.maximum)
    median, low, high = (f"{value:,.{figures}f}" for value in values)
    return median if spread.count == 1 else f"{median} ({low} – {high})"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.count == 1:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} ({spread.minimum:.2f} – {spread.maximum:.2f})"
