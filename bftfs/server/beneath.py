"""What a server that rebuilds its store takes over together with the latest candidate of an object.

**Situation.** A server S has lost its store. It had accepted X, and X may be established by a
quorum that S was one of. Others have something later on top of X, E, which is at a repairable set
of those that S asks, and so S takes over E. If it said that it has E alone, X would lack the word
of S: a barrier quorum with S in it could show both at fewer than r servers, and leave X behind.

**Rule.** S takes over, with E, what E is built on, as far as it is at a repairable set of the
others, too, and down to what is known to be established. E's history tells that: a copy may copy
something that is not established, and so on; a method is accepted on nothing but what is. If it
is not known what a copy copies, S takes over nothing, and the object waits: others finish what is
incomplete without S.

**Why that is enough.** What may be established with S's old word is at r correct servers of those
that S asks, or they have pruned it for the sake of something later of which the same is true. It is
in the chain of E, since nothing else is at so many. And no later than the first method in that
chain is all that is not established: what that was made on is, and is at r as well.

**Why it is safe.** S takes over what E leads to if E is established. Nothing in conflict with E is
at any time: those r that have it have a correct server in common with each quorum. (4.4)

**Tests.** `tests/unit/server/test_beneath.py`, `tests/seams/test_lost_disks.py`, which has the
must-fail tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    CulledObjectHistorySet,
    LogicalTimestamp,
)


class Beneath(NamedTuple):
    """Candidates that are taken over before another one."""

    base: Candidate | None = None  # what is established
    copied: tuple[Candidate, ...] = ()  # after it, ascending


NOTHING = Beneath()


def beneath_it(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, candidate: Candidate
) -> Beneath | None:
    """What is taken over before `candidate`. None if that is not known.

    Requires: `candidate` is at a repairable set.
    """
    copied: list[Candidate] = []
    step = candidate
    while step.copy:
        if step.conditioned_on == ZERO:
            return Beneath(None, tuple(copied))
        below, nodes = _reported(history_set, quorums, step.conditioned_on)
        if below is None:
            return None
        if quorums.is_repairable(nodes):
            copied.insert(0, below)
        step = below
    base, _ = _reported(history_set, quorums, step.conditioned_on)
    return Beneath(base, tuple(copied))


def _reported(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, timestamp: LogicalTimestamp
) -> tuple[Candidate | None, Nodes]:
    """The candidate at `timestamp`, if a benign server reports it, and all that do."""
    found: dict[Candidate, Nodes] = {}
    for history, hosts in history_set.hosted:
        candidate = history.find(timestamp)
        if candidate is not None:
            found[candidate] = found.get(candidate, NOBODY) | hosts
    for candidate, nodes in found.items():
        if quorums.includes_benign(nodes):
            return candidate, nodes
    return None, NOBODY


def together(found: Mapping[ObjectId, Beneath]) -> dict[ObjectId, Beneath]:
    """Of operations on several objects, take over at none what is not taken over at all of these.

    One that has other objects besides is established: what is copied at some objects only is.
    """
    taken = {
        name: {each.timestamp for each in (*below.copied, *filter(None, (below.base,)))}
        for name, below in found.items()
    }

    def is_at_all(candidate: Candidate) -> bool:
        objects = candidate.objects
        return not found.keys() >= set(objects) or all(
            candidate.timestamp in taken[name] for name in objects
        )

    return {
        name: below._replace(copied=tuple(filter(is_at_all, below.copied)))
        for name, below in found.items()
    }
