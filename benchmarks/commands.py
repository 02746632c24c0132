"""The command line: `python -m benchmarks SCENARIO …`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks import charts, report, result, turns
from benchmarks.build import require_tools
from benchmarks.deployment import System
from benchmarks.errors import BenchmarkError
from benchmarks.options import (
    Commands,
    Common,
    Decorator,
    NodeCommon,
    Size,
    common_options,
    finish,
    measure,
    measure_cases,
    measure_nodes,
    node_options,
)
from benchmarks.result import Parameter, Result
from benchmarks.scenarios import (
    andrew,
    blocks,
    channel,
    contention,
    counter,
    directory,
    files,
    fragility,
    healing,
    history,
    many,
    metadata,
    postmark,
    profile,
    stream,
    verification,
)
from benchmarks.session import Session
from benchmarks.source_tree import unpacked
from benchmarks.workspace import Target
from bftfs.cluster import Durability

_CHARTS: dict[str, Callable[[Result], Sequence[charts.Chart]]] = {
    verification.NAME: lambda shown: verification.charts(shown.samples),
    healing.NAME: lambda shown: healing.charts(shown.samples),
    many.NAME: lambda shown: many.charts(shown.samples),
    **dict.fromkeys(charts.TITLES, charts.phases),
}


def _faults_option(*default: str) -> Decorator:
    """The systems to measure, by the faults that they tolerate."""
    return click.option(
        "--faults",
        metavar="T[,B]",
        multiple=True,
        default=default,
        show_default=True,
        help="Faults to tolerate, B of them lies (by default all); on the fewest nodes;"
        " repeatable.",
    )


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


@main.command("counter")
@node_options(repeat=3)
@_faults_option("0", "1", "2", "3", "4", "5")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(1, 16, 32),
    show_default=True,
    help="Operations at the same time, each on a counter of its own; repeatable.",
)
@click.option("--operations", type=click.IntRange(1, 10_000_000), default=2000, show_default=True)
def counter_command(
    common: NodeCommon, faults: tuple[str, ...], in_flight: tuple[int, ...], operations: int
) -> None:
    """Increment and fetch Query/Update counters."""
    wanted = counter.Parameters(
        common.repeat,
        tuple(map(System.parse, faults)),
        in_flight,
        operations,
        common.durability,
    )
    measure_nodes(
        "counter",
        common,
        {"faults": " ".join(faults), "in_flight": list(in_flight), "operations": operations},
        lambda session, target: counter.run(session, target, common.below, wanted),
    )


@main.command("metadata")
@node_options(repeat=5)
@click.option("--operations", type=click.IntRange(1, 100_000), default=300, show_default=True)
def metadata_command(common: NodeCommon, operations: int) -> None:
    """Time metadata operations one by one, beside the figures of the source's Table 4.3."""
    wanted = metadata.Parameters(common.repeat, operations, common.durability)
    measure_nodes(
        "metadata",
        common,
        {"faults": "1", "operations": operations},
        lambda session, target: metadata.run(session, target, common.below, wanted),
        against=metadata.SOURCE,
    )


@main.command(postmark.NAME)
@node_options(repeat=1, durability=Durability.INTERVAL)
@_faults_option("0", "1", "2", "3", "4", "5")
@click.option(
    "--through",
    "ways",
    type=click.Choice(postmark.WAYS),
    multiple=True,
    default=postmark.WAYS,
    show_default=True,
    help="The namespace alone, with contents at the client as in the source; or PostMark itself in"
    " a mount; repeatable.",
)
@click.option(
    "--files",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    help="In the pool before the first transaction; 5000 in the source.",
)
@click.option(
    "--transactions",
    type=click.IntRange(1, 10_000_000),
    default=2000,
    show_default=True,
    help="20000 in the source.",
)
def postmark_command(
    common: NodeCommon,
    faults: tuple[str, ...],
    ways: tuple[str, ...],
    files: int,
    transactions: int,
) -> None:
    """Do PostMark's transactions, beside the figures of the source's Table 4.4."""
    wanted = postmark.Parameters(
        common.repeat,
        tuple(map(System.parse, faults)),
        ways,
        files,
        transactions,
        common.durability,
    )
    measure_nodes(
        postmark.NAME,
        common,
        {
            "faults": " ".join(faults),
            "through": " ".join(ways),
            "files": files,
            "transactions": transactions,
        },
        lambda session, target: postmark.run(session, target, common.below, wanted),
        against=postmark.SOURCE,
    )


