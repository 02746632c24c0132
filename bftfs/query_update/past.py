"""What a server tells of an object's past: the state at a time, and the list of versions.

A version of the head's chain is found by its time, with bounded work per request; its state is read
without walking the chain. What a server tells is believed when servers tell the same that cannot
all be malevolent: `past_reading` is the client's side. [Q/U §4.2.1, versioning servers]

**Invariant.** A server that object sync has brought to a version without the versions before it
says nothing of the time between them: it does not know what was then.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from bftfs import limits
from bftfs.errors import DamagedRow
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, LogicalTimestamp, Operation, time_of
from bftfs.query_update.messages import Looked, PastVersion, VersionsRequest
from bftfs.query_update.replica import Replica, Version
from bftfs.storage import StorageView, Table
from bftfs.wire.codec import UNREADABLE, encode

GUARD = "history.permit"  # the query without arguments that refuses who may not list versions

_TIME_BYTES = 8
_PAGE_BYTES = limits.ANSWER_BYTES // 2
_BEYOND = b"\xff" * (TIMESTAMP_BYTES + 1)

_decode_operation = msgspec.msgpack.Decoder(Operation).decode


def first_after(at_us: int) -> LogicalTimestamp:
    """The bound that every timestamp of a time up to `at_us` is below, and no later one."""
    return LogicalTimestamp(
        (at_us + 1).to_bytes(_TIME_BYTES, "big") + bytes(TIMESTAMP_BYTES - _TIME_BYTES)
    )


def newest_at(replica: Replica, at_us: int, below: bytes) -> tuple[Looked, LogicalTimestamp]:
    """The newest version on the head's chain whose time is `at_us` or earlier.

    `below` is where an earlier search for the same stopped, or empty. If there is more to search,
    where this one has.
    """
    head = replica.head
    if time_of(head) <= at_us:
        return Looked.FOUND, head
    bound = first_after(at_us)
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


def versions_page(view: StorageView, replica: Replica, request: VersionsRequest) -> bytes | None:
    """The versions from `request.newest` down; None if the server does not know them all.

    Every benign server that knows them gives the same. Those that were collected are left out, and
    all before them: the page may be empty.
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
        listed = _listed(view, replica, at, version, request.prefixes)
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
    """Whether this server has collected what an operation on several objects made of one of them.

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
) -> PastVersion | None:
    operation = version.operation
    if operation is None and not version.copy:
        if version.objects:
            operation = _operation_of(view, version.objects, timestamp)
        if operation is None:
            return None
    changes = tuple(change for change in version.delta if change[0].startswith(prefixes))
    return PastVersion(timestamp, version.parent, version.objects, operation, changes)
