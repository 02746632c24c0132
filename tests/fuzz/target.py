"""What a fuzz target is, and the oracle that judges what an input does to it."""

from __future__ import annotations

import re
import signal
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tests.fuzz.tracing import Tracer, WorkExceeded

KIB = 1024
MIB = 1024 * KIB
PROCESSOR_S = 60.0  # many times what any input takes on a busy machine, traced
_SHOWN_BYTES = 64


def _no_seeds() -> Iterable[bytes]:
    return ()


@dataclass(frozen=True)
class Target:
    """One entry point for bytes from outside.

    `run(data)` feeds it. What it may raise is what the entry point declares; anything else that
    leaves it, an assertion of the harness included, is a finding. So is more work (lines of the
    product) or memory than the limits, which grow with the input and with nothing else; and, for
    what runs no lines, as a regular expression, more processor time than anything may ever take.
    """

    name: str
    run: Callable[[bytes], None]
    raises: tuple[type[BaseException], ...] = ()
    seeds: Callable[[], Iterable[bytes]] = _no_seeds  # inputs to begin with
    work: int = 20_000
    work_per_byte: int = 40
    memory_bytes: int = 2 * MIB
    memory_per_byte: int = 64
    most_bytes: int = 4 * KIB  # the longest input that is tried
    explains: bool = False  # whether what a refusal says counts as if it were an edge

    def most_work(self, data: bytes) -> int:
        """Lines that `data` may take."""
        return self.work + self.work_per_byte * len(data)

    def most_memory(self, data: bytes) -> int:
        """Bytes that may be allocated at once for `data`."""
        return self.memory_bytes + self.memory_per_byte * len(data)


class Finding(Exception):
    """An input that breaks the oracle."""

    def __init__(self, target: Target, data: bytes, what: str) -> None:
        super().__init__(target.name, data, what)
        self.target = target
        self.data = data
        self.what = what

    def __str__(self) -> str:
        shown = self.data[:_SHOWN_BYTES].hex() + ("…" if len(self.data) > _SHOWN_BYTES else "")
        return f"{self.target.name}: {self.what}; the input is {shown}"


@dataclass(frozen=True)
class Outcome:
    """What a harmless input did."""

    edges: frozenset[int]
    work: int
    memory_bytes: int


def run(target: Target, data: bytes) -> BaseException | None:
    """Feed `data`; the declared error, if it is one. Raises what no correct entry point raises."""
    try:
        target.run(data)
    except target.raises as refusal:
        return refusal
    return None


_DETAILS = re.compile(r"[0-9]+|'[^']*'|`[^`]*`…?")
_features: dict[tuple[type, str], int] = {}


def _feature_of(refusal: BaseException) -> int:
    """What is refused and why, as if it were an edge: decoders in C show nothing else of theirs."""
    key = (type(refusal), _DETAILS.sub("", str(refusal))[:200])
    return -1 - _features.setdefault(key, len(_features))


def judge(target: Target, data: bytes, *, measure_memory: bool = True) -> Outcome:
    """What `data` does to the target. Raises Finding if that breaks the oracle."""
    tracer = Tracer(most_work=target.most_work(data))
    try:
        with processor_time(PROCESSOR_S), tracer:
            refusal = run(target, data)
        # A pass of its own, and the second one: it is known to end, and a tracer allocates as well.
        memory = _peak_bytes(target, data) if measure_memory else 0
    except WorkExceeded as exceeded:
        raise Finding(target, data, str(exceeded)) from exceeded
    except MemoryError as error:
        raise Finding(target, data, "memory is exhausted") from error
    except Exception as error:
        raise Finding(target, data, f"{type(error).__name__}: {error}") from error
    if memory > target.most_memory(data):
        raise Finding(
            target, data, f"{memory} bytes of memory where {target.most_memory(data)} are allowed"
        )
    if refusal is not None and target.explains:
        tracer.edges.add(_feature_of(refusal))
    return Outcome(frozenset(tracer.edges), tracer.work, memory)


@contextmanager
def processor_time(most_s: float) -> Iterator[None]:
    """Raises WorkExceeded where what is inside takes more, in C as well. In the main thread."""

    def exceeded(_signal: int, _frame: FrameType | None) -> None:
        raise WorkExceeded(f"more than {most_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, exceeded)
    signal.setitimer(signal.ITIMER_PROF, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak_bytes(target: Target, data: bytes) -> int:
    """The most memory that is in use at once for `data`."""
    tracemalloc.start()
    try:
        run(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