@main.command(contention.NAME)
@node_options(repeat=3, durability=Durability.INTERVAL)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    default=3,
    show_default=True,
    help="With each number of contending clients.",
)
def contention_command(common: NodeCommon, seconds: float) -> None:
    """Fetch and increment a counter that others increment, beside the source's Table 4.2."""
    wanted = contention.Parameters(common.repeat, seconds, common.durability)
    measure_nodes(
        contention.NAME,
        common,
        {"faults": "1", "seconds": seconds},
        lambda session, target: contention.run(session, target, common.below, wanted),
        against=contention.SOURCE,
    )


@main.command("blocks")
@node_options(repeat=3)
@_faults_option("1", "2", "3", "4")
@click.option(
    "--size",
    "sizes",
    type=Size(),
    multiple=True,
    default=("16KiB", "128KiB"),
    show_default=True,
    help="Of a block; repeatable.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Blocks at the same time; repeatable.",
)
@click.option("--operations", type=click.IntRange(1, 1_000_000), default=300, show_default=True)
def blocks_command(
    common: NodeCommon,
    faults: tuple[str, ...],
    sizes: tuple[int, ...],
    in_flight: tuple[int, ...],
    operations: int,
) -> None:
    """Write and read blocks with PASIS read/write."""
    wanted = blocks.Parameters(
        common.repeat,
        tuple(map(System.parse, faults)),
        sizes,
        in_flight,
        operations,
        common.durability,
    )
    measure_nodes(
        "blocks",
        common,
        {
            "faults": " ".join(faults),
            "sizes": list(sizes),
            "in_flight": list(in_flight),
            "operations": operations,
        },
        lambda session, target: blocks.run(session, target, common.below, wanted),
    )


@main.command("history")
@node_options(repeat=3)
@click.option(
    "--versions",
    type=click.IntRange(2, 10_000_000),
    default=10_000,
    show_default=True,
    help="Of each directory that is listed.",
)
@click.option(
    "--blocks",
    type=click.IntRange(1, 1_000_000),
    default=8192,
    show_default=True,
    help="Of the file, of 128 KiB each: 8192 make 1 GiB.",
)
@click.option("--operations", type=click.IntRange(1, 100_000), default=100, show_default=True)
def history_command(common: NodeCommon, versions: int, blocks: int, operations: int) -> None:
    """List directories as they were, and overwrite blocks of a large file."""
    wanted = history.Parameters(common.repeat, versions, blocks, operations, common.durability)
    measure_nodes(
        "history",
        common,
        {"faults": "1", "versions": versions, "blocks": blocks, "operations": operations},
        lambda session, target: history.run(session, target, common.below, wanted),
    )


@main.command("directory")
@node_options(repeat=5)
@click.option(
    "--entries",
    type=click.IntRange(0, 10_000_000),
    multiple=True,
    default=(100, 100_000),
    show_default=True,
    help="In a directory before anything is measured; repeatable.",
)
@click.option("--creates", type=click.IntRange(1, 1_000_000), default=300, show_default=True)
def directory_command(common: NodeCommon, entries: tuple[int, ...], creates: int) -> None:
    """Create files in a small and in a large directory."""
    wanted = directory.Parameters(common.repeat, entries, creates, common.durability)
    measure_nodes(
        "directory",
        common,
        {"faults": "1", "entries": list(entries), "creates": creates},
        lambda session, target: directory.run(session, target, common.below, wanted),
    )


