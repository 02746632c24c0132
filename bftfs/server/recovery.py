"""A node's memory of having lost its store.

A node that lost its store has forgotten what it accepted. Until it has asked the others about all
of it, it must not act as if it had never accepted anything: that would be a lie, though not meant.
And what it may have accepted, for ever so long ago, it may not contradict.
`docs/protocols-query-update.md` has the rule and why it is safe.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections.abc import Callable

from bftfs import limits

OBJECTS = "objects"
BLOCKS = "blocks"


class Recovery:
    """The bound of what one node has forgotten, and whether it is still rebuilding."""

    def __init__(
        self,
        *,
        floor_us: int = 0,
        rebuilding: bool = False,
        on_loss: Callable[[int], None] = lambda _floor_us: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing that was forgotten is later than `floor_us`: the node refused insane times.

        `on_loss` makes a new floor, and that the node is rebuilding, survive any crash; `on_end`
        that it has rebuilt all.
        """
        self.floor_us = floor_us
        self._on_loss = on_loss
        self._on_end = on_end
        self._remaining = {OBJECTS, BLOCKS} if rebuilding else set()
        self.damaged = 0  # objects known to have rows that are damaged or lost
        self.rebuilding = rebuilding  # True while the node may lack something that it has had
        self.doubtful = rebuilding  # True while it may say something false of objects

    @property
    def counted_until_us(self) -> int:
        """When the last client has given up the rounds in which it heard of what was forgotten."""
        return self.floor_us - limits.CLOCK_SKEW_US + limits.FORGOTTEN_US

    def count_damaged(self, count: int) -> None:
        """So many objects have rows that are damaged or lost, and are not mended yet."""
        self.damaged = count
        self._conclude()

    def _conclude(self) -> None:
        self.rebuilding = bool(self._remaining)
        self.doubtful = self.rebuilding or self.damaged > 0

    def forget(self, what: str, now_us: int) -> None:
        """Some of the objects (or blocks) turn out to be lost, and what was accepted of them."""
        self.floor_us = max(self.floor_us, now_us + limits.CLOCK_SKEW_US)
        self._on_loss(self.floor_us)
        self._remaining.add(what)
        self._conclude()

    def rebuilt(self, what: str) -> None:
        """All objects (or blocks) that others have are here.

        Who hears that nothing is being rebuilt (metrics are asked for in a thread of their own)
        can rely on it: first it is made to survive a crash.
        """
        if self._remaining == {what}:
            self._on_end()
        self._remaining.discard(what)
        self._conclude()
