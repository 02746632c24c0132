"""How fast does one large file go in and out, and how fast do small synced writes into it go?

What is written is a pattern in which no two places of a file hold the same; what is read is
compared with it, whole.
"""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns

from benchmarks.descriptors import write_all
from benchmarks.errors import WorkloadError
from benchmarks.kernel_cache import drop_pages
from benchmarks.measurement import Measure
from benchmarks.session import Place, Session
from benchmarks.workspace import Target, interleaved, require_space

PHASES = ("write", "read", "random-write", "random-read")

_CHUNK = 1 << 20
PAGE = 4096
_STRIDE = 7919  # a prime: chunks begin at other places of the pattern, and at other alignments
_SEED = 1


@dataclass(frozen=True, slots=True)
class Parameters:
    """Sizes in bytes; `random_writes` is the number of pages written one by one."""

    repeat: int
    size: int
    random_writes: int


def run(session: Session, targets: Sequence[Target], parameters: Parameters) -> None:
    """Measure."""
    for target in targets:
        require_space(target, parameters.size + parameters.random_writes * PAGE)
    pattern = memoryview(random.Random(_SEED).randbytes(2 * _CHUNK))

    def one_round(target: Target, number: int, directory: Path) -> None:
        path = directory / "stream"
        _Round(session, target.place(number), path, pattern, parameters).run()

    interleaved(session, targets, parameters.repeat, one_round)


class _Round:
    """All phases, once."""

    def __init__(
        self,
        session: Session,
        place: Place,
        path: Path,
        pattern: memoryview,
        parameters: Parameters,
    ) -> None:
        self._session = session
        self._place = place
        self._path = path
        self._pattern = pattern
        self._size = parameters.size
        self._pages = _random_pages(parameters)

    def run(self) -> None:
        """Requires: the file does not exist."""
        self._write()
        drop_pages([self._path])
        self._read()
        self._random_write()
        drop_pages([self._path])
        self._random_read()

    def _write(self) -> None:
        with self._session.phase(
            self._place,
            "write",
            Measure.MEGABYTES_PER_SECOND,
            amount=self._size,
            work=self._size,
        ) as phase:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                for chunk in self._chunks():
                    write_all(descriptor, chunk)
                    phase.advance(len(chunk))
                written = perf_counter()
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            phase.details["fsync_and_close_s"] = perf_counter() - written

    def _read(self) -> None:
        buffer = bytearray(_CHUNK)
        with (
            self._session.phase(
                self._place,
                "read",
                Measure.MEGABYTES_PER_SECOND,
                amount=self._size,
                work=self._size,
            ) as phase,
            self._path.open("rb", buffering=0) as file,
        ):
            position = 0
            for chunk in self._chunks():
                if len(chunk) < len(buffer):
                    buffer = bytearray(len(chunk))
                _read_into(file.fileno(), memoryview(buffer))
                # 20 µs per MiB: a bytearray is compared as memory, two memoryviews are not.
                if buffer != chunk:
                    raise WorkloadError(f"bytes {position} and on are not what was written")
                position += len(chunk)
                phase.advance(len(chunk))
            if file.read(1):
                raise WorkloadError(f"the file is longer than the {position} bytes written")

    def _random_write(self) -> None:
        work = len(self._pages)
        with self._session.phase(
            self._place, "random-write", Measure.OPERATIONS_PER_SECOND, amount=work, work=work
        ) as phase:
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                for number, page in enumerate(self._pages):
                    started = perf_counter_ns()
                    if os.pwrite(descriptor, self._page(number), page * PAGE) != PAGE:
                        raise WorkloadError(f"page {page} was not written whole")
                    os.fsync(descriptor)
                    phase.latencies_ns.append(perf_counter_ns() - started)
                    phase.advance()
            finally:
                os.close(descriptor)

    def _random_read(self) -> None:
        work = len(self._pages)
        with self._session.phase(
            self._place, "random-read", Measure.OPERATIONS_PER_SECOND, amount=work, work=work
        ) as phase:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                for number, page in enumerate(self._pages):
                    started = perf_counter_ns()
                    content = os.pread(descriptor, PAGE, page * PAGE)
                    phase.latencies_ns.append(perf_counter_ns() - started)
                    if content != self._page(number):
                        raise WorkloadError(f"page {page} does not hold what was written last")
                    phase.advance()
            finally:
                os.close(descriptor)

    def _chunks(self) -> Iterator[memoryview]:
        """The content of the file, in order."""
        for number, position in enumerate(range(0, self._size, _CHUNK)):
            start = number * _STRIDE % _CHUNK
            yield self._pattern[start : start + min(_CHUNK, self._size - position)]

    def _page(self, number: int) -> memoryview:
        """The content of the page that is overwritten as number `number`."""
        start = (number * _STRIDE + 1) % _CHUNK
        return self._pattern[start : start + PAGE]


def _random_pages(parameters: Parameters) -> Sequence[int]:
    """The pages to overwrite, in that order; no page twice."""
    pages = max(1, parameters.size // PAGE)
    return random.Random(_SEED).sample(range(pages), min(pages, parameters.random_writes))


def _read_into(descriptor: int, buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        count = os.readv(descriptor, [buffer[filled:]])
        if not count:
            raise WorkloadError(f"the file ends {len(buffer) - filled} bytes into a chunk")
        filled += count
