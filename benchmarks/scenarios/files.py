"""How many small files per second can be created, looked at, read, renamed and removed?

Each thread works in a directory of its own, so that what is measured is the file system and not the
kernel's lock on one directory.  Every operation is timed by itself as well.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

from benchmarks.descriptors import create
from benchmarks.errors import WorkloadError
from benchmarks.kernel_cache import drop_dentries, drop_pages
from benchmarks.measurement import Measure
from benchmarks.session import Phase, Place, Session
from benchmarks.workspace import Target, interleaved, require_space

PHASES = (
    "create",
    "create-fsync",
    "stat",
    "read",
    "read-cold",
    "rename",
    "unlink",
    "mkdir",
)

# The least that a file takes beside its content: an inode, an entry, a block.
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Parameters:
    """`threads`: each of these numbers of threads is measured."""

    repeat: int
    counts: tuple[int, ...]
    size: int
    threads: tuple[int, ...]


def run(session: Session, targets: Sequence[Target], parameters: Parameters) -> None:
    """Measure."""
    for target in targets:
        require_space(target, 2 * max(parameters.counts) * (parameters.size + _OVERHEAD_BYTES))

    def one_round(target: Target, number: int, directory: Path) -> None:
        for count in parameters.counts:
            for threads in parameters.threads:
                variant = f"{count} files" + (f", {threads} threads" if threads > 1 else "")
                work = directory / f"{count}-{threads}"
                work.mkdir()
                place = target.place(number, variant)
                _Variant(
                    session, place, work, count=count, size=parameters.size, threads=threads
                ).run()

    interleaved(session, targets, parameters.repeat, one_round)


class _Variant:
    """All phases, with one number of files and one of threads."""

    def __init__(
        self,
        session: Session,
        place: Place,
        directory: Path,
        *,
        count: int,
        size: int,
        threads: int,
    ) -> None:
        self._session = session
        self._place = place
        self._count = count
        self._size = size
        self._parts = tuple(
            (directory / f"thread{thread}", range(thread, count, threads))
            for thread in range(threads)
        )
        for path, _ in self._parts:
            path.mkdir()

    def run(self) -> None:
        """Requires: the directory is empty."""
        self._phase(
            "create", lambda base, i: create(f"{base}/c{i}", self._content(i), synced=False)
        )
        self._phase(
            "create-fsync", lambda base, i: create(f"{base}/s{i}", self._content(i), synced=True)
        )
        self._forget_names()
        self._phase("stat", self._stat)
        self._phase("read", self._read)
        drop_pages(base / f"c{index}" for base, indices in self._parts for index in indices)
        self._forget_names()
        self._phase("read-cold", self._read)
        self._phase("rename", lambda base, i: os.rename(f"{base}/c{i}", f"{base}/r{i}"))
        self._phase("unlink", lambda base, i: os.unlink(f"{base}/r{i}"))
        self._phase("mkdir", lambda base, i: os.mkdir(f"{base}/d{i}"))

    def _forget_names(self) -> None:
        if not drop_dentries():
            self._session.note("names and attributes stayed cached: only root may drop them")

    def _content(self, index: int) -> bytes:
        """The content of the file of that number: no two are alike, if there is room for it."""
        return index.to_bytes(8, "big") * (self._size // 8) + bytes(self._size % 8)

    def _stat(self, base: str, index: int) -> None:
        size = os.lstat(f"{base}/c{index}").st_size
        if size != self._size:
            raise WorkloadError(f"c{index} has {size} bytes, {self._size} were written")

    def _read(self, base: str, index: int) -> None:
        descriptor = os.open(f"{base}/c{index}", os.O_RDONLY)
        try:
            content = os.read(descriptor, self._size + 1)
        finally:
            os.close(descriptor)
        if content != self._content(index):
            raise WorkloadError(f"c{index} does not hold what was written to it")

    def _phase(self, name: str, operation: Callable[[str, int], None]) -> None:
        with self._session.phase(
            self._place,
            name,
            Measure.OPERATIONS_PER_SECOND,
            amount=self._count,
            work=self._count,
        ) as phase:
            if len(self._parts) == 1:
                phase.latencies_ns = _repeat(operation, *self._parts[0], phase)
                return
            with ThreadPoolExecutor(len(self._parts)) as pool:
                running = [pool.submit(_repeat, operation, *part, phase) for part in self._parts]
                for part in running:
                    phase.latencies_ns += part.result()


def _repeat(
    operation: Callable[[str, int], None], directory: Path, indices: range, phase: Phase
) -> list[int]:
    """Do the operation for each index; how long each took."""
    base = str(directory)
    latencies = []
    for index in indices:
        started = perf_counter_ns()
        operation(base, index)
        latencies.append(perf_counter_ns() - started)
        phase.advance()
    return latencies
