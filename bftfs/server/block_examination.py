"""One verification of one block by a storage-node, and what it changes there. [LazyVer §3.8.1]

A node verifies as a client reads: it finds the latest complete version and validates its timestamp;
what fails is poisonous and is discarded, and the version before it is looked at. Conversations find
out; `settled` turns what they found into writes, in a later step and on the store of that moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial

from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.conversation import Compute
from bftfs.errors import OperationFailed
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.classification import Classification
from bftfs.read_write.descent import Usable
from bftfs.read_write.messages import ReadReply
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.reading import Reading, Version
from bftfs.read_write.responses import Responses
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.validation import validate
from bftfs.read_write.version_row import VERIFIED
from bftfs.storage import StorageView, Table, Write


class Policy(Enum):
    """When the versions of blocks are verified. [LazyVer §3.10.2]"""

    WRITE_TIME = "write-time"  # by every node, before it answers the write
    READ_TIME = "read-time"  # by readers only
    LAZY = "lazy"  # by every node, in idle time or when a limit is reached
    COOPERATIVE = "lazy+cooperative"  # by b + 1 nodes, which notify the others


@dataclass(frozen=True, slots=True)
class Own:
    """A node's own part of a version."""

    cross_checksum: CrossChecksum
    fragment: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Findings:
    """What one verification of `block` has found."""

    block: BlockId
    verified: BlockTimestamp  # the latest complete valid version; ZERO if there is none
    poisonous: tuple[BlockTimestamp, ...]
    own: Own | None  # of `verified`, for a node that lacks it
    idle_ms: Mapping[NodeId, int]  # for how long clients have left each node alone, as it claims


class _Examination:
    """The `Examiner` of one verification: it validates every candidate, and repairs none."""

    __slots__ = ("_index", "_node", "_session", "idle_ms", "own", "poisonous")

    def __init__(self, session: Session, block: BlockId, node: NodeId) -> None:
        self._session = session
        self._node = node
        self._index = fragment_index(block, node, session.thresholds.N)
        self.idle_ms: dict[NodeId, int] = {}
        self.poisonous: list[BlockTimestamp] = []
        self.own: Own | None = None

    def order(self, nodes: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """The node asks those with stripes, then itself before others."""
        m = self._session.thresholds.m
        return tuple(dict.fromkeys((*nodes[:m], self._node, *nodes)))

    def heard(self, node: NodeId, reply: ReadReply) -> None:
        """Take down for how long clients have left the peer alone."""
        self.idle_ms[node] = reply.idle_ms

    async def use(self, responses: Responses, usable: Usable) -> Version | None:
        """The candidate, if it is valid and complete.

        [LazyVer §3.8.3] A node that verifies need not repair: it reads prior versions until it
        finds a complete one. A version that fails validation is poisonous whichever nodes host it.
        """
        timestamp, code = usable.timestamp, self._session.code
        checksum, fragments = responses.cross_checksum(timestamp), responses.fragments(timestamp)
        valid = await Compute(partial(validate, code, checksum, fragments))
        if valid is None:
            self.poisonous.append(timestamp)
            return None
        if usable.classification is Classification.REPAIRABLE:
            return None
        self.own = Own(checksum, memoryview(valid.fragments[self._index]))
        return Version(timestamp, None)


async def verify(session: Session, block: BlockId, node: NodeId) -> Findings | None:
    """Verify `block` for `node`; None if its peers do not let it."""
    examination = _Examination(session, block, node)
    try:
        version = await Reading(session, block, None, examination).run()
    except OperationFailed:
        return None
    poisonous = tuple(examination.poisonous)
    return Findings(block, version.timestamp, poisonous, examination.own, examination.idle_ms)


def settled(
    view: StorageView,
    block: BlockId,
    *,
    verified: BlockTimestamp | None,
    poisonous: Collection[BlockTimestamp],
    own: Own | None,
    index: int,
    now_us: int,
) -> list[Write]:
    """The writes by which a node takes note: flag what is verified, discard what is poisonous.

    A version that has been flagged keeps the time of that. With its `own` part of the verified
    version, a node that lacks it or whose disk has damaged it has it from now on.
    """
    writes: list[Write] = []
    for timestamp in poisonous:
        writes += discarded(view, block, timestamp)
    if verified is None:
        return writes
    key = version_key(block, verified)
    row = view.get(Table.BLOCK, key)
    if row is None:
        if own is not None:
            writes.append(Write(Table.BLOCK, key, version_row.verified(own.cross_checksum, now_us)))
            writes.append(Write(Table.FRAGMENT, key, own.fragment))
        return writes
    if not row[0] & VERIFIED:
        dated = version_row.verified(version_row.checksum_of(row), now_us, before=row)
        writes.append(Write(Table.BLOCK, key, dated))
    if own is not None:
        stored = view.get(Table.FRAGMENT, key)
        if stored is None or not cross_checksum.matches(own.cross_checksum, index, stored):
            dated = version_row.verified(own.cross_checksum, now_us, before=row)
            writes.append(Write(Table.BLOCK, key, dated))
            writes.append(Write(Table.FRAGMENT, key, own.fragment))
    return writes


def discarded(view: StorageView, block: BlockId, timestamp: BlockTimestamp) -> list[Write]:
    """The writes that remove a poisonous version: no reader takes it for one. [LazyVer §3.8.1]"""
    key = version_key(block, timestamp)
    if view.get(Table.BLOCK, key) is None:
        return []
    return [Write(Table.BLOCK, key, None), Write(Table.FRAGMENT, key, None)]
