"""Which operation object history sets dictate: pure functions that clients and servers share.

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

**Deduction, and what a copy copies.** [Q/U §4.3.7]
A multi-object operation M has one timestamp; a server accepts it for all of its objects or for
none. So what is known of M at one object decides it at the others. Beyond what is complete or
incomplete in a single object history set:

- M is *established* (in the chain of an established candidate at one of its objects, hence at all)
  if, at some object of M, it is complete, or something later that is repairable builds on it as on
  an established version.
- M is *dead* (in no such chain, ever) if, at some object of M, something later is repairable whose
  chain does not contain M: two such candidates meet in a benign server (4.4), which accepted the
  later one on top of an established version at or beyond M. Or if a complete barrier stands there
  and M is incomplete below it: servers behind the barrier accept M no more. Where more than a
  quorum was heard, M may be repairable there and dead all the same: with those that were not heard
  and b liars, the servers that have it, or may accept it yet, are no quorum. Such an M is decided
  also if no server knows its other objects' versions of that time any more.

Which candidates are in the chain of which is read from the histories as far as they reach; beyond
that, from statements of servers about their own chains (`Facts`), of which any set that includes a
benign server convinces.

A copy may carry M forward only at all of M's objects together (unless M is established), and each
object's barrier must stand. A copy that leaves M behind may be made at any object at which M is
known dead. So, at every object of M, either M is in the chain or it is not: the same at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import (
    INITIAL,
    ZERO,
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


_METHOD = OperationType.METHOD  # a member of a class takes longer to find


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
                nodes[encoded] = nodes.get(encoded, NOBODY) | hosts
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


def reported(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, timestamp: LogicalTimestamp
) -> Shared | None:
    """The candidate at `timestamp` as a benign server has it, and the servers that have it so."""
    nodes: dict[Candidate, Nodes] = {}
    for history, hosts in history_set.hosted:
        candidate = history.find(timestamp)
        if candidate is not None:
            nodes[candidate] = nodes.get(candidate, NOBODY) | hosts
    for candidate, hosts in nodes.items():
        if quorums.includes_benign(hosts):
            return Shared(candidate, hosts)
    return None


def sharing(
    history_set: CulledObjectHistorySet,
    timestamp: LogicalTimestamp,
    *,
    alike: Callable[[Candidate], bool] | None = None,
) -> Nodes:
    """The servers that report a candidate at `timestamp`: one that is `alike`, or any."""
    nodes = NOBODY
    for history, hosts in history_set.hosted:
        found = history.find(timestamp)
        if found is not None and (alike is None or alike(found)):
            nodes |= hosts
    return nodes


def initial_at(history_set: CulledObjectHistorySet, quorums: QuorumSystem) -> Nodes:
    """The servers that still have ⟨0, 0⟩, as far as `history_set` shows. [Q/U line 200]"""
    nodes = quorums.everyone
    for history, hosts in history_set.hosted:
        if not history.initial:
            nodes -= hosts
    return nodes


def is_in_order(latest: LogicalTimestamp, nodes: Nodes, quorums: QuorumSystem) -> bool:
    """True if an object needs no repair whose latest candidate is at these `nodes`.

    One that ends with a barrier still needs its copy, however many have the barrier.
    """
    return quorums.is_quorum(nodes) and not is_barrier(latest)


def classify(
    history_set: CulledObjectHistorySet, quorums: QuorumSystem, facts: Facts = NO_FACTS
) -> Classification:
    """Which operation `history_set` dictates, by the rules above."""
    hosted = history_set.hosted
    if len(hosted) == 1:  # the common case: a quorum says the same
        history, nodes = hosted[0]
        if is_in_order(history.latest, nodes, quorums):
            return Classification(_METHOD, history.latest_object, nodes, True, history.latest)
    elif not hosted:  # a new object
        return Classification(_METHOD, INITIAL, quorums.everyone, True, ZERO)
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


# --- deduction ------------------------------------------------------------------------------------

Settled: TypeAlias = dict[ObjectId, LogicalTimestamp]  # what each object's copy is conditioned on


@dataclass(frozen=True, slots=True)
class Undecided:
    """A copy cannot be made yet: it is not known whether `candidate` is established or dead.

    A barrier at (and a fresh history set of) each of `objects` would decide it; if there are none,
    only servers' statements about the candidate can.
    """

    candidate: Candidate
    objects: tuple[ObjectId, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """History sets of several objects that are read together.

    `barred` are those on which a complete barrier stands, so that what is below it has been decided
    (even if nobody knows how); `others` tell only what is true for ever.
    """

    barred: Mapping[ObjectId, CulledObjectHistorySet]
    others: Mapping[ObjectId, CulledObjectHistorySet]
    quorums: QuorumSystem
    facts: Facts

    def settle(self) -> Settled | Undecided:
        """By barred object, the version that a copy of all of them must copy."""
        settled: Settled = {}
        shared: list[Candidate] = []
        for identifier in self.barred:
            outcome = self._settle(identifier)
            if isinstance(outcome, Undecided):
                return outcome
            if isinstance(outcome, Candidate):
                settled[identifier] = outcome.timestamp
                if outcome.objects:
                    shared.append(outcome)
            else:
                settled[identifier] = outcome
        for candidate in shared:
            # An operation on several objects is copied at all of them, unless it is established.
            astray = tuple(
                identifier
                for identifier in candidate.objects
                if settled.get(identifier) != candidate.timestamp
            )
            if astray and not self._established(candidate):
                return Undecided(candidate, astray)
        return settled

    def joined(self, objects: Iterable[ObjectId]) -> set[ObjectId]:
        """Those that have to be copied with some of `objects`, and these.

        What joins two objects is an operation on both that is not established, and that had to be
        looked at to settle what is copied. A liar cannot forge it: a repairable set has it.
        """
        open_ones: list[Candidate] = []
        for identifier in self.barred:
            self._settle(identifier, open_ones)
        found = set(objects)
        for _ in open_ones:
            for candidate in open_ones:
                if not found.isdisjoint(candidate.objects):
                    found.update(candidate.objects)
        return found

    def _settle(
        self, identifier: ObjectId, open_ones: list[Candidate] | None = None
    ) -> Candidate | LogicalTimestamp | Undecided:
        """The version to copy at one object: its latest candidate that is not dead.

        Operations on several objects that are looked at, and not established, go to `open_ones`.
        """
        bound: LogicalTimestamp | None = None
        for candidate, nodes in shared_candidates(self.barred[identifier], self.quorums):
            if bound is not None and candidate.timestamp > bound:
                continue  # not in the chain of a later potential candidate: never established
            established: bool | Undecided | None
            if self.quorums.is_quorum(nodes):
                established = True
            elif candidate.objects:
                established = self.decide(candidate, identifier)
                if isinstance(established, Undecided) and not self._may_be_complete(
                    candidate, identifier
                ):
                    established = False
                if open_ones is not None and established is not True:
                    open_ones.append(candidate)
            else:
                established = self.facts.get(candidate.timestamp)
            if isinstance(established, Undecided):
                return established
            if established is not False:
                return candidate
            if not candidate.copy:
                return candidate.conditioned_on  # established: a method is accepted on nothing else
            bound = candidate.conditioned_on
        if self.quorums.is_repairable(initial_at(self.barred[identifier], self.quorums)):
            return ZERO
        return Undecided(INITIAL, (identifier,))

    def decide(self, candidate: Candidate, identifier: ObjectId) -> bool | Undecided | None:
        """Is `candidate` of `identifier` established (True) or dead (False)?

        None: it is neither, and every one of its objects has it as the latest below its barrier.
        """
        fact = self.facts.get(candidate.timestamp)
        if fact is not None:
            return fact
        open_objects: list[ObjectId] = []
        astray = False
        for other in candidate.objects:
            if other == identifier:
                continue
            history_set = self.barred.get(other) or self.others.get(other)
            if history_set is None:
                open_objects.append(other)
                continue
            outcome = self._decide_at(candidate, identifier, other, history_set)
            if isinstance(outcome, bool):
                return outcome
            if outcome is _UNKNOWN_CHAIN:
                astray = True
            elif outcome is not _COMMON or other not in self.barred:
                open_objects.append(other)
        if astray or open_objects:
            return Undecided(candidate, tuple(open_objects))
        return None

    def _decide_at(
        self,
        candidate: Candidate,
        identifier: ObjectId,
        other: ObjectId,
        history_set: CulledObjectHistorySet,
    ) -> bool | object:
        """The fate of `candidate`, by the history set of one other of its objects."""
        quorums = self.quorums
        timestamp = candidate.timestamp
        sharing_it = sharing(
            history_set,
            timestamp,
            alike=lambda it: it.objects == candidate.objects and it.copy == candidate.copy,
        )
        if quorums.is_quorum(sharing_it):
            return True
        for later, _ in shared_candidates(history_set, quorums):
            if self.facts.get(later.timestamp) is False:
                continue
            if later.timestamp <= timestamp:
                break
            outcome = self._descent(later, timestamp, identifier, history_set)
            if outcome is not _COVERED:
                return outcome
            # `later` copies the candidate at both objects, but `identifier` shows it incomplete.
            # Below a barrier that means that it is dead, and what it copied is still undecided.
            if not self._closed(identifier, later.timestamp):
                return _OPEN
        if quorums.is_repairable(sharing_it):
            return _COMMON
        return False if self._closed(other, timestamp) else _OPEN

    def _descent(
        self,
        later: Candidate,
        timestamp: LogicalTimestamp,
        identifier: ObjectId,
        history_set: CulledObjectHistorySet,
    ) -> bool | object:
        """Does `later`, repairable at another object, build on the candidate at `timestamp`?"""
        step = later
        while True:
            if step.conditioned_on < timestamp:
                return False
            if step.conditioned_on == timestamp:
                if not step.copy:
                    return True
                # A copy that did not take in the candidate's other objects had seen it established.
                return _COVERED if identifier in step.objects else True
            below = reported(history_set, self.quorums, step.conditioned_on)
            if below is None:
                return _UNKNOWN_CHAIN
            step = below.candidate

    def _closed(self, identifier: ObjectId, timestamp: LogicalTimestamp) -> bool:
        """True if a complete barrier keeps servers from accepting `timestamp` at this object."""
        history_set = self.barred.get(identifier)
        return history_set is not None and history_set.latest > timestamp

    def _may_be_complete(self, candidate: Candidate, identifier: ObjectId) -> bool:
        """False if `candidate` is at no quorum, and never will be, as one barred object shows.

        Requires: nothing later that is repairable there is established. (Servers that had accepted
        that would not report what it builds on any more.)
        """
        timestamp = candidate.timestamp
        without = NOBODY
        for history, hosts in self.barred[identifier].hosted:
            if history.latest > timestamp and history.find(timestamp) is None:
                without |= hosts
        return self.quorums.may_be_quorum(self.quorums.everyone - without)

    def _established(self, candidate: Candidate) -> bool:
        """True if `candidate` is known to be established."""
        if self.facts.get(candidate.timestamp) is True:
            return True
        return any(
            self.quorums.is_quorum(sharing(history_set, candidate.timestamp))
            for history_set in (*self.barred.values(), *self.others.values())
        ) or any(
            self.decide(candidate, identifier) is True
            for identifier in candidate.objects
            if identifier in self.barred
        )


_COMMON = object()  # repairable there too, with nothing later
_OPEN = object()  # nothing stands there that would decide it
_UNKNOWN_CHAIN = object()  # something later does, but the histories do not reach far enough
_COVERED = object()  # something later copies it, together with the object in question
