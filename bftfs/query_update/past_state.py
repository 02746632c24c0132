"""An object's past at one server: its state at an old version, and the list of its versions.

**The rows.** The head's state is in STATE. What a version overwrites or removes goes to PAST, where
the rows of one key stand in the order of the versions that overwrote them:

    overwritten or removed by version (in the key)      3     7    12    20
    written by version (in the row)                     1     3     9    12     STATE: 20

At version 10 the third row counts: it was written by 9 <= 10, and overwritten by 12 > 10. At
version 8 no row counts: version 7 removed the key, and version 9 put it back.

So the state at a version is read without walking the chain: of each key one row at most, from STATE
if that is old enough, else from PAST. A scan merges the two tables.

**What would be slow is passed over by seeking.** A key with many rows: after a few of them the scan
goes straight to the one that counts, or to the next key. And a list from which much had gone by
then: servers note how far the hole reaches that a removal leaves (`object_type`), and a scan that
meets what had gone goes on at the hole's end. Where nothing is noted it reads on: notes make it
fast, not right. `tests/unit/query_update/test_sequence.py` counts the rows read.

**Invariant.** A server that object sync has brought to a version without the versions before it
says nothing of the time between them: it does not know what was then. What a server says is
believed when servers say the same that cannot all be malevolent: `past_reading` is the client's
side. [Q/U §4.2.1, versioning servers]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter

import msgspec

from bftfs import limits
from bftfs.errors import DamagedRow
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, LogicalTimestamp, Operation, time_of
from bftfs.query_update.messages import Looked, PastVersion, VersionsRequest
from bftfs.query_update.object_type import (
    FIRST_SERIAL,
    SEQUENCE,
    is_in_sequence,
    key_of,
    serial_at,
    serial_from,
)
from bftfs.query_update.replica import (
    NUMBER_BYTES,
    Replica,
    Version,
    Workspace,
    escaped,
    hole_prefix,
    past_prefix,
    stamp_of,
    unescaped,
)
from bftfs.storage import StorageView, Table, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_ROWS_READ = 8  # of one key, before the others are passed over by seeking
_BEYOND_NUMBERS = after_keys(NUMBER_BYTES)
FIRST_KEY = b"\0\1"  # escaped keys are greater; notes of holes, which belong to no key, are less
_TIME_BYTES = 8
_PAGE_BYTES = limits.ANSWER_BYTES // 2
_BEYOND = after_keys(TIMESTAMP_BYTES)

_decode_operation = msgspec.msgpack.Decoder(Operation).decode


# --- the state at a version -------------------------------------------------------------------


def state_at(replica: Replica, timestamp: LogicalTimestamp) -> Workspace | PastState | None:
    """The state at a version of the head's chain, or None if it is not on it."""
    if timestamp == replica.head:
        return replica.workspace
    if timestamp == ZERO:
        return PastState(replica.view, replica.object, 0)
    version = replica.version(timestamp)
    if version is None or not version.number:
        return None
    return PastState(replica.view, replica.object, version.number)


