"""The directories that a scenario runs in, and the fresh subdirectory of each run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError, PhaseError
from benchmarks.session import Place, Session

_CLEANUP_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A directory under measurement."""

    name: str
    directory: Path
    disturbed: bool

    def place(self, round_number: int, variant: str = "") -> Place:
        """This target in one round."""
        return Place(self.name, round_number, variant, self.disturbed)


def targets(directory: Path, against: Path | None) -> tuple[Target, ...]:
    """The directory to measure and, behind it, the one to compare it with."""
    first = Target(str(directory), directory, disturbed=True)
    if against is None:
        return (first,)
    name = str(against) if against != directory else f"{against} (undisturbed)"
    return (first, Target(name, against, disturbed=False))


def require_space(target: Target, size: int) -> None:
    """Refuse to start what the file system has no room for."""
    usage = shutil.disk_usage(target.directory)
    # A total of 0 is a file system that does not say.
    if usage.total and usage.free < size:
        raise BenchmarkError(
            f"{target.directory}: {size / 1e6:,.0f} MB are needed and {usage.free / 1e6:,.0f} MB"
            " are free; make room or ask for less"
        )


def interleaved(
    session: Session,
    targets: Sequence[Target],
    repeat: int,
    run: Callable[[Target, int, Path], None],
) -> None:
    """Run on each target in turn, `repeat` times, each time in a new directory: A B A B …

    A phase that failed has been recorded; it ends its round, and the next one can go on.
    """
    for number in range(repeat):
        for target in targets:
            with suppress(PhaseError), _fresh_directory(session, target, number) as directory:
                try:
                    run(target, number, directory)
                except OSError as error:
                    session.fail(target.place(number), "between phases", str(error))


@contextmanager
def _fresh_directory(session: Session, target: Target, number: int) -> Iterator[Path]:
    place = target.place(number)
    try:
        directory = Path(tempfile.mkdtemp(prefix="benchmark-", dir=target.directory))
    except OSError as error:
        session.fail(place, "set up", str(error))
        raise PhaseError from error
    try:
        yield directory
    finally:
        _remove(session, place, directory)


def _remove(session: Session, place: Place, path: Path) -> None:
    # In a process of its own: a file system that hangs must not hang the benchmark for ever.
    command = ["rm", "-rf", "--", os.fspath(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CLEANUP_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        session.fail(place, "clean up", f"{path} was not removed in {_CLEANUP_PATIENCE_S:.0f} s")
        return
    if done.returncode:
        session.fail(place, "clean up", done.stderr.strip()[-500:])
