"""Removes blocks of files that do not exist, while a node is short of room.

**Situation.** A node takes blocks of an inode that it does not know: it may be behind. So any
client may store blocks of inodes that do not exist. No reader is ever shown such a block, no client
can remove it, and collection does not find it, since that goes from inodes to their blocks.

**Rule.** A node removes a block's version that is older than the window, and too old to be named by
any update, if a quorum of nodes that have forgotten nothing, itself included, have the same latest
version of the inode, or none, and that has no attributes.

**Why it is safe.** Then no update had made the inode when they answered. One that servers accept
later has a time near their clocks, names none of these versions, and what is not named is part of
no file. One that was accepted before has only the n - q servers outside of this quorum, and b that
lie in it: fewer than a repairable set, so it is dead. b liars make no quorum of a node that knows
an inode.

**Concurrency.** As the `Collector` that calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.conversation import Conversation, Together
from bftfs.errors import MalformedMessage
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId, ObjectId, inode_of
from bftfs.query_update.history import LogicalTimestamp, parse_history
from bftfs.query_update.messages import HistoryReply, HistoryRequest
from bftfs.query_update.replica import Replica
from bftfs.read_write.timestamp import TIMESTAMP_BYTES, VERSIONS_END
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.version_row import RowChange, stored, volume
from bftfs.server.step import Host
from bftfs.server.worker import OtherNodes, look, step
from bftfs.storage import StorageView, Table, Write

_UNCONFIRMED_MOST = 64  # inodes in one pass of which peers do not say that they do not exist
_AFTER_BLOCKS = b"\xff" * (BLOCK_ID_BYTES + TIMESTAMP_BYTES)


class Removed(NamedTuple):
    """How many versions a pass has removed, and how many bytes these took."""

    versions: int = 0
    volume: int = 0


class StrayBlocks:
    """Finds and removes them at one node.

    However many there are, the collection of all else does not wait for them for long: where peers
    do not confirm that inodes do not exist, a pass ends, and the next one goes on from there.
    """

    def __init__(
        self,
        node: NodeId,
        others: OtherNodes,
        quorums: QuorumSystem,
        remembers: Callable[[ObjectId], bool],
    ) -> None:
        """`remembers` is False for an object of which this node may have forgotten something."""
        self._node = node
        self._others = others
        self._quorums = quorums
        self._remembers = remembers
        self._after = b""  # where the next pass begins

    async def remove(
        self, host: Host, before_us: int, pause: Callable[[], Conversation[None]]
    ) -> Removed:
        """Remove the strays of before that time."""
        versions = freed = unconfirmed = 0
        while unconfirmed < _UNCONFIRMED_MOST:
            found = partial(_strays, after=self._after, before_us=before_us)
            strays, self._after = await look(host, found)
            confirmed = await Together(
                tuple(partial(self._is_unknown, inode, head) for inode, head in strays)
            )
            unconfirmed += confirmed.count(False)
            for (inode, head), is_confirmed in zip(strays, confirmed, strict=True):
                cursor = bytes(inode) if is_confirmed else b""
                while cursor:
                    removal = partial(_removal, inode, head, cursor, before_us)
                    cursor, removed = await step(host, removal)
                    versions += removed.versions
                    freed += removed.volume
            await pause()
            if self._after == VERSIONS_END:
                self._after = b""
                break
        return Removed(versions, freed)

    async def _is_unknown(self, inode: ObjectId, head: LogicalTimestamp) -> bool:
        """True if a quorum has nothing later of the inode than `head`, which is the head here."""
        if not self._remembers(inode):
            return False

        def enough(replies: dict[NodeId, HistoryReply]) -> bool:
            alike = [node for node, reply in replies.items() if shows(reply, head)]
            return self._quorums.is_quorum(Nodes.of([self._node, *alike]))

        request = HistoryRequest(inode, b"")
        return enough(await self._others.ask(request, HistoryReply, enough=enough))


def shows(reply: HistoryReply, head: LogicalTimestamp) -> bool:
    """True if a node that has forgotten nothing of an object has this as its latest version."""
    try:
        return reply.remembers and parse_history(reply.history).latest_object.timestamp == head
    except MalformedMessage:
        return False


def _is_stray(replica: Replica) -> bool:
    """True if this node has blocks of it alone, and no inode."""
    return (
        replica.history.latest_object.timestamp == replica.head
        and replica.workspace.get(ATTRIBUTES_KEY) is None
    )


def _strays(
    view: StorageView, *, after: bytes, before_us: int
) -> tuple[list[tuple[ObjectId, LogicalTimestamp]], bytes]:
    """Inodes with old blocks and without attributes, and their heads; and where to look next."""
    strays: list[tuple[ObjectId, LogicalTimestamp]] = []
    for _ in range(limits.COLLECT_OBJECTS):
        key = next(iter(view.keys(Table.BLOCK, after, VERSIONS_END)), None)
        if key is None:
            return strays, VERSIONS_END
        inode = inode_of(BlockId(key))
        replica = Replica(view, inode)
        if _is_stray(replica) and _may_have_old(view, inode, before_us):
            strays.append((inode, replica.head))
        after = inode + _AFTER_BLOCKS
    return strays, after


def _may_have_old(view: StorageView, inode: ObjectId, before_us: int) -> bool:
    keys = view.keys(Table.BLOCK, inode, inode + _AFTER_BLOCKS)
    looked_at = tuple(islice(keys, limits.COLLECT_ROWS))
    return len(looked_at) == limits.COLLECT_ROWS or any(
        block_time_of(key) < before_us for key in looked_at
    )


def _removal(
    inode: ObjectId, head: LogicalTimestamp, cursor: bytes, before_us: int, view: StorageView
) -> tuple[tuple[bytes, Removed], list[Write]]:
    """Remove some; where to go on, and how much it was."""
    replica = Replica(view, inode)
    if replica.head != head or not _is_stray(replica):
        return (b"", Removed()), []
    found = view.scan(Table.BLOCK, cursor, inode + _AFTER_BLOCKS)
    rows = tuple(islice(found, limits.COLLECT_ROWS))
    old = [(key, row) for key, row in rows if block_time_of(key) < before_us]
    freed = sum(volume(row, view.get(Table.FRAGMENT, key)) for key, row in old)
    cursor = rows[-1][0] + b"\0" if len(rows) == limits.COLLECT_ROWS else b""
    return (cursor, Removed(len(old), freed)), stored(view, [RowChange(key) for key, _ in old])
