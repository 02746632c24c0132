"""The simulated disk: committed batches survive a crash, the open one does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, TypeAlias

from bftfs.storage import MemoryStorage, Table, Write

Tables: TypeAlias = Mapping[Table, Any]  # all rows of a disk


class Disk(MemoryStorage):
    """A memory store whose writes since the last commit can be undone.

    Concurrency: one batch at a time; each ends in a commit or a crash before the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._applied: list[Write] = []
        self._overwritten: list[Write] = []  # what undoes them, in the same order
        self.commits = 0
        self.place = b""  # where the store lies: a copy lies somewhere else

    def apply(self, writes: Iterable[Write]) -> None:
        tables, applied, overwritten = self._tables, self._applied, self._overwritten
        for write in writes:
            table, key, value = write.table, write.key, write.value
            rows = tables[table]
            applied.append(write)
            overwritten.append(Write(table, key, rows.get(key)))
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value if type(value) is bytes else bytes(value)

    def uncommitted(self) -> tuple[Write, ...]:
        """The writes since the last commit, in order."""
        return tuple(self._applied)

    def commit(self) -> None:
        """Make all that was applied durable."""
        self._applied.clear()
        self._overwritten.clear()
        self.commits += 1

    def crash(self) -> None:
        """Lose what was not committed."""
        super().apply(reversed(self._overwritten))
        self._applied.clear()
        self._overwritten.clear()

    def wipe(self) -> None:
        """Damage: everything is gone."""
        self._tables = MemoryStorage()._tables
        self._applied.clear()
        self._overwritten.clear()

    def copy(self) -> Tables:
        """What is committed, as a backup has it."""
        assert not self._applied, "nothing is copied within a batch"
        return deepcopy(self._tables)

    def put_back(self, tables: Tables, *, elsewhere: bool = True) -> None:
        """The store is replaced by a copy, perhaps of an earlier moment.

        Where it lies tells so, unless a snapshot of the whole machine is put back.
        """
        self.wipe()
        self._tables = {table: tables[table].copy() for table in Table}
        if elsewhere:
            self.place += b"."

    def lose(self, table: Table, key: bytes) -> None:
        """Damage: one row is gone, as if it had never been written."""
        super().apply((Write(table, key, None),))

    def rot(self, table: Table, key: bytes, position: int) -> None:
        """Damage: one byte of a row's value has changed."""
        value = self.get(table, key)
        if value:
            rotten = bytearray(value)
            rotten[position % len(rotten)] ^= 0xFF
            super().apply((Write(table, key, bytes(rotten)),))
