"""Removes the old versions of one object. [design §7, §8]

**Theory of operation.** A version of an object's chain may be removed once an established version
has superseded it and retention does not keep it. Its operation and answer go with it, and so do the
values of the object's map that only removed versions can see. The rows that stay tell what is
missing: a version before a gap has the time until which it was the latest (`Version.until_us`), and
the object's row has the version up to which some may be missing (`floor`). So a server never
answers about the past as if a removed version had not existed.

A value is removed together with the version that has overwritten it, if only removed versions can
see the value. If a snapshot kept an older version that sees it, the value stays, and the version
that has overwritten it may be removed first. Later, when the older version is removed too, no row
tells any more which of its values were overwritten. So a walk that removes such a version ends with
a sweep over all overwritten values of the object. Then it removes the notes of holes in a list
(`past_state`) in which nothing of the past is left. That a sweep is due is stored with the removal
(`ObjectRow.unswept_us`), and until one has ended, each walk makes one: also after a crash, or when
a walk has ended early.

**Why it is safe.** Only versions below the latest one known to be established are removed, and
replica histories are not touched: whatever can still be repaired, or asked for again by its client,
stays. A version is removed with all of its rows or not at all. `file_collection.py` decides
which versions are old enough. Tests: `tests/unit/query_update/test_collected.py`,
`tests/simulation/test_collection.py`.

**Concurrency.** One walk through an object takes several steps. Between them the object may be made
anew from what peers have, with other numbers and with versions that this server had removed; and
while the disk is full, what a step has written may be lost. So a step looks whether versions are
missing where the walk remembers a gap, and ends the walk if not; the next one begins anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec

from bftfs import limits
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, LogicalTimestamp, time_of
from bftfs.query_update.messages import CatalogueReply
from bftfs.query_update.object_type import is_in_sequence, key_of, serial_from
from bftfs.query_update.past_state import FIRST_KEY, operation_key
from bftfs.query_update.replica import (
    NUMBER_BYTES,
    Replica,
    Version,
    escaped,
    hole_start,
    holes_forgotten,
    past_prefix,
)
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
        self._gaps: list[tuple[LogicalTimestamp, LogicalTimestamp]] = []  # the same, timestamps
        self._swept = name + FIRST_KEY  # up to here; less when notes of holes are looked at
        self._taken = b""  # a key that the last step of the sweep has removed

    def step(self, view: StorageView) -> list[Write]:
        """Look at some versions; return the writes that remove those that may go."""
        if self._is_sweeping:
            return self._sweep(view)
        replica = Replica(view, self.object)
        writes: list[Write] = []
        if replica.row.collected_us < self._horizon_us:
            self.done = True  # the batch with the object's row was lost
            return writes
        if not self._is_as_left(replica):
            self.done = True
            return writes
        floor, unswept_us = replica.row.floor, replica.row.unswept_us
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
            gone, changed = self._decide(view, replica, timestamp)
            writes += changed
            if gone:
                floor = max(floor, timestamp)
                if self._held is not None and version.parent != self._held[0]:
                    unswept_us = max(unswept_us, self._horizon_us)
            self._held = (timestamp, version)
            writes += self._bury()
            if time_of(timestamp) > self._horizon_us:
                self.done = True
                break
        else:
            self.done = seen < limits.COLLECT_ROWS
        if self.done and self._held is not None and self._held[1].parent != self._kept:
            writes += self._forget_unseen(view, self._held[1])
            self._note_gap(*self._held)
        row = msgspec.structs.replace(replica.row, floor=floor, unswept_us=unswept_us)
        if row != replica.row:
            writes.append(Write(Table.OBJECT, self.object, encode(row)))
        if self.done and unswept_us:
            self.done, self._is_sweeping = False, True
        return writes

    def _is_as_left(self, replica: Replica) -> bool:
        """Look at `_held` again. False if this walk's memory is not true any more."""
        if self._held is None:
            return True
        timestamp, old = self._held
        version = replica.version(timestamp)
        if version is None or not _is_gap(
            replica, self._kept, self._kept_number, timestamp, old.number
        ):
            return False
        self._held = (timestamp, version)
        return True

    def _note_gap(self, after: LogicalTimestamp, version: Version) -> None:
        """Versions are missing between the one that was kept last and this one, which stays."""
        self._before.append(self._kept_number)
        self._after.append(version.number)
        self._gaps.append((self._kept, after))

    def _sweep(self, view: StorageView) -> list[Write]:
        """Look at some overwritten values; return the writes that remove those that none sees.

        When all of them are looked at, notes of holes in which nothing is left go as well.
        """
        if self._taken and view.get(Table.PAST, self._taken) is not None:
            self.done = True  # the last step's batch was lost, and a sweep stays due
            return []
        first = self.object + FIRST_KEY
        end = first if self._swept < first else self.object + _BEYOND
        rows = tuple(islice(view.scan(Table.PAST, self._swept, end), limits.COLLECT_ROWS))
        if end == first:
            gone = [key for key, row in rows if self._is_needless(view, key, row)]
        else:
            unseen = self._unseen(Replica(view, self.object), rows)
            if unseen is None:
                self.done = True  # and a sweep stays due
                return []
            gone = unseen
        self._taken = gone[0] if gone else b""
        writes = [Write(Table.PAST, key, None) for key in gone]
        if len(rows) == limits.COLLECT_ROWS:
            self._swept = rows[-1][0] + b"\0"
        elif end != first:
            self._swept = self.object
        elif not gone:
            self.done = True
            row = Replica(view, self.object).row
            if 0 < row.unswept_us <= self._horizon_us:
                row = msgspec.structs.replace(row, unswept_us=0)
                writes.append(Write(Table.OBJECT, self.object, encode(row)))
        return writes

    def _unseen(self, replica: Replica, rows: Sequence[tuple[bytes, bytes]]) -> list[bytes] | None:
        """The keys of the values among `rows` that only missing versions saw.

        None if these are not missing any more.
        """
        found = {
            key: self._gap_with(_number(row[:NUMBER_BYTES]), _number(key[-NUMBER_BYTES:]))
            for key, row in rows
        }
        unseen = {key: gap for key, gap in found.items() if gap is not None}
        if not all(self._is_there(replica, gap) for gap in set(unseen.values())):
            return None
        return list(unseen)

    def _is_needless(self, view: StorageView, note: bytes, end: bytes) -> bool:
        """True if the object's past has nothing in a hole, which is noted for scans to pass over.

        Then nothing ever will be: what is removed from a list does not come back.
        """
        low = escaped(key_of(hole_start(self.object, note)))
        high = escaped(key_of(serial_from(end)))
        left = view.keys(Table.PAST, self.object + low, self.object + high)
        return next(iter(left), None) is None

    def _gap_with(self, since: int, until: int) -> int | None:
        """The gap in which all versions [since, until) that saw a value were, if there is one."""
        position = bisect_left(self._before, since) - 1
        return position if position >= 0 and until <= self._after[position] else None

    def _is_there(self, replica: Replica, gap: int) -> bool:
        """True if the versions are still missing that were when the walk noted the gap."""
        (kept, after), number = self._gaps[gap], self._before[gap]
        return _is_gap(replica, kept, number, after, self._after[gap])

    def _decide(
        self, view: StorageView, replica: Replica, successor: LogicalTimestamp
    ) -> tuple[bool, list[Write]]:
        """True if `_held`, which `successor` supersedes, is removed; and the writes for that."""
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
                self._note_gap(timestamp, version)
            self._kept, self._kept_number = timestamp, version.number
            return False, writes
        self.removed += 1
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


def _is_gap(
    replica: Replica,
    before: LogicalTimestamp,
    before_number: int,
    after: LogicalTimestamp,
    after_number: int,
) -> bool:
    """True if both versions have these numbers, and none of the chain is between them.

    `before` may be ZERO, the number of which is 0.
    """
    if before != ZERO and not _has_number(replica, before, before_number):
        return False
    name = replica.object
    between = replica.view.keys(Table.VERSION, name + before + b"\0", name + after)
    return _has_number(replica, after, after_number) and all(
        _has_number(replica, LogicalTimestamp(key[len(name) :]), 0) for key in between
    )


def _has_number(replica: Replica, timestamp: LogicalTimestamp, number: int) -> bool:
    version = replica.version(timestamp)
    return version is not None and version.number == number


def _number(stored: bytes) -> int:
    return int.from_bytes(stored, "big")
