"""The candidates that a server which rebuilds its store takes over below an object's latest one.

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

**Tests.** `tests/unit/server/test_beneath.py`, `tests/seams/test_lost_links.py`, which has the
must-fail test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bftfs.asking.quorum import QuorumSystem
from bftfs.identifiers import ObjectId
from bftfs.query_update.classification import reported
from bftfs.query_update.history import ZERO, Candidate, CulledObjectHistorySet


class Beneath(NamedTuple):
    """Candidates that are taken over before another one."""

    base: Candidate | None = None  # what is established
    copied: tuple[Candidate, ...] = ()  # after it, ascending


NOTHING = Beneath()


def beneath_it(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, candidate: Candidate
) -> Beneath | None:
    """The candidates that the server takes over before this one. None if they are not known.

    Requires: `candidate` is at a repairable set.
    """
    copied: list[Candidate] = []
    step = candidate
    while step.copy:
        if step.conditioned_on == ZERO:
            return Beneath(None, tuple(copied))
        below = reported(history_set, quorums, step.conditioned_on)
        if below is None:
            return None
        if quorums.is_repairable(below.nodes):
            copied.insert(0, below.candidate)
        step = below.candidate
    base = reported(history_set, quorums, step.conditioned_on)
    return Beneath(None if base is None else base.candidate, tuple(copied))


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
