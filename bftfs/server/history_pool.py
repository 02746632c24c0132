"""The history pool: how much room a node has for versions, and how short of it it is. [design §8]

What is measured is what the store's tables occupy: pages that collection has freed are used again
before the file grows, and count as room.

**Concurrency.** Measured by the node's loop; the figures may be read by any thread.
"""

from __future__ import annotations

from typing import Protocol

from bftfs.conversation import Event
from bftfs.server.room import Figures

SHORT = 0.85  # of the pool: from here on, what retention does not need goes
SLOW = 0.90  # from here on, the greediest writers are slowed…
TIGHT = 0.95  # …and from here on refused; the others have what remains
_UNBUDGETED = 0.9  # of the disk, if the pool has no budget of its own
_CHARGES_PER_LOOK = 64


class Store(Protocol):
    """Where the versions are stored."""

    def measure(self) -> Figures:
        """Its room now."""


class HistoryPool:
    """The room for a node's versions, current and past."""

    def __init__(self, budget_bytes: int | None) -> None:
        """Without a budget it is most of what the store may occupy."""
        self._budget_bytes = budget_bytes
        self._store: Store | None = None
        self._charges = 0
        self.shortage = Event()
        self.live_bytes = 0
        self.limit_bytes = budget_bytes or 0

    def attach(self, store: Store) -> None:
        """The pool is in `store` from now on."""
        self._store = store
        self.measure()

    def measure(self) -> None:
        """See how much is taken."""
        store = self._store
        if store is None:
            return
        figures = store.measure()
        self.live_bytes = figures.live_bytes
        self.limit_bytes = self._budget_bytes or int(
            _UNBUDGETED * (self.live_bytes + figures.free_bytes)
        )

    @property
    def share(self) -> float:
        """How much of it is taken; may exceed 1."""
        return self.live_bytes / self.limit_bytes if self.limit_bytes else 0.0

    def charged(self) -> float:
        """`share`, where something is about to be added: measured every now and then."""
        self._charges += 1
        if self._charges >= _CHARGES_PER_LOOK:
            self._charges = 0
            self.measure()
            self.took(0)
        return self.share

    def took(self, volume: int) -> None:
        """So much was added since it was measured; who waits for a shortage hears of it."""
        self.live_bytes += volume
        if self.share >= SHORT:
            self.shortage.announce()

    def is_short(self) -> bool:
        """Whether so much is taken that what retention does not need has to go."""
        self.measure()
        return self.share >= SHORT
