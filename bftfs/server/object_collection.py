"""Removes the old versions of one object. [design §7, §8]

**Theory of operation.** A version of an object's chain may be removed once an established version
has superseded it and retention does not keep it. Its operation and answer go with it, and so do the
values of the object's map that only removed versions can see. The rows that stay tell what is
missing: a version before a gap has the time until which it was the latest (`Version.until_us`), and
the object's row has the version up to which some may be missing (`floor`). So a server never
answers about the past as if a removed version had not existed.

A value goes with the version that has overwritten it, if only removed versions see it. But that one
may have gone before: one that a snapshot kept goes last. What has overwritten its values is not
known any more then, and so a walk that removes such a version ends with a sweep over all
overwritten values of the object.

**Why it is safe.** Only versions below the latest one known to be established are removed, and
replica histories are not touched: whatever can still be repaired, or asked for again by its client,
stays. A version is removed with all of its rows or not at all. `file_collection.py` says who
decides that a version is old enough. Tests: `tests/unit/query_update/test_collected.py`,
`tests/simulation/test_collection.py`.

**Concurrency.** One walk through an object takes several steps. What it remembers between them is
about the chain below the established version, which does not change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import islice

import msgspec

from bftfs import limits
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, LogicalTimestamp, time_of
from bftfs.query_update.messages import CatalogueReply
from bftfs.query_update.object_type import is_in_sequence
from bftfs.query_update.past_state import FIRST_KEY, operation_key
from bftfs.query_update.replica import NUMBER_BYTES, Replica, Version, holes_forgotten, past_prefix
from bftfs.retention import Keeps
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import encode

_BEYOND = after_keys(TIMESTAMP_BYTES)


def settled_everywhere(
    name: ObjectId,
    latest: LogicalTimestamp,
    replies: dict[NodeId, CatalogueReply],
    me: NodeId,
    quorums: QuorumSystem,
) -> bool:
    """True if the `latest` candidate here is the latest at a whole quorum, and so established."""
    nodes = Nodes.of([me])
    for node, reply in replies.items():
        if any(each.object == name and each.latest == latest for each in reply.objects):
            nodes = nodes.plus(node)
    return quorums.is_quorum(nodes)


def establish(
    name: ObjectId, latest: LogicalTimestamp, view: StorageView, _now_us: int
) -> list[Write]:
    """The writes that record that the head is established, if `latest` is still the head."""
    replica = Replica(view, name)
    if replica.history.latest != latest or replica.head != latest:
        return []
    row = msgspec.structs.replace(replica.row, established=latest)
    return [Write(Table.OBJECT, name, encode(row))]


class ObjectWalk:
    """One pass over the versions of one object, some of them in each step."""

    def __init__(
        self,
        name: ObjectId,
        keeps: Keeps,
        *,
        horizon_us: int,
        may_go: Callable[[LogicalTimestamp, Version], bool] = lambda *_: True,
    ) -> None:
        """`keeps` keeps all versions that were the latest at `horizon_us` or later.

        Only versions that `may_go` are removed.

        Requires: the object's row records `horizon_us` in `collected_us`.
        """
        self.object = name
        self.done = False
        self.removed = 0
        self._is_sweeping = False
        self._keeps = keeps
        self._may_go = may_go
        self._horizon_us = horizon_us
        self._cursor = ZERO
        self._held: tuple[LogicalTimestamp, Version] | None = None  # waits for its successor
        self._kept: LogicalTimestamp = ZERO  # the latest version before `_held` that is kept
        self._kept_number = 0
        self._dead: list[LogicalTimestamp] = []  # versions beside the chain, since then
        # Where versions are missing: the numbers of those before and after, which stay.
        self._before: list[int] = []
        self._after: list[int] = []
        self._swept = b""  # up to here; empty: no sweep is needed so far

    def step(self, view: StorageView) -> list[Write]:
        """Look at some versions; return the writes that remove those that may go."""
        if self._is_sweeping:
            return self._sweep(view)
        replica = Replica(view, self.object)
        writes: list[Write] = []
        if replica.row.collected_us < self._horizon_us:
            self.done = True  # the batch with the object's row was lost
            return writes
        floor = replica.row.floor
        prefix = self.object
        keys = islice(
            view.keys(Table.VERSION, prefix + self._cursor + b"\0", prefix + _BEYOND),
            limits.COLLECT_ROWS,
        )
        seen = 0
        for key in tuple(keys):
            seen += 1
            timestamp = LogicalTimestamp(key[len(prefix) :])
            if timestamp > replica.row.established:
                self.done = True
                break
            version = replica.version(timestamp)
            assert version is not None, "its key is stored"
            self._cursor = timestamp
            if not version.number:
                self._dead.append(timestamp)
                continue
            gone, changed = self._decide(view, replica, timestamp, version)
            writes += changed
            if gone:
                floor = max(floor, timestamp)
            self._held = (timestamp, version)
            writes += self._bury()
            if time_of(timestamp) > self._horizon_us:
                self.done = True
                break
        else:
            self.done = seen < limits.COLLECT_ROWS
        if self.done and self._held is not None and self._held[1].parent != self._kept:
            writes += self._forget_unseen(view, self._held[1])
            self._note_gap(self._held[1])
        if floor != replica.row.floor:
            row = msgspec.structs.replace(replica.row, floor=floor)
            writes.append(Write(Table.OBJECT, self.object, encode(row)))
        if self.done and self._swept:
            self.done, self._is_sweeping = False, True
        return writes

    def _note_gap(self, after: Version) -> None:
        """Versions are missing between the one that was kept last and this one, which stays."""
        self._before.append(self._kept_number)
        self._after.append(after.number)

    def _sweep(self, view: StorageView) -> list[Write]:
        """Look at some overwritten values; return the writes that remove those that none sees."""
        end = self.object + _BEYOND
        rows = tuple(islice(view.scan(Table.PAST, self._swept, end), limits.COLLECT_ROWS))
        writes = [
            Write(Table.PAST, key, None)
            for key, row in rows
            if self._is_unseen(_number(row[:NUMBER_BYTES]), _number(key[-NUMBER_BYTES:]))
        ]
        if len(rows) < limits.COLLECT_ROWS:
            self.done = True
        else:
            self._swept = rows[-1][0] + b"\0"
        return writes

    def _is_unseen(self, since: int, until: int) -> bool:
        """True if all versions [since, until) that saw a value are missing."""
        position = bisect_left(self._before, since) - 1
        return position >= 0 and until <= self._after[position]

    def _decide(
        self,
        view: StorageView,
        replica: Replica,
        successor: LogicalTimestamp,
        following: Version,
    ) -> tuple[bool, list[Write]]:
        """True if `_held`, which `successor` supersedes, is removed; and the writes for that.

        `following` is the successor's row.
        """
        if self._held is None:
            return False, []
        timestamp, version = self._held
        writes: list[Write] = []
        if version.parent != self._kept:
            writes += self._forget_unseen(view, version)
        if not self._may_go(timestamp, version) or self._keeps(
            time_of(timestamp), time_of(successor)
        ):
            if version.parent != self._kept:
                self._note_gap(version)
            self._kept, self._kept_number = timestamp, version.number
            return False, writes
        self.removed += 1
        if following.parent != timestamp:
            self._swept = self.object + FIRST_KEY
        writes += self._hand_on(view, timestamp, version)
        writes.append(Write(Table.VERSION, self.object + timestamp, None))
        if self._kept == version.parent and self._kept != ZERO:
            before = replica.version(self._kept)
            if before is not None and not before.until_us:
                before = msgspec.structs.replace(before, until_us=time_of(timestamp))
                writes.append(Write(Table.VERSION, self.object + self._kept, encode(before)))
        return True, writes

    def _forget_unseen(self, view: StorageView, version: Version) -> list[Write]:
        """Remove the overwritten values that only removed versions see; `version` overwrote them.

        If `version` removed a value from a sequence, the record of that hole is removed, too.
        """
        writes = []
        for key, value in version.delta:
            past = past_prefix(self.object, key) + version.number.to_bytes(NUMBER_BYTES, "big")
            row = view.get(Table.PAST, past)
            if row is not None and _number(row[:NUMBER_BYTES]) > self._kept_number:
                writes.append(Write(Table.PAST, past, None))
                if value is None and is_in_sequence(key):
                    writes += holes_forgotten(self.object, version)
        return writes

    def _hand_on(
        self, view: StorageView, timestamp: LogicalTimestamp, version: Version
    ) -> list[Write]:
        """Keep or remove the operation of a removed version.

        The operation is stored with the first of its objects. While another of its objects still
        has the version, it is kept in a row of its own, to answer questions about that object. The
        existence of this row, even if it is empty, says that the version was established.
        """
        if not version.objects:
            return []
        others = [
            other
            for other in version.objects
            if other != self.object and view.get(Table.VERSION, other + timestamp) is not None
        ]
        key = operation_key(timestamp)
        if not others:
            return [Write(Table.META, key, None)]
        if version.operation is not None:
            return [Write(Table.META, key, encode(version.operation))]
        return [] if view.get(Table.META, key) is not None else [Write(Table.META, key, b"")]

    def _bury(self) -> list[Write]:
        """Remove versions beside the chain: a later one is established, and old."""
        if self._held is None or time_of(self._held[0]) > self._horizon_us:
            return []
        dead, self._dead = self._dead, []
        return [
            write
            for timestamp in dead
            for write in (
                Write(Table.VERSION, self.object + timestamp, None),
                Write(Table.REQUEST, timestamp, None),
            )
        ]


def _number(stored: bytes) -> int:
    return int.from_bytes(stored, "big")
