"""The view that a server step has of its disk, and the writes that it returns.

`StorageView` is an ordered map from bytes to bytes per table. `MemoryStorage` is its executable
specification; the LMDB store of a node is shown equal to it by a stateful property test.

A step reads the view, and returns its writes as values; only its host applies them, atomically,
before anything that the step wants sent is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Protocol

import msgspec
from sortedcontainers import SortedDict


class Table(IntEnum):
    """The tables of a node's store; each protocol owns its own."""

    META = 0  # the store's format version, the node's identity
    OBJECT = 1  # Q/U: object id -> replica history
    VERSION = 2  # Q/U: object id + timestamp -> version record (delta, answer, operation)
    STATE = 3  # Q/U: object id + map key -> since-timestamp + value, of the head version
    PAST = 4  # Q/U: object id + map key + until-timestamp -> since-timestamp + value
    REQUEST = 5  # Q/U: object id + timestamp -> the request that made a candidate
    BLOCK = 6  # PASIS: block id + inverted timestamp -> version header (see version_row)
    FRAGMENT = 7  # PASIS: block id + inverted timestamp -> the fragment's bytes
    ADMISSION = 8  # per client: the bytes that its versions use


class Write(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Put `value` at `key` of `table`, or delete the key if `value` is None."""

    table: Table
    key: bytes
    value: bytes | memoryview | None


def after_keys(length: int) -> bytes:
    """A key greater than all keys of at most `length` bytes: the end of a range of all of them."""
    return b"\xff" * (length + 1)


class StorageView(Protocol):
    """A consistent view of the store, with this step's predecessors' writes applied."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order. Lazy."""

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Like `scan`, without touching the values."""

    def count(self, table: Table) -> int:
        """How many rows the table has, perhaps roughly. Takes constant time."""


class MemoryStorage:
    """The store as a specification: sorted dictionaries. Used by the simulator and by tests."""

    def __init__(self) -> None:
        self._tables: dict[Table, SortedDict] = {table: SortedDict() for table in Table}

    def get(self, table: Table, key: bytes) -> bytes | None:
        value: bytes | None = self._tables[table].get(key)
        return value

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self._tables[table]
        for key in rows.irange(start, stop, inclusive=(True, False), reverse=reverse):
            yield key, rows[key]

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        rows = self._tables[table]
        return iter(rows.irange(start, stop, inclusive=(True, False), reverse=reverse))

    def count(self, table: Table) -> int:
        return len(self._tables[table])

    def apply(self, writes: Iterable[Write]) -> None:
        """Apply all of `writes`, in order."""
        for write in writes:
            if write.value is None:
                self._tables[write.table].pop(write.key, None)
            else:
                self._tables[write.table][write.key] = bytes(write.value)

    def snapshot(self) -> MemoryStorage:
        """An independent copy, from which an amnesiac adversary restarts."""
        copy = MemoryStorage()
        for table, rows in self._tables.items():
            copy._tables[table] = SortedDict(rows)
        return copy
