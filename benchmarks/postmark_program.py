"""PostMark [Katcher97] itself, from Debian's package, as a process whose phases can be timed.

It prints its times in whole seconds.  But it says when each of its phases begins, so that its
reader can time them.
"""

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import BenchmarkError, WorkloadError

CREATING = "Creating files..."
TRANSACTING = "Performing transactions"
DELETING = "Deleting files..."

_PROGRAM = "postmark"
_PATIENCE_S = 3600.0
_TAIL_CHARACTERS = 500


def require_postmark() -> None:
    """Refuse to start without the program."""
    if shutil.which(_PROGRAM) is None:
        raise BenchmarkError(
            f"{_PROGRAM} is not installed, which does the work on a mount: apt-get install"
            f" {_PROGRAM}; or measure --through namespace alone"
        )


@contextmanager
def running(directory: Path, *, files: int, transactions: int) -> Iterator["PostMark"]:
    """PostMark at work in an empty directory, with its own defaults for all else.

    Those are files and appends of 500 to 10,000 bytes, equal chances, and the random seed 42.
    """
    with tempfile.TemporaryFile() as orders, tempfile.TemporaryFile() as complaints:
        orders.write(b"set number %d\nset transactions %d\nrun\nquit\n" % (files, transactions))
        orders.seek(0)
        with subprocess.Popen(
            [_PROGRAM], cwd=directory, stdin=orders, stdout=subprocess.PIPE, stderr=complaints
        ) as process:
            watchdog = threading.Timer(_PATIENCE_S, process.kill)
            watchdog.start()
            try:
                yield PostMark(process)
                process.wait()
            finally:
                watchdog.cancel()
                process.kill()
        complaints.seek(0)
        if complained := complaints.read().decode(errors="replace"):
            raise WorkloadError(f"{_PROGRAM}: {complained[:_TAIL_CHARACTERS]}")
    if process.returncode:
        raise WorkloadError(f"{_PROGRAM} ended with status {process.returncode}")


class PostMark:
    """A run of the program."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._output = process.stdout.fileno()
        self._printed = ""

    def await_phase(self, phase: str) -> None:
        """Return when this phase begins."""
        while phase not in self._printed:
            if not self._read():
                last = self._printed[-_TAIL_CHARACTERS:]
                raise WorkloadError(f"{_PROGRAM} has ended before '{phase}': {last}")

    def report(self) -> str:
        """PostMark's report, which it prints when it has deleted its files."""
        self.await_phase(DELETING)
        while self._read():
            pass
        return self._printed.partition(DELETING)[2]

    def _read(self) -> bool:
        printed = os.read(self._output, 1 << 16)
        self._printed += printed.decode(errors="replace")
        return bool(printed)


def verify(report: str, *, files: int) -> None:
    """`WorkloadError` unless all files of the pool were created, and all that were are deleted."""
    counted = {
        what: int(number) for number, what in re.findall(r"^\t(\d+) (\w+) \(", report, re.MULTILINE)
    }
    pool = re.search(r"Creation alone: (\d+) files", report)
    if pool is None or not {"created", "read", "appended", "deleted"} <= counted.keys():
        raise WorkloadError(f"{_PROGRAM} reports no counts of files: {report}")
    if int(pool[1]) != files:
        raise WorkloadError(f"{_PROGRAM} has created {pool[1]} files for {files}")
    if counted["created"] != counted["deleted"]:
        raise WorkloadError(
            f"{_PROGRAM} has created {counted['created']} files and deleted {counted['deleted']}"
        )
