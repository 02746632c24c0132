"""What clients' versions take at one node: one page of the answer to `bftfs usage`.

The administrator asks for page after page. Each is one step, of a few rows, so that clients have
their turn in between. A node tells what it stores; the command believes no single node.

Versions count by whether somebody sees them: files show them now; or snapshots do; or they are of
the past, and count by when they were superseded. Of a block that was cut off, or whose file was
deleted, that is the time of the file's latest version. Retention goes by the file's versions, so
what goes when is told roughly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import suppress
from itertools import islice

from bftfs import limits
from bftfs.envelope import HeldVersions, UsagePage
from bftfs.filesystem.attributes import Attributes, decode_attributes
from bftfs.filesystem.block_names import name_at
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.filesystem.volume import times_of_snapshots
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    WHOLE,
    BlockId,
    ClientId,
    ObjectId,
    block_number_of,
    incarnation_of,
    inode_of,
    slot_of,
)
from bftfs.query_update.history import time_of
from bftfs.query_update.object_type import Refusal
from bftfs.query_update.replica import Replica
from bftfs.read_write.timestamp import VERSIONS_END, BlockTimestamp, timestamp_of
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.version_row import VERIFIED, volume
from bftfs.storage import StorageView, Table
from bftfs.wire.codec import UNREADABLE


def usage_page(
    volume_object: ObjectId, view: StorageView, after: bytes, bounds: tuple[int, ...]
) -> UsagePage:
    """What the versions of blocks that follow the row `after` take, as the node stores them.

    `bounds` ascend: the past is told by which of these times had come when it was superseded.
    """
    snapshots = _snapshots(view, volume_object)
    start = after + b"\0" if after else b""
    sums: dict[tuple[ObjectId, ClientId], list[int]] = {}
    rows = tuple(islice(view.scan(Table.BLOCK, start, VERSIONS_END), limits.USAGE_ROWS))
    file: _FileUsage | None = None
    block = BlockId(b"")
    until_us: int | None = None  # when the version was superseded, as this node has verified
    for key, row in rows:
        if key[:BLOCK_ID_BYTES] != block:
            block = BlockId(bytes(key[:BLOCK_ID_BYTES]))
            until_us = _superseded_us(view, block, key)
        if file is None or file.inode != inode_of(block):
            file = _FileUsage(view, inode_of(block))
        timestamp = timestamp_of(key)
        counts = sums.setdefault((file.inode, timestamp.client), [0] * (3 + len(bounds)))
        ended_us = file.ended_us(block, timestamp, until_us)
        counts[_kind(timestamp.time, ended_us, snapshots, bounds)] += volume(
            row, view.get(Table.FRAGMENT, key)
        )
        if row[0] & VERIFIED:
            until_us = block_time_of(key)
    return UsagePage(
        tuple(
            HeldVersions(inode, client, counts[0], counts[1], tuple(counts[2:]))
            for (inode, client), counts in sums.items()
        ),
        bytes(rows[-1][0]) if len(rows) == limits.USAGE_ROWS else b"",
    )


def _kind(
    since_us: int, ended_us: int | None, snapshots: list[int], bounds: tuple[int, ...]
) -> int:
    """0: files show it; 1: snapshots do; from 2 on: the past, by when it was superseded."""
    if ended_us is None:
        return 0
    position = bisect_left(snapshots, since_us)
    if position < len(snapshots) and snapshots[position] < ended_us:
        return 1
    return 2 + bisect_right(bounds, ended_us - 1)


def _superseded_us(view: StorageView, block: BlockId, key: bytes) -> int | None:
    """The time of the oldest version after the one with this key that the node has verified."""
    newer = view.scan(Table.BLOCK, block, key, reverse=True)
    return next((block_time_of(at) for at, row in newer if row[0] & VERIFIED), None)


def _snapshots(view: StorageView, volume_object: ObjectId) -> list[int]:
    try:
        return sorted(times_of_snapshots(Replica(view, volume_object).workspace))
    except (Refusal, *UNREADABLE):
        return []  # the node lacks the volume, or it is damaged: healing brings it


class _FileUsage:
    """Which versions of its blocks a file shows now, by this node's replica of its inode."""

    def __init__(self, view: StorageView, inode: ObjectId) -> None:
        self.inode = inode
        self._replica = Replica(view, inode)
        self._attributes: Attributes | None = None
        encoded = self._replica.workspace.get(ATTRIBUTES_KEY)
        if encoded is not None:
            with suppress(*UNREADABLE):  # damaged: healing brings it
                self._attributes = decode_attributes(encoded)

    def ended_us(
        self, block: BlockId, timestamp: BlockTimestamp, until_us: int | None
    ) -> int | None:
        """When the file ceased to show a version; None if it shows it, or may yet."""
        attributes = self._attributes
        if attributes is None or attributes.layout is None:
            return until_us
        number, incarnation, slot = block_number_of(block), incarnation_of(block), slot_of(block)
        head_us = time_of(self._replica.head)
        layout = attributes.layout
        is_cut = incarnation <= layout.newest and incarnation != layout.incarnation(number)
        if not attributes.links or is_cut:
            return head_us if until_us is None else min(until_us, head_us)
        name = name_at(self._replica.workspace, number)
        if name is not None and name.names(incarnation, timestamp, slot):
            return None
        # A patch ceases to be shown when its block is written whole, or the patch itself again.
        if until_us is None and name is not None and timestamp < name.latest[1] and slot != WHOLE:
            return name.latest[1].time
        return until_us
