"""A node's memory of having lost its store.

A node that lost its store has forgotten what it accepted. It begins a new life (`.lives`), in which
nobody counts what it signed before; and until it has asked the others about all of it, it must not
act as if it had never accepted anything: that would be a lie, though not meant.
`docs/protocols-query-update.md` has the rule and why it is safe.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

OBJECTS = "objects"
BLOCKS = "blocks"


class Stage(Enum):
    """How far a node has come since it lost something."""

    LOST = "lost"  # it has not begun a new life
    REBUILDING = "rebuilding"  # it lacks some of what it should have
    REBUILT = "rebuilt"


class Recovery:
    """Whether one node has lost something, and how far it has come since."""

    def __init__(
        self, stage: Stage = Stage.REBUILT, *, store: Callable[[Stage], None] = lambda _stage: None
    ) -> None:
        """`store` makes a stage survive any crash."""
        self._store = store
        self._remaining = set() if stage is Stage.REBUILT else {OBJECTS, BLOCKS}
        self.is_lost = stage is Stage.LOST  # True until it has begun a new life
        self.damaged = 0  # objects known to have rows that are damaged or lost
        self.rebuilding = False  # True while the node may lack something that it has had
        self.doubtful = False  # True while it may say something false of objects
        self._conclude()

    def count_damaged(self, count: int) -> None:
        """So many objects have rows that are damaged or lost, and are not mended yet."""
        self.damaged = count
        self._conclude()

    def _conclude(self) -> None:
        self.rebuilding = bool(self._remaining)
        self.doubtful = self.rebuilding or self.damaged > 0

    def forget(self, what: str) -> None:
        """Some of the objects (or blocks) turn out to be lost, and what was accepted of them."""
        self._store(Stage.LOST)
        self.is_lost = True
        self._remaining.add(what)
        self._conclude()

    def begun(self) -> None:
        """The node has begun a new life."""
        self._store(Stage.REBUILDING)
        self.is_lost = False

    def rebuilt(self, what: str) -> None:
        """All objects (or blocks) that others have are here.

        Who hears that nothing is being rebuilt (metrics are asked for in a thread of their own)
        can rely on it: first it is made to survive a crash.
        """
        if self._remaining == {what}:
            self._store(Stage.REBUILT)
        self._remaining.discard(what)
        self._conclude()