class PastState:
    """The state at version `number` of the head's chain. Read-only."""

    __slots__ = ("_prefix", "_stamp", "_view", "object")

    def __init__(self, view: StorageView, identifier: ObjectId, number: int) -> None:
        self.object = identifier
        self._prefix = bytes(identifier)
        self._view = view
        self._stamp = stamp_of(number)

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        row = self._view.get(Table.STATE, self._prefix + key)
        if row is None or row[:NUMBER_BYTES] > self._stamp:
            row = self._overwritten(key)
        return None if row is None else row[NUMBER_BYTES:]

    def put(self, key: bytes, value: bytes) -> None:
        """Queries do not change the past."""
        raise ValueError("the past is read-only")

    def delete(self, key: bytes) -> None:
        """Queries do not change the past."""
        raise ValueError("the past is read-only")

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order. Lazy."""
        # At any version a key has one row at most, in one of the two tables.
        kept = self._kept(start, stop, reverse=reverse)
        low, high = self._prefix + max(escaped(start), FIRST_KEY), self._prefix + escaped(stop)
        if reverse:
            past = self._past_backward(low, high)
        else:
            past = self._past_forward(low, high, _Holes(self, start))
        return merge(kept, past, key=itemgetter(0), reverse=reverse)

    def _kept(self, start: bytes, stop: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """The pairs that are in the head's state as they were at this version."""
        skip = len(self._prefix)
        for key, row in self._view.scan(
            Table.STATE, self._prefix + start, self._prefix + stop, reverse=reverse
        ):
            if row[:NUMBER_BYTES] <= self._stamp:
                yield key[skip:], row[NUMBER_BYTES:]

    def _past_forward(
        self, low: bytes, high: bytes, holes: _Holes
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs that have been overwritten since; `low` and `high` are keys of PAST."""
        skip, here = len(self._prefix), self._stamp
        seeking = True
        while seeking:
            seeking = False
            key, rows = b"", 0
            for stored, row in self._view.scan(Table.PAST, low, high):
                before, overwritten = key, stored[-NUMBER_BYTES:]
                key = stored[skip : -NUMBER_BYTES - 2]
                if row[:NUMBER_BYTES] <= here < overwritten:
                    yield unescaped(key), row[NUMBER_BYTES:]
                    holes.there(key)
                elif overwritten <= here:
                    end = holes.end_around(key)
                    if end is not None:
                        low, seeking = self._prefix + end, True
                        break
                rows = rows + 1 if key == before else 0
                if rows == _ROWS_READ:
                    prefix, seeking = self._prefix + key + b"\0", True
                    low = prefix + (b"\0" + _next(here) if overwritten <= here else b"\1")
                    break

    def _past_backward(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The same in reverse order."""
        skip, here = len(self._prefix), self._stamp
        seeking = True
        while seeking:
            seeking = False
            key, rows = b"", 0
            for stored, row in self._view.scan(Table.PAST, low, high, reverse=True):
                before, key = key, stored[skip : -NUMBER_BYTES - 2]
                if row[:NUMBER_BYTES] <= here < stored[-NUMBER_BYTES:]:
                    yield unescaped(key), row[NUMBER_BYTES:]
                rows = rows + 1 if key == before else 0
                if rows == _ROWS_READ:
                    if row[:NUMBER_BYTES] > here:  # all that were read are later
                        name = unescaped(key)
                        found = self._overwritten(name)
                        if found is not None:
                            yield name, found[NUMBER_BYTES:]
                    high, seeking = self._prefix + key + b"\0\0", True
                    break

    def _overwritten(self, key: bytes) -> bytes | None:
        """The row of `key` that was overwritten first after this version, if it is as old."""
        prefix = past_prefix(self.object, key)
        for _, row in self._view.scan(
            Table.PAST, prefix + _next(self._stamp), prefix + _BEYOND_NUMBERS
        ):
            return row if row[:NUMBER_BYTES] <= self._stamp else None
        return None

    def end_of_hole(self, key: bytes, below: int) -> int:
        """The end of the hole in a list that `key` lies in at this version; -1 if not noted.

        `below` is a serial that was there before it, if one is known that has gone since.
        """
        for there in self._view.keys(
            Table.STATE, self._prefix + SEQUENCE, self._prefix + key, reverse=True
        ):
            below = max(below, serial_at(there[len(self._prefix) :]))
            break
        prefix = hole_prefix(self.object, max(below + 1, FIRST_SERIAL))
        for _, noted in self._view.scan(
            Table.PAST, prefix, prefix + _next(self._stamp), reverse=True
        ):
            end = serial_from(noted)
            return end if end > serial_at(key) else -1
        return -1


class _Holes:
    """Finds where a scan goes on when it meets entries that a list had lost by the version."""

    __slots__ = ("_below", "_lists", "_patience", "_state")

    def __init__(self, state: PastState, start: bytes) -> None:
        self._state = state
        self._lists = is_in_sequence(start)
        # Where a listing goes on, the serial before was there.
        self._below = serial_at(start) - 1 if self._lists else -1
        self._patience = 0  # rows that are read before a note is looked for again

    def there(self, key: bytes) -> None:
        """`key` was there at the version."""
        if self._lists and is_in_sequence(key):
            self._below, self._patience = serial_at(key), 0

    def end_around(self, key: bytes) -> bytes | None:
        """The key at the end of the hole that `key` lies in, if it is in a list and that is noted.

        A row of `key` had gone by the version (perhaps because it was overwritten).
        """
        if not (self._lists and is_in_sequence(key)):
            return None
        if not self._patience:
            end = self._state.end_of_hole(key, self._below)
            if end > 0:
                return key_of(end)
            self._patience = _ROWS_READ
        self._patience -= 1
        return None


def _next(stamp: bytes) -> bytes:
    return stamp_of(int.from_bytes(stamp, "big") + 1)


# --- versions by their times -------------------------------------------------------------------


def newest_at(replica: Replica, at_us: int, below: bytes) -> tuple[Looked, LogicalTimestamp]:
    """The newest version on the head's chain whose time is `at_us` or earlier.

    `below` is where an earlier search for the same stopped, or empty. If there is more to search,
    where this one has.
    """
    head = replica.head
    if time_of(head) <= at_us:
        return Looked.FOUND, head
    # Above every timestamp of a time up to `at_us`, and below every later one.
    bound = LogicalTimestamp((at_us + 1).to_bytes(_TIME_BYTES, "big").ljust(TIMESTAMP_BYTES, b"\0"))
    if below:
        bound = min(bound, LogicalTimestamp(below))
    found = ZERO
    prefix = replica.object
    keys = replica.view.keys(Table.VERSION, prefix + ZERO, prefix + bound, reverse=True)
    for passed, key in enumerate(keys, 1):
        timestamp = LogicalTimestamp(key[len(prefix) :])
        version = replica.version(timestamp)
        assert version is not None, "its key is stored"
        if version.number:
            found = timestamp
            break
        if passed == limits.PAST_SEARCHED:  # accepted, and then left behind: all of them
            return Looked.FURTHER, timestamp
    if found >= replica.row.floor:
        return Looked.FOUND, found
    above = _above(replica, found)
    if above is None or above.gap:
        return Looked.UNKNOWN, ZERO
    if above.parent != found:
        # Versions between the two were collected. What is left says until when it was the latest.
        left = replica.version(found)
        if left is None or at_us >= left.until_us:
            return Looked.COLLECTED, ZERO
    return Looked.FOUND, found


def _above(replica: Replica, timestamp: LogicalTimestamp) -> Version | None:
    """The version here that follows the one at `timestamp` on the head's chain."""
    prefix = replica.object
    keys = replica.view.keys(Table.VERSION, prefix + timestamp + b"\0", prefix + _BEYOND)
    for key in islice(keys, limits.PAST_SEARCHED):
        version = replica.version(LogicalTimestamp(key[len(prefix) :]))
        assert version is not None, "its key is stored"
        if version.number:
            return version
    return None


def versions_page(
    view: StorageView,
    replica: Replica,
    request: VersionsRequest,
    as_told: Callable[[Operation], Operation],
) -> bytes | None:
    """The versions from `request.newest` down; None if the server does not know them all.

    Operations are listed `as_told` to the user. Every benign server that knows the versions gives
    the same: `as_told` goes by the operation, the object and the user alone. Those that were
    collected are left out, and all before them: the page may be empty.
    """
    at = request.newest
    found: list[PastVersion] = []
    size = 0
    while at != ZERO and len(found) < request.most and size < _PAGE_BYTES:
        version = replica.version(at)
        if version is None:
            above = _above(replica, at)
            if above is None or above.gap or above.parent != at:
                return None
            break
        if not version.number or version.gap:
            return None
        listed = _listed(view, replica, at, version, request.prefixes, as_told)
        if listed is None:
            return None
        size += len(encode(listed))
        if found and size > _PAGE_BYTES:
            break
        found.append(listed)
        at = version.parent
    page = encode(tuple(found))
    return page if len(page) <= limits.ANSWER_BYTES else None


def operation_key(timestamp: LogicalTimestamp) -> bytes:
    """Where, in Table.META, an operation is kept whose first object's version was collected.

    It is empty as long as only other objects' versions were.
    """
    return b"operation" + timestamp


def was_collected(view: StorageView, timestamp: LogicalTimestamp) -> bool:
    """True if this server has collected a version that an operation on several objects made.

    Then it was established [Q/U §4.3.7]. Known as long as it has another object's version of it.
    """
    return view.get(Table.META, operation_key(timestamp)) is not None


def _operation_of(
    view: StorageView, objects: tuple[ObjectId, ...], timestamp: LogicalTimestamp
) -> Operation | None:
    """The operation on several objects that made their versions at `timestamp`."""
    first = Replica(view, objects[0]).version(timestamp)
    if first is not None:
        return first.operation
    kept = view.get(Table.META, operation_key(timestamp))
    try:
        return _decode_operation(kept) if kept else None
    except UNREADABLE as error:
        raise DamagedRow(objects[0], str(error)) from error


def _listed(
    view: StorageView,
    replica: Replica,
    timestamp: LogicalTimestamp,
    version: Version,
    prefixes: tuple[bytes, ...],
    as_told: Callable[[Operation], Operation],
) -> PastVersion | None:
    operation = version.operation
    if operation is None and not version.copy:
        if version.objects:
            operation = _operation_of(view, version.objects, timestamp)
        if operation is None:
            return None
    if operation is not None:
        operation = as_told(operation)
    changes = tuple(change for change in version.delta if change[0].startswith(prefixes))
    return PastVersion(timestamp, version.parent, version.objects, operation, changes)
