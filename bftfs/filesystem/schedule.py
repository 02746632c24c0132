"""Rules of a schedule of snapshots, such as `every 1h keep 24, every 1d keep 30`.

A rule divides time, from the epoch on, into periods of its length. A snapshot is due when a rule's
present period has none yet: so what was missed while no machine ran is made up for by one snapshot.
Of each period the first snapshot counts, and a rule keeps those of its latest periods that have
one. A snapshot that no rule keeps is let go.

**Invariant.** No function here reads a clock: times are given, in microseconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from bftfs import limits
from bftfs.errors import UsageError
from bftfs.query_update.object_type import Record
from bftfs.retention import format_duration, parse_duration

RULES: Final = 8  # of one schedule
KEPT: Final = 128  # snapshots that the rules of one schedule keep together

_SHORTEST_US: Final = 60 * limits.SECOND_US
_LONGEST_US: Final = 3660 * 86_400 * limits.SECOND_US
_RULE: Final = re.compile(r"every +([0-9]{1,10} ?[a-z]+) +keep +([0-9]{1,9})", re.ASCII)


class Rule(Record, frozen=True):
    """One snapshot in each period of `every_us`, of which the latest `keep` are kept."""

    every_us: Annotated[int, Meta(ge=_SHORTEST_US, le=_LONGEST_US)]
    keep: Annotated[int, Meta(ge=1, le=KEPT)]

    def __str__(self) -> str:
        return f"every {format_duration(self.every_us)} keep {self.keep}"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules that `text` says; a `UsageError` says what is wrong with it."""
    rules = []
    for part in text.split(","):
        words = " ".join(part.split())
        found = _RULE.fullmatch(words)
        if found is None:
            raise UsageError(
                f"{words!r}: a rule is `every TIME keep NUMBER`, and rules are separated by "
                "commas: 'every 1h keep 24, every 1d keep 30'"
            )
        every_us, keep = parse_duration(found[1]), int(found[2])
        if not _SHORTEST_US <= every_us <= _LONGEST_US:
            raise UsageError(f"{words!r}: a period lasts from 1min to 10y; write for example 1h")
        if not 1 <= keep <= KEPT:
            raise UsageError(f"{words!r}: a rule keeps from 1 to {KEPT} snapshots")
        rules.append(Rule(every_us, keep))
    if fault := fault_of_rules(rules):
        raise UsageError(f"{text!r}: {fault}")
    return tuple(rules)


def fault_of_rules(rules: Sequence[Rule]) -> str:
    """What is wrong with rules that are right each by itself; empty if nothing is."""
    if not 1 <= len(rules) <= RULES:
        return f"a schedule has from 1 to {RULES} rules"
    if len({rule.every_us for rule in rules}) < len(rules):
        return "two rules have the same period; leave one out"
    together = sum(rule.keep for rule in rules)
    if together > KEPT:
        return f"the rules keep {together} snapshots together, where {KEPT} are the most; keep less"
    return ""


def is_due(rules: Iterable[Rule], made_us: Sequence[int], now_us: int) -> bool:
    """True if a rule's present period has none of the snapshots made at `made_us`."""
    latest_us = max(made_us, default=-1)
    return any(latest_us // rule.every_us < now_us // rule.every_us for rule in rules)


def kept_times(rules: Iterable[Rule], made_us: Iterable[int]) -> set[int]:
    """The times of the snapshots that a rule keeps."""
    ascending = sorted(made_us)
    kept: set[int] = set()
    for rule in rules:
        firsts: dict[int, int] = {}
        for time_us in ascending:
            firsts.setdefault(time_us // rule.every_us, time_us)
        kept.update(list(firsts.values())[-rule.keep :])
    return kept
