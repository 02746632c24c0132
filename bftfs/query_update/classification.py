"""Which operation an object history set dictates: a pure function that clients and servers share.

[Q/U §4.3.3 (4.1); §4.3.4, lines 700-712, 800, 1200-1206; §4.3.5, Inline repair and Malevolent
components]

Rules, with ObjCand the greatest object candidate that is repairable or complete, and LTlat the
greatest timestamp of all:

1. LTlat is ObjCand, complete: METHOD, conditioned on ObjCand.
2. LTlat is ObjCand, repairable: INLINE_METHOD, which finishes that very operation. Only without
   contention: anything later than it would be LTlat.
3. LTlat is a barrier, complete: COPY of ObjCand.
4. LTlat is a barrier, not complete: INLINE_BARRIER. Every such barrier is repaired inline, however
   few servers report it: that bounds the barriers that malevolent servers can forge.
5. Otherwise LTlat is incomplete: BARRIER.

A candidate is complete if a quorum shares it, repairable if a repairable set does, else incomplete.
Object candidates are shared by servers that report all of the candidate alike; a barrier, which has
no object version, is shared by those that report its timestamp. ⟨0, 0⟩ is shared by the servers
that have not pruned it, and by those that were not heard.

What is known by deduction (§4.3.7) comes first: an established candidate is complete once it is
repairable, and a dead one, which can never be established, is no object candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, TypeAlias

from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.query_update.history import (
    INITIAL,
    Candidate,
    CulledObjectHistorySet,
    LogicalTimestamp,
    is_barrier,
)

# What is known by deduction: established (True) or dead (False).
Facts: TypeAlias = Mapping[LogicalTimestamp, bool]
NO_FACTS: Facts = {}


class OperationType(Enum):
    """What may be done next to an object."""

    METHOD = "method"
    INLINE_METHOD = "inline method"
    COPY = "copy"
    BARRIER = "barrier"
    INLINE_BARRIER = "inline barrier"


class Shared(NamedTuple):
    """A candidate and the servers that share it; its order is their number."""

    candidate: Candidate
    nodes: Nodes


class Classification(NamedTuple):
    """The result of `classify`."""

    type: OperationType
    object_candidate: Candidate  # ObjCand
    nodes: Nodes  # that share ObjCand
    complete: bool  # True if ObjCand is complete
    latest: LogicalTimestamp  # LTlat


def shared_candidates(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem
) -> tuple[Shared, ...]:
    """The object candidates that are repairable or complete, latest first; without ⟨0, 0⟩."""
    nodes: dict[bytes, Nodes] = {}
    candidates: dict[bytes, Candidate] = {}
    for history, hosts in history_set.hosted:
        for candidate in history.candidates:
            if not is_barrier(candidate.timestamp):
                encoded = candidate.encoded
                candidates[encoded] = candidate
                nodes[encoded] = nodes.get(encoded, 0) | hosts
    is_repairable = quorums.is_repairable
    repairable = [encoded for encoded, hosts in nodes.items() if is_repairable(hosts)]
    repairable.sort(reverse=True)
    return tuple([Shared(candidates[encoded], nodes[encoded]) for encoded in repairable])


def greatest_complete(history_set: CulledObjectHistorySet, quorums: QuorumSystem) -> Candidate:
    """The greatest object candidate that `history_set` shows complete; ⟨0, 0⟩ if there is none."""
    for candidate, nodes in shared_candidates(history_set, quorums):
        if quorums.is_quorum(nodes):
            return candidate
    return INITIAL


def sharing(history_set: CulledObjectHistorySet, timestamp: LogicalTimestamp) -> Nodes:
    """The servers that report a candidate at `timestamp`, whatever else they say of it."""
    nodes = 0
    for history, hosts in history_set.hosted:
        if history.find(timestamp) is not None:
            nodes |= hosts
    return nodes


def initial_at(history_set: CulledObjectHistorySet, quorums: QuorumSystem) -> Nodes:
    """The servers that still have ⟨0, 0⟩, as far as `history_set` shows. [Q/U line 200]"""
    nodes = (1 << quorums.n) - 1
    for history, hosts in history_set.hosted:
        if not history.initial:
            nodes &= ~hosts
    return nodes


def classify(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, facts: Facts = NO_FACTS
) -> Classification:
    """Which operation `history_set` dictates, by the rules above."""
    hosted = history_set.hosted
    if len(hosted) == 1:  # the common case: a quorum says the same
        history, nodes = hosted[0]
        if quorums.is_quorum(nodes) and not is_barrier(history.latest):
            return Classification(
                OperationType.METHOD, history.latest_object, nodes, True, history.latest
            )
    latest = history_set.latest
    found = Shared(INITIAL, initial_at(history_set, quorums))
    for shared in shared_candidates(history_set, quorums):
        if facts.get(shared.candidate.timestamp) is not False:
            found = shared
            break
    timestamp = found.candidate.timestamp
    complete = quorums.is_quorum(found.nodes) or facts.get(timestamp) is True
    if is_barrier(latest):
        established = quorums.is_quorum(sharing(history_set, latest))
        kind = OperationType.COPY if established else OperationType.INLINE_BARRIER
    elif timestamp == latest:
        kind = OperationType.METHOD if complete else OperationType.INLINE_METHOD
    else:
        kind = OperationType.BARRIER
    return Classification(kind, found.candidate, found.nodes, complete, latest)
