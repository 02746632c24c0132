"""Correct nodes remove only versions that no reader may still ask for. [design §8, G1, G5]

The record is taken at the commits of correct nodes, and judged by the versions that were accepted
and verified anywhere, not by what the node's collector has made of them:

- a version of an object that was the truth goes only once an established one has superseded it,
  with a time that was older than the window by the clock of that node;
- an acknowledged patch goes only if no such version names it;
- an acknowledged version of a block goes only if no version of its inode that was the truth at a
  moment of the window shows it: a newer one was verified that was covered by then, or the file was
  deleted;
- a node that is not short of room removes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from bftfs.filesystem.attributes import Attributes, decode_attributes
from bftfs.filesystem.block_names import decode_name, key_of_block
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    OBJECT_ID_BYTES,
    WHOLE,
    BlockId,
    NodeId,
    ObjectId,
    block_number_of,
    incarnation_of,
    inode_of,
    slot_of,
)
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.read_write.timestamp import BlockTimestamp, timestamp_of
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.version_row import VERIFIED
from bftfs.simulation.checkers.candidates import (
    MOST_FINDINGS,
    CandidateRecord,
    CommitRecord,
    chain_of,
)
from bftfs.storage import Table, Write


@dataclass(slots=True)
class RetentionRecord(CommitRecord):
    """Compares the versions that correct nodes remove with those that they have to keep."""

    sort: ClassVar[str] = "retention"
    candidates: CandidateRecord
    established: int  # correct nodes that make a candidate established
    window_us: int
    roomy: frozenset[NodeId] = frozenset()
    object_versions: int = 0  # that were removed, over all correct nodes
    block_versions: int = 0  # likewise
    # Versions of blocks that have gone: where, which, and the first moment of the window then.
    _gone: list[tuple[NodeId, bytes, int]] = field(default_factory=list)
    _verified: dict[BlockId, set[bytes]] = field(default_factory=dict)  # keys, by block

    @property
    def collected(self) -> int:
        """The number of removed versions, over all correct nodes."""
        return self.object_versions + self.block_versions

    def committed(self, node: NodeId, clock_us: int, writes: Iterable[Write]) -> None:
        """Record what `node` commits; `clock_us` is its clock."""
        horizon_us = clock_us - self.window_us
        chains: dict[ObjectId, list[LogicalTimestamp]] = {}
        # An object that is made anew with its past is removed and written again at once.
        last = {(write.table, bytes(write.key)): write.value for write in writes}
        for (table, key), value in last.items():
            if table is Table.VERSION and value is None:
                identifier = ObjectId(key[:OBJECT_ID_BYTES])
                if identifier not in chains:
                    chains[identifier] = self._chain(identifier)
                self._let_go(node, identifier, key, chains[identifier], horizon_us)
            elif table is Table.BLOCK:
                if value is None:
                    self.block_versions += 1
                    self._gone.append((node, key, horizon_us))
                elif value[0] & VERIFIED:
                    block = BlockId(key[:BLOCK_ID_BYTES])
                    self._verified.setdefault(block, set()).add(key)

    def _let_go(
        self,
        node: NodeId,
        identifier: ObjectId,
        key: bytes,
        chain: list[LogicalTimestamp],
        horizon_us: int,
    ) -> None:
        self.object_versions += 1
        version = LogicalTimestamp(key[OBJECT_ID_BYTES:])
        superseding = next((each for each in chain if each > version), None)
        if superseding is not None and version not in chain:
            return  # it never was the truth
        if node in self.roomy:
            self.find(f"node {node} has room, and let go of {_named(identifier, version)}")
        elif superseding is None:
            self.find(
                f"node {node} let go of {_named(identifier, version)}, which nothing established "
                "has superseded"
            )
        elif time_of(superseding) > horizon_us:
            self.find(
                f"node {node} let go of {_named(identifier, version)}, which was the truth until "
                f"{(time_of(superseding) - horizon_us) // 1_000} ms after its window began"
            )

    def findings_on_blocks(self, acknowledged: Iterable[bytes]) -> list[str]:
        """Findings against what has gone of the versions with these keys.

        They were acknowledged to correct clients.
        """
        keys = frozenset(acknowledged)
        found = []
        for node, key, horizon_us in self._gone:
            if key in keys and (node in self.roomy or self.is_required(key, horizon_us)):
                found.append(
                    f"retention: node {node} let go of the version of {block_time_of(key)} of "
                    f"block {key[:BLOCK_ID_BYTES].hex()[-6:]}, which is shown at or after "
                    f"{horizon_us}"
                )
        return found[:MOST_FINDINGS]

    def is_required(self, key: bytes, horizon_us: int) -> bool:
        """True if a reader who asks for a time from then on may want this version of a block."""
        block, time_us = BlockId(key[:BLOCK_ID_BYTES]), block_time_of(key)
        if slot_of(block) != WHOLE:
            return self._is_named(block, timestamp_of(key), horizon_us)
        # Of two versions of one microsecond, too, one is the newer: its key comes first.
        newer = [block_time_of(each) for each in self._verified.get(block, ()) if each < key]
        alive = False
        for attributes in self._shown_from(inode_of(block), horizon_us):
            alive = _has(attributes, block)
            if (
                alive
                and time_us <= attributes.contents
                and not any(each <= attributes.contents for each in newer)
            ):
                return True
        return alive and not newer

    def _is_named(self, block: BlockId, timestamp: BlockTimestamp, horizon_us: int) -> bool:
        """True if a version of the inode that is shown from then on names this patch."""
        inode, slot = inode_of(block), slot_of(block)
        attributes: Attributes | None = None
        is_part = False
        for version in self._chain(inode):
            found = self.candidates.contents.get((inode, version))
            delta = {} if found is None else dict(found.delta)
            if time_of(version) > horizon_us and is_part and _has(attributes, block):
                return True  # the version before was the truth until then
            encoded = delta.get(ATTRIBUTES_KEY)
            if encoded is not None:
                attributes = decode_attributes(encoded)
            stored = delta.get(key_of_block(block_number_of(block)))
            if stored is not None:
                is_part = decode_name(stored).names(incarnation_of(block), timestamp, slot)
        return is_part and _has(attributes, block)

    def _shown_from(self, inode: ObjectId, horizon_us: int) -> Iterator[Attributes]:
        """The version of an inode at `horizon_us`, and all later ones."""
        at_first: Attributes | None = None
        for timestamp in self._chain(inode):
            version = self.candidates.contents.get((inode, timestamp))
            encoded = None if version is None else dict(version.delta).get(ATTRIBUTES_KEY)
            if encoded is None:
                continue
            attributes = decode_attributes(encoded)
            if time_of(timestamp) <= horizon_us:
                at_first = attributes
                continue
            if at_first is not None:
                yield at_first
                at_first = None
            yield attributes
        if at_first is not None:
            yield at_first

    def _chain(self, identifier: ObjectId) -> list[LogicalTimestamp]:
        accepted = self.candidates.accepted.get(identifier, {})
        return chain_of(accepted, established=self.established)


def _has(attributes: Attributes | None, block: BlockId) -> bool:
    """True if a file that is not deleted has the block."""
    layout = None if attributes is None else attributes.layout
    return attributes is not None and attributes.links > 0 and bool(layout and layout.has(block))


def _named(identifier: ObjectId, version: LogicalTimestamp) -> str:
    return f"the version of {time_of(version)} of {identifier.hex()[-6:]}"
