"""Linearizability and regularity of one register whose written values are all different.

With unique values the operations on one value form a zone, between the first response and the last
invocation among them, and a history is linearizable exactly if (after Gibbons and Korach)

1. no read of a value ends before the write of it begins, and every value read was written;
2. no two forward zones (first response before last invocation) overlap: each keeps the register's
   value busy for all of its length;
3. no backward zone lies inside a forward zone.

This is exact and takes O(n log n). The value None is the register's initial one.

Regularity is what close-to-open promises: a read gives the value of a write that had not been
overwritten, by a write that began after it had ended, before the read began; or of a write that was
going on meanwhile. Unlike linearizability this lets two readers disagree about the order of writes
that overlap them, and one reader see a new value and another one, later, the old: as long as the
new one's writer has not closed the file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise
from math import inf
from operator import attrgetter
from typing import Any


@dataclass(slots=True)
class RegisterOperation:
    """One read or write as its client saw it; `responded` is infinite if it never ended."""

    client: str
    kind: str  # "read" or "write"
    value: Any
    invoked: float = inf
    responded: float = inf


@dataclass(slots=True)
class _Zone:
    value: Hashable
    first_response: float
    last_invocation: float

    @property
    def forward(self) -> bool:
        return self.first_response < self.last_invocation


def check_register(operations: Iterable[RegisterOperation], *, name: str = "") -> list[str]:
    """Findings against the linearizability of `operations` on one register."""
    writes, reads = _by_value(operations)
    findings: list[str] = []
    zones: list[_Zone] = []
    for value, write in writes.items():
        readers = reads.pop(value, [])
        if not readers and write.responded == inf:
            continue  # never ended and never seen: it may not have taken place
        findings += [
            f"{name}: {read} ended before the write of its value began: {write}"
            for read in readers
            if read.responded < write.invoked
        ]
        zones.append(
            _Zone(
                value,
                min([write.responded, *(read.responded for read in readers)]),
                max([write.invoked, *(read.invoked for read in readers)]),
            )
        )
    for value, readers in reads.items():
        findings.append(f"{name}: {value!r} was read by {readers[0]} and never written")
    return findings + [f"{name}: {overlap}" for overlap in _overlaps(zones)]


def _by_value(
    operations: Iterable[RegisterOperation],
) -> tuple[dict[Hashable, RegisterOperation], dict[Hashable, list[RegisterOperation]]]:
    """The write of each value, and the reads that returned it."""
    writes: dict[Hashable, RegisterOperation] = {}
    reads: dict[Hashable, list[RegisterOperation]] = {}
    for operation in operations:
        if operation.kind == "write":
            if operation.value in writes:
                raise ValueError(f"the value {operation.value!r} was written twice")
            writes[operation.value] = operation
        elif operation.responded < inf:  # a read that never ended says nothing
            reads.setdefault(operation.value, []).append(operation)
    # The initial value was written before everything.
    writes.setdefault(None, RegisterOperation("", "write", None, -inf, -inf))
    return writes, reads


def _overlaps(zones: list[_Zone]) -> Iterator[str]:
    """Pairs of values that no order of the operations can separate."""
    forward = sorted((zone for zone in zones if zone.forward), key=lambda zone: zone.first_response)
    for earlier, later in pairwise(forward):
        if later.first_response < earlier.last_invocation:
            yield (
                f"{earlier.value!r} was the value until {earlier.last_invocation} at "
                f"least, but {later.value!r} was so at {later.first_response} already"
            )
    starts = [zone.first_response for zone in forward]
    for zone in zones:
        if zone.forward:
            continue
        # The only forward zone that can contain it is the last one that starts before it.
        position = bisect_left(starts, zone.last_invocation)
        if position and zone.first_response < forward[position - 1].last_invocation:
            yield (
                f"{zone.value!r} took place between {zone.last_invocation} and "
                f"{zone.first_response}, while {forward[position - 1].value!r} was the value "
                "throughout"
            )


def check_regular(operations: Iterable[RegisterOperation], *, name: str = "") -> list[str]:
    """Findings against the regularity of `operations` on one register."""
    writes, reads = _by_value(operations)
    # Of the writes that ended before a moment, the one that began last has overwritten most.
    ended = sorted((w for w in writes.values() if w.responded < inf), key=lambda w: w.responded)
    responses = [write.responded for write in ended]
    latest = list(accumulate(ended, partial(max, key=attrgetter("invoked"))))
    findings: list[str] = []
    for read in chain.from_iterable(reads.values()):
        written = writes.get(read.value)
        if written is None:
            findings.append(f"{name}: {read.value!r} was read by {read} and never written")
        elif read.responded < written.invoked:
            findings.append(f"{name}: {read} ended before the write of its value began: {written}")
        else:
            before = bisect_left(responses, read.invoked)
            if before and latest[before - 1].invoked > written.responded:
                findings.append(
                    f"{name}: {read} gave a value that {latest[before - 1]} had overwritten "
                    f"before: {written}"
                )
    return findings