@main.command("profile")
@node_options(repeat=3, durability=Durability.INTERVAL)
@click.option(
    "--workload",
    "workloads",
    type=click.Choice(profile.WORKLOADS),
    multiple=True,
    default=profile.WORKLOADS,
    show_default=True,
    help="What to profile; repeatable.",
)
@click.option("--in-flight", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--operations", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--size", type=Size(), default="64KiB", show_default=True, help="Of a block.")
def profile_command(
    common: NodeCommon, workloads: tuple[str, ...], in_flight: int, operations: int, size: int
) -> None:
    """Say where the CPU time of a create and of a block goes, in the client and in one node."""
    wanted = profile.Parameters(
        common.repeat, workloads, in_flight, operations, size, common.durability
    )
    measure_nodes(
        "profile",
        common,
        {
            "faults": "1",
            "workloads": " ".join(workloads),
            "in_flight": in_flight,
            "operations": operations,
            "size": size,
        },
        lambda session, target: profile.run(session, target, common.below, wanted),
    )


@main.command("fragility")
@node_options(repeat=5, durability=Durability.INTERVAL)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    default=0.6,
    show_default=True,
    help="Of each turn; there are two for each adversary, workload and round.",
)
@click.option(
    "--adversary",
    "adversaries",
    metavar="NAME",
    multiple=True,
    default=fragility.ADVERSARIES,
    help="A node, one client or three of this kind (by default each there is); repeatable.",
)
def fragility_command(common: NodeCommon, seconds: float, adversaries: tuple[str, ...]) -> None:
    """Compare correct clients' work beside a Byzantine node, or clients, with fault-free work."""
    fragility.attacks_of(adversaries)
    wanted = fragility.Parameters(common.repeat, seconds, adversaries, common.durability)
    measure_nodes(
        fragility.NAME,
        common,
        {"faults": "1", "seconds": seconds, "adversaries": " ".join(adversaries)},
        lambda session, target: fragility.run(session, target, common.below, wanted),
        against=fragility.FAULT_FREE,
    )


@main.command("verification")
@node_options(repeat=1, durability=Durability.INTERVAL)
@_faults_option("1", "2", "3", "4", "5")
@click.option(
    "--policy",
    "policies",
    type=click.Choice(verification.POLICIES),
    multiple=True,
    default=verification.POLICIES,
    show_default=True,
    help="When versions are verified; repeatable.",
)
@click.option(
    "--operations",
    type=click.IntRange(0, 100_000),
    default=16,
    show_default=True,
    help="Writes, and reads, with think time; 0: none.",
)
@click.option(
    "--think-ms",
    type=click.IntRange(0, 60_000),
    default=50,
    show_default=True,
    help="After each of them.",
)
@click.option(
    "--pool",
    "pools",
    type=click.IntRange(1, 1_000_000),
    multiple=True,
    default=(64, 256, 1024, 4096),
    show_default=True,
    help="Unverified versions at a node before writers wait; repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    help="Of writing without think time, with each policy and pool; 0: none.",
)
def verification_command(
    common: NodeCommon,
    faults: tuple[str, ...],
    policies: tuple[str, ...],
    operations: int,
    think_ms: int,
    pools: tuple[int, ...],
    seconds: float,
) -> None:
    """Compare policies of verification: latencies with think time, throughput without."""
    wanted = verification.Parameters(
        common.repeat,
        tuple(map(System.parse, faults)),
        policies,
        operations,
        think_ms,
        pools,
        seconds,
        common.durability,
    )
    measure_nodes(
        verification.NAME,
        common,
        {
            "faults": " ".join(faults),
            "policies": " ".join(policies),
            "operations": operations,
            "think_ms": think_ms,
            "pools": list(pools),
            "seconds": seconds,
        },
        lambda session, target: verification.run(session, target, common.below, wanted),
    )


