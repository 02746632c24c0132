"""One verification of one block by a node, and the writes that follow from it. [LazyVer §3.8.1]

A node verifies as a client reads: it finds the latest complete version and validates it. A version
that fails is poisonous: it is discarded, and the next older one is looked at. `verify` is the
conversation; `settled` turns its findings into writes, in a later step and on the store as it is by
then.
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
from bftfs.read_write.classification import CandidateClass
from bftfs.read_write.descent import Usable
from bftfs.read_write.messages import ReadReply
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.reading import BlockRead, FoundVersion
from bftfs.read_write.responses import Responses
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.validation import validate
from bftfs.read_write.version_row import VERIFIED
from bftfs.storage import StorageView, Table, Write


class VerificationPolicy(Enum):
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
    """The result of one verification of `block`."""

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

    async def use(self, responses: Responses, usable: Usable) -> FoundVersion | None:
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
        if usable.classification is CandidateClass.REPAIRABLE:
            return None
        self.own = Own(checksum, memoryview(valid.fragments[self._index]))
        return FoundVersion(timestamp, None)


async def verify(session: Session, block: BlockId, node: NodeId) -> Findings | None:
    """Verify `block` for `node`; None if too few peers answer."""
    examination = _Examination(session, block, node)
    try:
        version = await BlockRead(session, block, None, examination).run()
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
    """The writes that flag the verified version and discard the poisonous ones.

    A version that was flagged before keeps the time of that. `own`, this node's part of the
    verified version, is stored if the node lacks it or its disk has damaged it.
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
    """The writes that remove a poisonous version, which no reader returns. [LazyVer §3.8.1]"""
    key = version_key(block, timestamp)
    if view.get(Table.BLOCK, key) is None:
        return []
    return [Write(Table.BLOCK, key, None), Write(Table.FRAGMENT, key, None)]
