"""Regularity of a register whose written values are all different: what close-to-open promises.

A read gives the value of a write that had not been overwritten, by a write that began after it had
ended, before the read began; or of a write that was going on meanwhile. Unlike linearizability this
lets two readers disagree about the order of writes that overlap them, and one reader see a new
value and another one, later, the old: as long as the new one's writer has not closed the file.

The value None is the register's initial one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable
from itertools import accumulate
from math import inf

from bftfs.simulation.checkers.linearizability import RegisterOperation


def check_regular(operations: Iterable[RegisterOperation], *, name: str = "") -> list[str]:
    """Findings against the regularity of `operations` on one register."""
    everything = list(operations)
    writes: dict[Hashable, RegisterOperation] = {
        None: RegisterOperation("", "write", None, -inf, -inf)
    }
    for write in everything:
        if write.kind == "write":
            if write.value in writes:
                raise ValueError(f"the value {write.value!r} was written twice")
            writes[write.value] = write
    # Of the writes that ended before a moment, the one that began last has overwritten most.
    ended = sorted((w for w in writes.values() if w.responded < inf), key=lambda w: w.responded)
    responses = [write.responded for write in ended]
    latest: list[RegisterOperation] = list(accumulate(ended, _later))
    findings: list[str] = []
    for read in everything:
        if read.kind != "read" or read.responded == inf:
            continue
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


def _later(one: RegisterOperation, other: RegisterOperation) -> RegisterOperation:
    """Which of them began later."""
    return one if one.invoked >= other.invoked else other
