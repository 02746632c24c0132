"""Client processes of one cluster that work at the same time, when they are told to.

A worker is a program that obeys the lines of its input: see `benchmarks.victim.obey`.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from benchmarks.deployment import PROJECT, Deployment
from benchmarks.errors import WorkloadError
from benchmarks.victim import Work


class ClientProcess:
    """A client process that works when it is told to."""

    def __init__(self, deployment: Deployment, client: str, program: str, *arguments: str) -> None:
        self._log = (deployment.directory.path / f"{client}.log").open("w+b")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", program, *arguments),
                *("--data", str(deployment.directory.path), "--client", client),
            ],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def begin(self, workload: str, *seconds: float) -> None:
        """Work from now on, for so long; an attacker also with so much processor time."""
        assert self._process.stdin is not None
        line = " ".join([workload, *(f"{each:g}" for each in seconds)])
        with suppress(BrokenPipeError):  # `finish` says why
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def finish(self) -> Work:
        """The outcome."""
        return msgspec.json.decode(self._line(), type=Work)

    def prepare(self) -> None:
        """Let it make what it needs, and wait for that."""
        self.begin("prepare")
        self._line()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            complaint = self._log.read()[-2000:].decode(errors="replace")
            raise WorkloadError(f"a client process has ended: {complaint}")
        return line

    def end(self) -> None:
        """No more work."""
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def working(workers: list[ClientProcess]) -> Iterator[list[ClientProcess]]:
    """Workers that are ready, for the body. The first one makes the file system for the others."""
    try:
        for worker in workers:
            worker.prepare()
        yield workers
    finally:
        for worker in workers:
            worker.end()
