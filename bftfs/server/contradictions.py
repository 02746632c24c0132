"""What a server does where more servers have forgotten something than may fail.

**Situation.** With `interval` durability a power failure takes the last second from all machines
that share it. Some servers may still know that a version is established, and others have lost it.
Each is right by what it knows, and the object could be stuck for ever: those that know the version
refuse whatever leaves it behind, and are too few for it to be repaired.

**Rules.**

1. b + 1 servers that say of a version that it is established are believed: one of them is benign. A
   server that lacks the version takes it over from them. This is sound at all times. Of an
   operation on several objects they, or the server itself, may know it by another one of these: a
   directory that names what it made shows that this is established, though few have what was made.
   What they say is of a timestamp. A candidate has more: what it is conditioned on, its objects.
   One of b liars may report these as it likes; so the server signs a candidate only if b + 1 report
   it, or if the version that object sync brings, which b + 1 give alike, has the same. A whole
   state does not tell that; then b + 1 have to give the version's link.
2. A server that recovers needs the histories of q others that remember. If so many others say that
   they do not remember that the rest are no quorum, there will never be such q: more than t servers
   are faulty, this one included. Then it makes do with the histories of all that answer, if they
   are a quorum together with itself, and takes over what rule 1 and a repairable set allow. Until
   it has compared everything it goes on so, and tells others that it does not remember.
3. A server gives up a version that it alone knows to be established: one that neither b + 1 servers
   (itself included) know to be established, nor a repairable set has. It goes back to a version
   that another server reports as well, or drops the object, and goes on from there. (If it dropped
   a version that others know, too, they might do so as well, one after the other.) It does so if
   it recovers by rule 2; and at all times if b + 1 others say that this version is dead, or a
   quorum of them has a later one that is not built on it. Of an operation on several objects it
   gives up the versions of all objects that show it to be established, or else it would believe
   itself, by rule 1. None of this happens while at most t servers are faulty: of an established
   version any q histories show a repairable set (4.3), and no benign server finds it dead.

So b liars, and t servers that forget, make nobody give way: what is said in "Healing" of
docs/protocols-query-update.md step by step.

**Tests.** `tests/seams/test_power.py`, which has the must-fail tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import shared_candidates, sharing
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    CulledObjectHistorySet,
    LogicalTimestamp,
    is_barrier,
)
from bftfs.query_update.messages import Verdict
from bftfs.query_update.replica import Replica
from bftfs.storage import StorageView


def too_many_forgot(quorums: QuorumSystem, me: NodeId, forgetful: Nodes) -> bool:
    """True if no quorum of others can remember, since these say that they do not."""
    return not quorums.is_quorum(quorums.everyone.minus(me) - forgetful)


class Bases(NamedTuple):
    """Candidates that servers may know to be established: the latest first."""

    reported: list[Candidate]  # by a benign server, as so many report them
    alone: list[Candidate]  # by fewer


def bases(
    history_set: CulledObjectHistorySet, above: LogicalTimestamp, quorums: QuorumSystem
) -> Bases:
    """The candidates later than `above` that servers may know to be established.

    A history is pruned below the greatest candidate that its server knows to be established. Of an
    operation on several objects the server may know it by another one of these. Of what fewer than
    b + 1 servers report, only the latest few of each count: a liar may report any number.
    """
    found: dict[Candidate, Nodes] = {}
    few: set[Candidate] = set()
    for history, hosts in history_set.hosted:
        own = [one for one in history.candidates if not is_barrier(one.timestamp)]
        if history.initial:
            own = [one for one in own if one.objects]
        else:
            own = own[:1] + [one for one in own[1:] if one.objects]
        own = [one for one in own if one.timestamp > above]
        for candidate in own:
            found[candidate] = found.get(candidate, NOBODY) | hosts
        few.update(own[-limits.BELIEVED_OF_SERVER :])
    reported = {each for each, nodes in found.items() if quorums.includes_benign(nodes)}
    return Bases(_latest_first(reported), _latest_first(few - reported))


def _latest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.encoded, reverse=True)


def latest_reported(history_set: CulledObjectHistorySet, quorums: QuorumSystem) -> LogicalTimestamp:
    """The time up to which a benign server has accepted something, as b + 1 servers show."""
    nodes = NOBODY
    for history, hosts in sorted(
        history_set.hosted, key=lambda hosted: hosted.history.latest, reverse=True
    ):
        nodes |= hosts
        if quorums.includes_benign(nodes):
            return history.latest
    return ZERO


def known_established(
    name: ObjectId, view: StorageView
) -> tuple[LogicalTimestamp, tuple[ObjectId, ...]]:
    """The greatest version that is known to be established here, and its operation's objects."""
    replica = Replica(view, name)
    established = replica.row.established
    version = None if established == ZERO else replica.version(established)
    return established, (version.objects if version is not None else ()) or (name,)


def is_known_established(candidate: Candidate, view: StorageView) -> bool:
    """True if this server knows it of an operation on several objects, by one of them."""
    return any(is_known_at(name, candidate.timestamp, view) for name in candidate.objects)


def is_known_at(name: ObjectId, timestamp: LogicalTimestamp, view: StorageView) -> bool:
    """True if this server knows by this object that an operation is established."""
    return Replica(view, name).verdict(timestamp) is Verdict.ESTABLISHED


def is_left_behind(
    history_set: CulledObjectHistorySet, timestamp: LogicalTimestamp, quorums: QuorumSystem
) -> bool:
    """True if a quorum has gone on from before this version: it is not on their chain."""
    return any(
        quorums.is_quorum(nodes) and candidate.conditioned_on < timestamp < candidate.timestamp
        for candidate, nodes in shared_candidates(history_set, quorums)
    )


def in_common(
    history_set: CulledObjectHistorySet, replica: Replica, below: LogicalTimestamp
) -> LogicalTimestamp:
    """The latest version before `below` on this server's chain that some other reports, too."""
    reported = {
        candidate.timestamp for history, _ in history_set.hosted for candidate in history.candidates
    }
    for timestamp in sorted((each for each in reported if each < below), reverse=True):
        version = replica.version(timestamp)
        if version is not None and version.number:
            return timestamp
    return ZERO


def is_shared(
    history_set: CulledObjectHistorySet,
    timestamp: LogicalTimestamp,
    quorums: QuorumSystem,
    knowing: Nodes,
) -> bool:
    """True if a version need not give way: `knowing` servers say that it is established."""
    having = sharing(history_set, timestamp) | knowing
    return quorums.includes_benign(knowing) or quorums.is_repairable(having)
