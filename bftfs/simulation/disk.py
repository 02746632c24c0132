"""The simulated disk: committed batches survive a crash, the open one does not."""

from __future__ import annotations

from collections.abc import Iterable

from bftfs.storage import MemoryStorage, Table, Write


class Disk(MemoryStorage):
    """A memory store whose writes since the last commit can be undone.

    Concurrency: one batch at a time; whoever applies writes commits or crashes before the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._undo: list[tuple[Table, bytes, bytes | None]] = []
        self.commits = 0

    def apply(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._undo.append((write.table, write.key, self.get(write.table, write.key)))
            super().apply((write,))

    def commit(self) -> None:
        """Make all that was applied durable."""
        self._undo.clear()
        self.commits += 1

    def crash(self) -> None:
        """Lose what was not committed."""
        super().apply(Write(*change) for change in reversed(self._undo))
        self._undo.clear()