@main.command("healing")
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
)
@click.option(
    "--cluster",
    "data",
    metavar="DATA",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The local cluster that is mounted there: its node 0 will lose its store.",
)
@click.option(
    "--files",
    "count",
    type=click.IntRange(1, 10_000_000),
    default=20_000,
    show_default=True,
    help="That are there when it does.",
)
@click.option(
    "--size", type=Size(), default="1GiB", show_default=True, help="Of all of them together."
)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="make -j.")
@click.option(
    "--source",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="A C source tree, or an archive of one, in place of the one that is downloaded.",
)
@click.option(
    "--json",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every sample there.",
)
def healing_command(
    directory: Path,
    data: Path,
    count: int,
    size: int,
    jobs: int,
    source: Path | None,
    json: Path | None,
) -> None:
    """Let a node lose its store, and time its healing and, beside it, the Andrew benchmark."""
    require_tools()
    healing.node_of(data)
    parameters: dict[str, Parameter] = {"files": count, "size": size, "jobs": jobs}
    with tempfile.TemporaryDirectory(prefix="benchmark-source-") as scratch:
        tree = unpacked(source, Path(scratch))

        def run(session: Session) -> None:
            wanted = healing.Parameters(count, size, jobs)
            dimensions = healing.run(session, directory, data, tree, wanted)
            parameters.update({f"andrew_{name}": value for name, value in dimensions.items()})

        cases = (healing.HEALING, healing.WELL)
        measure_cases(healing.NAME, directory, cases, json, parameters, run)


@main.command(many.NAME)
@node_options(repeat=1, durability=Durability.INTERVAL)
@click.option(
    "--minutes",
    type=click.FloatRange(0.1, 10_000),
    default=10.0,
    show_default=True,
    help="For about so long: a third of it files are made, and as long they are removed.",
)
@click.option(
    "--files",
    "count",
    type=click.IntRange(1, 10_000_000),
    default=1_000_000,
    show_default=True,
    help="Make no more than these.",
)
@click.option("--size", type=Size(), default="4KiB", show_default=True, help="Of each file.")
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True)
def many_command(common: NodeCommon, minutes: float, count: int, size: int, threads: int) -> None:
    """Fill a mount with small files, change them, kill a node, list, rebuild a node, remove all."""
    wanted = many.Parameters(common.repeat, minutes, count, size, threads, common.durability)
    measure_nodes(
        many.NAME,
        common,
        {"faults": "1", "minutes": minutes, "files": count, "size": size, "threads": threads},
        lambda session, target: many.run(session, target, common.below, wanted),
    )


@main.command(channel.NAME)
@click.option("--repeat", type=click.IntRange(1, 1000), default=15, show_default=True)
@click.option(
    "--messages",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Of each size, in each turn.",
)
@click.option("--json", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def channel_command(repeat: int, messages: int, json: Path | None) -> None:
    """Seal and open messages in memory, by each construction that could encrypt the channel."""
    wanted = channel.Parameters(repeat, messages)
    parameters: dict[str, Parameter] = {"repeat": repeat, "messages": messages}
    measure_cases(
        channel.NAME,
        None,
        channel.CONSTRUCTIONS,
        json,
        parameters,
        lambda session: channel.run(session, wanted),
    )


@main.command("turns", context_settings={"ignore_unknown_options": True})
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--json", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("tree", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("scenario", nargs=-1, required=True, type=click.UNPROCESSED)
def turns_command(rounds: int, json: Path | None, tree: Path, scenario: tuple[str, ...]) -> None:
    """Measure the program in TREE, another commit's checkout, in turns with this one.

    SCENARIO is one that starts nodes of its own, with its options except --repeat and --json:
    python -m benchmarks turns ../before blocks --size 128KiB
    """
    if json is not None:
        result.require_writable(json)
    finish(turns.run(tree, scenario, rounds), json)


@main.command("plot")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", metavar="SVG", type=click.Path(dir_okay=False, path_type=Path))
def plot_command(file: Path, picture: Path) -> None:
    """Draw the charts of a result in JSON."""
    try:
        from benchmarks import plot
    except ModuleNotFoundError as error:
        raise BenchmarkError(
            f"{error.name} is missing, which draws: pip install --editable '.[plots]'"
        ) from None
    shown = result.read(file)
    if shown.scenario not in _CHARTS:
        raise BenchmarkError(
            f"{file} is of the scenario {shown.scenario}, which has no charts; those that have"
            f" are {', '.join(_CHARTS)}"
        )
    result.require_writable(picture)
    picture.write_text(plot.svg(_CHARTS[shown.scenario](shown)))


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
