"""Correct nodes accept one chain of candidates per object, and one content per timestamp.

[Q/U §4.3.8] "Every established object version is in the conditioned-on chain and the chain goes
back to the initial candidate." [§4.3.2] nobody can "force object versions at different benign
servers with the same timestamp to differ". The record is taken at the commits of correct nodes,
because histories are pruned; so it knows every candidate that was ever accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import msgspec

from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    ZERO,
    Candidate,
    LogicalTimestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.replica import ObjectRow, Version
from bftfs.storage import Table, Write

_decode_row = msgspec.msgpack.Decoder(ObjectRow).decode
_decode_version = msgspec.msgpack.Decoder(Version).decode


MOST_FINDINGS = 20  # of one record: a broken rule is usually broken many times


@dataclass(slots=True)
class CommitRecord:
    """A record of what correct nodes commit; it is checked as they commit."""

    sort: ClassVar[str] = "bounds"  # of the findings
    findings: list[str] = field(default_factory=list, kw_only=True)

    def find(self, finding: str) -> None:
        """Record a finding, unless there are many already."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(f"{self.sort}: {finding}")


class Acceptance(NamedTuple):
    """A candidate that a node has accepted, in the history that it then had."""

    object: ObjectId
    candidate: Candidate
    history: tuple[Candidate, ...]
    elsewhere: int = 0  # how many other correct nodes had accepted it before


@dataclass(slots=True)
class CandidateRecord:
    """Which correct nodes have accepted which candidates, by object."""

    accepted: dict[ObjectId, dict[Candidate, set[NodeId]]] = field(default_factory=dict)
    contents: dict[tuple[ObjectId, LogicalTimestamp], Version] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    # What nodes that have lost their disks had accepted before.
    _forgotten: dict[NodeId, set[tuple[ObjectId, Candidate]]] = field(default_factory=dict)

    def take_down(self, node: NodeId, writes: Iterable[Write]) -> list[Acceptance]:
        """Record what `node` commits; the candidates that it accepted with it."""
        fresh: list[Acceptance] = []
        for write in writes:
            table, key, value = write.table, write.key, write.value
            if value is None:
                continue
            if table is Table.OBJECT:
                identifier = ObjectId(key)
                accepted = self.accepted.setdefault(identifier, {})
                candidates = parse_history(_decode_row(value).history).candidates
                for candidate in candidates:
                    nodes = accepted.get(candidate)
                    if nodes is None:
                        nodes = accepted[candidate] = set()
                    if node not in nodes:
                        if (identifier, candidate) not in self._forgotten.get(node, ()):
                            fresh.append(Acceptance(identifier, candidate, candidates, len(nodes)))
                        nodes.add(node)
            elif table is Table.VERSION:
                self._take_down_version(node, key, _decode_version(value))
        return fresh

    def forget(self, node: NodeId, *, established: int) -> None:
        """`node` has lost its disk, and begins a new life.

        What it signed before counts no more with what others accept from now on: a candidate that
        is not established by then is so if others are enough. [protocols-query-update.md, Healing]
        """
        forgotten = self._forgotten.setdefault(node, set())
        for identifier, accepted in self.accepted.items():
            for candidate, nodes in accepted.items():
                if node in nodes and len(nodes) < established:
                    nodes.discard(node)
                    forgotten.add((identifier, candidate))

    def _take_down_version(self, node: NodeId, key: bytes, version: Version) -> None:
        if version.gap:
            return  # the state was brought without the versions that lead to it
        identifier = ObjectId(key[:-TIMESTAMP_BYTES])
        timestamp = LogicalTimestamp(key[-TIMESTAMP_BYTES:])
        known = self.contents.setdefault((identifier, timestamp), version)
        if (known.parent, known.objects, known.copy, known.delta, known.answer) != (
            version.parent,
            version.objects,
            version.copy,
            version.delta,
            version.answer,
        ):
            self.findings.append(
                f"node {node} has another version of {identifier.hex()} at {time_of(timestamp)} "
                f"than a node before it: {version} and {known}"
            )


def check_chain(
    accepted: Mapping[Candidate, set[NodeId]],
    *,
    established: int,
    acknowledged: Iterable[LogicalTimestamp] = (),
    name: str = "",
) -> list[str]:
    """Findings against one object's candidates.

    `established` is how many correct nodes make a candidate established, with whatever the others
    say. All that are established, and all that were `acknowledged`, must lie on one chain.
    """
    links: dict[LogicalTimestamp, LogicalTimestamp] = {}
    findings = [
        f"{name}: two candidates at {time_of(candidate.timestamp)}"
        for candidate in accepted
        if not candidate.barrier
        and links.setdefault(candidate.timestamp, candidate.conditioned_on)
        != candidate.conditioned_on
    ]
    certain = _established(accepted, established)
    chain = chain_of(accepted, established=established)
    if chain[0] != ZERO:
        findings.append(f"{name}: the chain breaks off at {time_of(chain[0])}")
    on_chain = frozenset(chain)
    findings += [
        f"{name}: the candidate at {time_of(timestamp)} was established, and is not on the chain"
        for timestamp in certain
        if timestamp not in on_chain
    ]
    findings += [
        f"{name}: the update at {time_of(timestamp)} was acknowledged, and is not on the chain"
        for timestamp in acknowledged
        if timestamp not in on_chain
    ]
    return findings


def chain_of(
    accepted: Mapping[Candidate, set[NodeId]], *, established: int
) -> list[LogicalTimestamp]:
    """The versions that the latest established candidate builds on, and it, from the first on."""
    links = {
        candidate.timestamp: candidate.conditioned_on
        for candidate in accepted
        if not candidate.barrier
    }
    certain = _established(accepted, established)
    chain = [certain[-1]] if certain else [ZERO]
    while chain[-1] != ZERO and chain[-1] in links:
        chain.append(links[chain[-1]])
    chain.reverse()
    return chain


def _established(
    accepted: Mapping[Candidate, set[NodeId]], established: int
) -> list[LogicalTimestamp]:
    return sorted(
        candidate.timestamp
        for candidate, nodes in accepted.items()
        if len(nodes) >= established and not candidate.barrier
    )
