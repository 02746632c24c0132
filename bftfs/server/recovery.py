"""A node's memory of having lost its store.

**Situation.** A node that lost its store has forgotten what it accepted. Others may still count on
it: if it acts as if it had accepted nothing, it lies without knowing it.

**Rules.**

1. It begins a new life (`bftfs.server.lives`). What it signed in an earlier one counts no more.
2. Until it has compared everything with its peers, it asks them about each object that a request
   names before it answers (`object_healing`), and does not list the versions of blocks that it has
   not compared (`block_healing`).
3. How far it has come survives any crash: `Stage` is stored before anything depends on it.

**Why it is safe.** docs/protocols-query-update.md ("A server that lost its store") says it.

**Tests.** `tests/unit/server/test_recovery.py`, `tests/unit/server/test_lives.py`,
`tests/unit/server/test_healing.py`, `tests/seams/test_lost_disks.py`.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

OBJECTS = "objects"
BLOCKS = "blocks"

WAITS = (
    "it waits for other nodes that have forgotten nothing: too few of them answer; start those "
    "that are down (with an empty store, if theirs is gone)"
)


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
        self.waits_for = ""  # what keeps it from going on with what it has forgotten
        self.makes_do = False  # True once more nodes had forgotten something than may fail
        self.gave_way = 0  # objects of which it has given up what too few others know
        self._conclude()

    def count_damaged(self, count: int) -> None:
        """`count` objects have rows that are damaged or lost, and are not mended yet."""
        self.damaged = count
        self._conclude()

    @property
    def is_making_do(self) -> bool:
        """True while it goes by what others know that have forgotten something, too."""
        return self.rebuilding and self.makes_do

    def _conclude(self) -> None:
        self.rebuilding = bool(self._remaining)
        self.doubtful = self.rebuilding or self.damaged > 0

    def forget(self, what: str) -> None:
        """Some of the objects (or blocks) turn out to be lost, and what was accepted of them."""
        self._store(Stage.LOST)
        self.is_lost = True
        self.makes_do &= self.rebuilding
        self._remaining.add(what)
        self._conclude()

    def note_asked(self, *, enough: bool, makes_do: bool = False) -> None:
        """Others were asked for what the node may have forgotten: have enough of them answered?"""
        self.makes_do |= makes_do and enough
        self.waits_for = WAITS if self.rebuilding and not enough else ""

    def begun(self) -> None:
        """The node has begun a new life."""
        self._store(Stage.REBUILDING)
        self.is_lost = False

    def rebuilt(self, what: str) -> None:
        """All objects (or blocks) that others have are here.

        That survives a crash before anybody is told: metrics are read in a thread of their own.
        """
        if self._remaining == {what}:
            self._store(Stage.REBUILT)
        self._remaining.discard(what)
        self._conclude()
