"""A node's memory of having lost its store.

**Situation.** A node that lost its store has forgotten what it accepted. Others may still count on
it: if it acts as if it had accepted nothing, it lies without knowing it.

**Rules.**

1. It begins a new life (`bftfs.server.lives`). What it signed in an earlier one counts no more.
   What it has compared with its peers in an earlier one it compares again.
2. Until it has compared everything with its peers, it asks them about each object that a request
   names before it answers (`object_healing`), and does not list the versions of blocks that it has
   not compared (`block_healing`).
3. How far it has come survives any crash, of the machine too, whatever becomes of the store: it is
   stored before anything depends on it, with the number of the life that it has chosen last.
4. Whether it has forgotten something it may have to hear from others (`bftfs.server.runs`). Until
   then it answers nothing.

**Why it is safe.** docs/protocols-query-update.md ("A server that lost its store") says it.

**Tests.** `tests/unit/server/test_recovery.py`, `tests/unit/server/test_lives.py`,
`tests/unit/server/test_healing.py`, `tests/seams/test_lost_disks.py`.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from bftfs.conversation import Pause
from bftfs.limits import SECOND_US
from bftfs.server.step import Want
from bftfs.storage import Write

OBJECTS = "objects"
BLOCKS = "blocks"

WAITS = (
    "it waits for other nodes that have forgotten nothing: too few of them answer; start those "
    "that are down (with an empty store, if theirs is gone)"
)
UNSURE = (
    "it serves nothing yet: whether it has forgotten something it has to ask other nodes, and too "
    "few of them answer; start those that are down"
)
_LOOK_US, _LOOK_MOST_US = 1_000, SECOND_US  # how often work that waits for a run looks again


class Stage(Enum):
    """How far a node has come since it lost something."""

    LOST = "lost"  # it has not begun a new life
    REBUILDING = "rebuilding"  # it lacks some of what it should have
    REBUILT = "rebuilt"


class Recovery:
    """Whether one node has lost something, and how far it has come since."""

    def __init__(
        self,
        stage: Stage = Stage.REBUILT,
        *,
        life: int = 0,
        store: Callable[[Stage, int], None] = lambda _stage, _life: None,
    ) -> None:
        """`store` makes a stage, and the latest life that was chosen, survive any crash."""
        self._store = store
        self.life = life  # the latest that the node has chosen: somebody may have heard of it
        self._remaining = set() if stage is Stage.REBUILT else {OBJECTS, BLOCKS}
        self.is_lost = stage is Stage.LOST  # True until it has begun a new life
        self.damaged = 0  # objects known to have rows that are damaged or lost
        self.rebuilding = False  # True while the node may lack something that it has had
        self.doubtful = False  # True while it may say something false of objects
        self.waits_for = ""  # what keeps it from going on with what it has forgotten
        self.makes_do = False  # True once more nodes had forgotten something than may fail
        self.gave_way = 0  # objects of which it has given up what too few others know
        self.place = b""  # where the store lies: a copy of it lies somewhere else
        self.awaits: Want | None = None  # what all requests wait for until a run has begun
        # Break off the walk that compares objects (or blocks), to begin anew.
        self.walks: dict[str, Callable[[], Write]] = {}
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

    def forget(self, *what: str) -> None:
        """Some of the objects (or blocks) turn out to be lost, and what was accepted of them."""
        self._store(Stage.LOST, self.life)
        self.is_lost = True
        self.makes_do &= self.rebuilding
        self._remaining.update(what)
        self._conclude()
        self.begin_anew()

    def begin_anew(self) -> list[Write]:
        """Break off the walks over what may be lost; the writes by which they begin anew."""
        return [walk() for what, walk in self.walks.items() if what in self._remaining]

    @property
    def is_whole(self) -> bool:
        """True if the node knows that it lacks nothing that it has had."""
        return self.awaits is None and not self.rebuilding

    def note_run(self, *, begun: bool) -> None:
        """Has a run begun? Before the first one, all requests wait."""
        if begun:
            self.awaits = None
        if self.awaits is not None or self.waits_for == UNSURE:
            self.waits_for = "" if begun else UNSURE

    async def run_begun(self) -> None:
        """Wait until a run has begun, for work that rests on what the node remembers."""
        pause_us = _LOOK_US
        while self.awaits is not None:
            await Pause(pause_us)
            pause_us = min(2 * pause_us, _LOOK_MOST_US)

    def note_asked(self, *, enough: bool, makes_do: bool = False) -> None:
        """Others were asked for what the node may have forgotten: have enough of them answered?"""
        self.makes_do |= makes_do and enough
        self.waits_for = WAITS if self.rebuilding and not enough else ""

    def choose(self, life: int) -> None:
        """The node is about to tell others that it begins this life; it begins it never again."""
        self._store(Stage.LOST, life)
        self.life = life

    def begun(self) -> None:
        """The node has begun a new life."""
        self._store(Stage.REBUILDING, self.life)
        self.is_lost = False

    def rebuilt(self, what: str) -> None:
        """All objects (or blocks) that others have are here.

        That survives a crash before anybody is told: metrics are read in a thread of their own.
        """
        if self._remaining == {what}:
            self._store(Stage.REBUILT, self.life)
        self._remaining.discard(what)
        self._conclude()
