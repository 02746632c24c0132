"""The command line: `python -m benchmarks SCENARIO …`."""

import tempfile
from pathlib import Path

import click

from benchmarks import report, result
from benchmarks.build import require_tools
from benchmarks.errors import BenchmarkError
from benchmarks.options import Commands, Common, Size, common_options, measure
from benchmarks.result import Parameter
from benchmarks.scenarios import andrew, files, stream
from benchmarks.session import Session
from benchmarks.source_tree import unpacked
from benchmarks.workspace import Target


@click.group(cls=Commands)
def main() -> None:
    """Measure a file system in a directory, or the protocols below it.

    A run ends with 1 if the file system gave a wrong answer or none, with 2 if it was asked for
    wrongly.
    """


@main.command("andrew")
@common_options(repeat=3)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="make -j.")
@click.option(
    "--cold", is_flag=True, help="Drop the kernel's caches before examining and reading (root)."
)
@click.option(
    "--source",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="A C source tree, or an archive of one, in place of the one that is downloaded.",
)
def andrew_command(common: Common, jobs: int, cold: bool, source: Path | None) -> None:
    """Make directories, copy, examine, read, and compile a real source tree in DIR."""
    require_tools()
    parameters: dict[str, Parameter] = {"repeat": common.repeat, "jobs": jobs, "cold": cold}
    with tempfile.TemporaryDirectory(prefix="benchmark-source-") as scratch:
        tree = unpacked(source, Path(scratch))

        def run(session: Session, targets: tuple[Target, ...]) -> None:
            wanted = andrew.Parameters(common.repeat, jobs, cold)
            parameters.update(andrew.run(session, targets, tree, wanted))

        measure("andrew", common, andrew.PHASES, parameters, run)


@main.command("files")
@common_options(repeat=1)
@click.option(
    "--count",
    "counts",
    type=click.IntRange(1, 10_000_000),
    multiple=True,
    default=(1000, 10_000),
    show_default=True,
    help="Files to create; repeatable.",
)
@click.option("--size", type=Size(), default=4096, show_default=True, help="Bytes in each file.")
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, help="Measure with as many threads, too."
)
def files_command(common: Common, counts: tuple[int, ...], size: int, threads: int) -> None:
    """Create, look at, read, rename and unlink small files in DIR."""
    wanted = files.Parameters(common.repeat, counts, size, tuple(sorted({1, threads})))
    measure(
        "files",
        common,
        files.PHASES,
        {
            "repeat": common.repeat,
            "counts": list(counts),
            "size": size,
            "threads": list(wanted.threads),
        },
        lambda session, targets: files.run(session, targets, wanted),
    )


@main.command("stream")
@common_options(repeat=3)
@click.option("--size", type=Size(), default="1GiB", show_default=True, help="Of the file.")
@click.option(
    "--random-writes",
    type=click.IntRange(1, 10_000_000),
    default=1000,
    show_default=True,
    help="Pages of 4 KiB to overwrite, each with an fsync.",
)
def stream_command(common: Common, size: int, random_writes: int) -> None:
    """Write and read one large file in DIR, then write pages of it at random."""
    if size < stream.PAGE:
        raise BenchmarkError(f"--size {size}: the file must hold a page of {stream.PAGE} bytes")
    wanted = stream.Parameters(common.repeat, size, random_writes)
    measure(
        "stream",
        common,
        stream.PHASES,
        {"repeat": common.repeat, "size": size, "random_writes": random_writes},
        lambda session, targets: stream.run(session, targets, wanted),
    )


@main.command("show")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--against",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another run of the same scenario: print ratios of times.",
)
def show_command(file: Path, against: Path | None) -> None:
    """Print the table of a result in JSON."""
    shown = result.read(file)
    if against is not None:
        other = result.read(against)
        if other.scenario != shown.scenario:
            raise BenchmarkError(
                f"{file} is of the scenario {shown.scenario}, {against} of {other.scenario};"
                " only runs of one scenario can be compared"
            )
        shown = report.merge(shown, other)
    report.show(shown, report.console())
