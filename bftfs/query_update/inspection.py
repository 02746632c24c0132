"""Finds out, for one object, which servers host its latest version.

A replica history is its server's word: a client cannot check authenticators. [Q/U §4.3.4] So it
takes two kinds of evidence: how many servers share the candidate, as for any classification, and
whether their answers on that very version are the same.

**Concurrency.** As any client procedure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from bftfs.asking.ask import inspect_nodes
from bftfs.asking.peers import Peers
from bftfs.credentials import Credentials
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import classify
from bftfs.query_update.history import ZERO, Known, LogicalTimestamp, assemble, parse_history
from bftfs.query_update.messages import Query, QueryReply
from bftfs.query_update.object_type import Record, encode_record
from bftfs.thresholds import QueryUpdateThresholds


class Copy(Enum):
    """What a server has of an object."""

    LATEST = "latest"  # says that it hosts the latest version, and answers on it as others do
    BEHIND = "behind"  # says that it has an earlier one only
    DIFFERENT = "different"  # says that it hosts it, and answers otherwise than the others
    UNSHOWN = "unshown"  # says that it hosts it, and gives no answer on it
    SILENT = "silent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Hosting:
    """One server's part of an object."""

    node: NodeId
    copy: Copy
    claims: LogicalTimestamp | None  # the latest version that it says it has


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """One object, as all servers together show it."""

    object: ObjectId
    version: LogicalTimestamp  # the latest complete or repairable one
    complete: bool  # whether a quorum shares it; else its next reader repairs it
    hostings: tuple[Hosting, ...]
    survives: int  # more servers may fail, and it can still be used; below 0: it cannot now
    reasons: tuple[str, ...]  # why it survives less than it might

    @property
    def degraded(self) -> bool:
        """Whether some server lacks the version."""
        return bool(self.reasons)


async def inspect(
    peers: Peers,
    name: ObjectId,
    thresholds: QueryUpdateThresholds,
    method: str,
    arguments: Record,
    who: Credentials,
) -> ObjectReport:
    """What can be shown of object `name` now; `method` is a query that it always answers."""
    everyone = tuple(NodeId(node) for node in range(thresholds.n))
    known: dict[NodeId, Known] = {}
    refused: set[NodeId] = set()
    asked = Query((name,), "", b"", *who, everyone[0])
    for node, delivery in (await inspect_nodes(peers, dict.fromkeys(everyone, asked))).items():
        history = _history(delivery.message)
        if history is None:
            refused.add(node)
        else:
            known[node] = Known(history, b"")
    histories = {node: parse_history(each.history) for node, each in known.items()}
    _, _, shown = assemble(name, known)
    found = classify(shown, peers.quorums)
    version = found.object_candidate.timestamp
    hosts = [
        node
        for node, history in histories.items()
        if version == ZERO or history.find(version) is not None
    ]
    encoded = encode_record(arguments)
    answers = await inspect_nodes(
        peers,
        {node: Query((name,), method, encoded, *who, node, versions=(version,)) for node in hosts},
    )
    given = {
        node: (reply.error, reply.answer)
        for node, delivery in answers.items()
        if isinstance(reply := delivery.message, QueryReply) and reply.answered and reply.whole
    }
    votes = Counter(given.values())
    right = next((answer for answer, count in votes.most_common() if count > thresholds.b), None)
    copies = (
        dict.fromkeys(everyone, Copy.SILENT)
        | dict.fromkeys(refused, Copy.REFUSED)
        | dict.fromkeys(known, Copy.BEHIND)
        | dict.fromkeys(hosts, Copy.UNSHOWN)
        | {n: Copy.LATEST if answer == right else Copy.DIFFERENT for n, answer in given.items()}
    )
    hostings = tuple(
        Hosting(node, copy, histories[node].latest_object.timestamp if node in known else None)
        for node, copy in copies.items()
    )
    return _judged(name, version, found.complete, hostings, thresholds)


def _history(reply: object) -> bytes | None:
    """The replica history in a reply, if it is one."""
    if not isinstance(reply, QueryReply) or len(reply.histories) != 1:
        return None
    try:
        parse_history(reply.histories[0])
    except MalformedMessage:
        return None
    return reply.histories[0]


_WHY = {
    Copy.BEHIND: "says that it has an earlier version only: it gets this one when asked, or heals",
    Copy.DIFFERENT: "answers otherwise than the others: it is damaged, or lies",
    Copy.UNSHOWN: "gives no answer on the version that it says it hosts",
    Copy.SILENT: "does not answer",
    Copy.REFUSED: "refuses to answer",
}


def _judged(
    name: ObjectId,
    version: LogicalTimestamp,
    complete: bool,
    hostings: tuple[Hosting, ...],
    thresholds: QueryUpdateThresholds,
) -> ObjectReport:
    good = sum(hosting.copy is Copy.LATEST for hosting in hostings)
    failed = sum(hosting.copy not in {Copy.LATEST, Copy.BEHIND} for hosting in hostings)
    # Clients need a quorum of all, n - t, and find the version if a repairable set of it hosts it.
    survives = min(thresholds.n - thresholds.q - failed, good - thresholds.r)
    reasons = tuple(
        f"node {hosting.node} {_WHY[hosting.copy]}"
        for hosting in hostings
        if hosting.copy is not Copy.LATEST
    )
    return ObjectReport(name, version, complete, hostings, survives, reasons)
