"""How long do the five phases of the Andrew benchmark take on a real source tree?

[Howard et al., Scale and Performance in a Distributed File System, 1988]: make the directories of a
tree; copy its files; examine the attributes of every file; read every byte of every file; compile
and link the whole.  The copy keeps modes and modification times, as `cp -p` does.
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.build import build, recipe_for
from benchmarks.descriptors import write_all
from benchmarks.errors import WorkloadError
from benchmarks.kernel_cache import drop_dentries, drop_pages
from benchmarks.measurement import Measure, Sample
from benchmarks.session import Place, Session
from benchmarks.source_tree import Entry, Kind, manifest, mismatches
from benchmarks.workspace import Target, interleaved, require_space

PHASES = ("directories", "copy", "examine", "read", "compile")

_CHUNK = 128 * 1024  # what cp reads and writes at a time
_MISMATCHES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Parameters:
    """`cold`: the kernel drops what it has cached of the copy before `examine` and `read`."""

    repeat: int
    jobs: int
    cold: bool


def run(
    session: Session, targets: Sequence[Target], tree: Path, parameters: Parameters
) -> dict[str, int]:
    """Measure; gives the dimensions of the tree."""
    original = manifest(tree)
    size = sum((tree / e.path).stat().st_size for e in original.values() if e.kind is Kind.FILE)
    for target in targets:
        require_space(target, 5 * size + 10_000_000)  # the tree and what is compiled from it

    def one_round(target: Target, number: int, directory: Path) -> None:
        manifest(tree)  # every round finds the original in the kernel's cache
        _Round(session, target.place(number), tree, directory, original).run(parameters)

    interleaved(session, targets, parameters.repeat, one_round)
    return {
        "files": sum(1 for entry in original.values() if entry.kind is not Kind.DIRECTORY),
        "directories": sum(1 for entry in original.values() if entry.kind is Kind.DIRECTORY),
        "bytes": size,
    }


class _Round:
    """The five phases, once, and the proof that the copy is one."""

    def __init__(
        self,
        session: Session,
        place: Place,
        tree: Path,
        directory: Path,
        original: dict[str, Entry],
    ) -> None:
        self._session = session
        self._place = place
        self._tree = tree
        self._copy = directory / "tree"
        self._build = directory / "build"
        self._original = original
        self._directories = [e.path for e in original.values() if e.kind is Kind.DIRECTORY]
        self._files = [e.path for e in original.values() if e.kind is Kind.FILE]
        self._symlinks = [e for e in original.values() if e.kind is Kind.SYMLINK]

    def run(self, parameters: Parameters) -> None:
        """Requires: the round's directory is empty."""
        first = len(self._session.samples)
        self._make_directories()
        self._copy_files()
        try:
            if parameters.cold:
                self._forget_copy()
            self._examine()
            if parameters.cold:
                self._forget_copy()
            self._read()
            self._compile(parameters.jobs)
        finally:
            self._verify()
        self._total(self._session.samples[first:])

    def _make_directories(self) -> None:
        work = len(self._directories) + 1
        with self._session.phase(self._place, "directories", Measure.SECONDS, work=work) as phase:
            os.mkdir(self._copy)
            phase.advance()
            for path in self._directories:
                os.mkdir(self._copy / path)
                phase.advance()

    def _copy_files(self) -> None:
        work = len(self._files) + len(self._symlinks)
        with self._session.phase(self._place, "copy", Measure.SECONDS, work=work) as phase:
            for path in self._files:
                _copy_file(self._tree / path, self._copy / path)
                phase.advance()
            for entry in self._symlinks:
                os.symlink(entry.content, self._copy / entry.path)
                phase.advance()
            for path in reversed(self._directories):
                status = os.stat(self._tree / path)
                os.chmod(self._copy / path, stat.S_IMODE(status.st_mode))
                os.utime(self._copy / path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _examine(self) -> None:
        work = len(self._original)
        with self._session.phase(self._place, "examine", Measure.SECONDS, work=work) as phase:
            seen = 0
            for path in _paths_below(self._copy):
                os.lstat(path)
                seen += 1
                phase.advance()
            if seen != work:
                raise WorkloadError(f"{seen} entries are listed, {work} were made")

    def _read(self) -> None:
        work = len(self._files)
        with self._session.phase(self._place, "read", Measure.SECONDS, work=work) as phase:
            for path in self._files:
                descriptor = os.open(self._copy / path, os.O_RDONLY)
                try:
                    while os.read(descriptor, _CHUNK):
                        pass
                finally:
                    os.close(descriptor)
                phase.advance()

    def _compile(self, jobs: int) -> None:
        recipe = recipe_for(self._copy, jobs)
        with self._session.phase(
            self._place, "compile", Measure.SECONDS, work=recipe.lines
        ) as phase:
            os.mkdir(self._build)
            build(recipe, self._build, phase.advance)

    def _total(self, samples: Sequence[Sample]) -> None:
        self._session.add(
            Sample(
                target=self._place.target,
                variant=self._place.variant,
                phase="total",
                round=self._place.round,
                measure=Measure.SECONDS,
                seconds=sum(sample.seconds for sample in samples),
                amount=1,
                started_s=samples[0].started_s,
            )
        )

    def _verify(self) -> None:
        """After everything: what the phases have left, and not what the kernel remembers of it."""
        started = time.perf_counter()
        try:
            self._forget_copy()
            found = mismatches(self._original, manifest(self._copy))
        except OSError as error:
            self._session.fail(self._place, "verify", str(error))
            return
        if found:
            shown = "; ".join(found[:_MISMATCHES_SHOWN])
            self._session.fail(
                self._place, "verify", f"{len(found)} differences from the original: {shown}"
            )
        else:
            self._session.announce(
                f"{self._place.target}: the copy is identical"
                f" (read again in {time.perf_counter() - started:.2f} s)"
            )

    def _forget_copy(self) -> None:
        drop_pages(self._copy / path for path in self._files)
        if not drop_dentries():
            self._session.note("names and attributes stayed cached: only root may drop them")


def _copy_file(source: Path, copy: Path) -> None:
    reading = os.open(source, os.O_RDONLY)
    try:
        status = os.fstat(reading)
        mode = stat.S_IMODE(status.st_mode)
        writing = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o700)
        try:
            while chunk := os.read(reading, _CHUNK):
                write_all(writing, chunk)
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fchmod(writing, mode)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _paths_below(root: Path) -> Iterator[str]:
    with os.scandir(root) as listing:
        for entry in listing:
            yield entry.path
            if entry.is_dir(follow_symlinks=False):
                yield from _paths_below(Path(entry.path))
