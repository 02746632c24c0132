"""Shares of room that is kept back: whoever asks gets some, and nobody gets it all. [design §9, G7]

What a full node still takes (repairs that readers wait for, removals) is asked for by clients of
whom any may be malicious, and some of it by every client at any time. So each has a share: as long
as it has had no more than half of what is left. The first gets a third of the whole, the next a
third of the rest; however many follow, together they never come to the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bftfs.identifiers import ClientId
from bftfs.storage import Write

_PARTS = 2  # of what is left, one of which a client may have had
_ROW_BYTES = 256  # what a row takes beside its key and value, half empty pages included


class ReserveShares:
    """Who has had how much since it began."""

    __slots__ = ("_had", "left")

    def __init__(self) -> None:
        self._had: Counter[ClientId] = Counter()
        self.left = 0  # bytes; measured anew by the owner, now and then

    @property
    def lent(self) -> int:
        """What all have had."""
        return self._had.total()

    def lends(self, client: ClientId, writes: Iterable[Write]) -> bool:
        """Whether `client` may have room for these; if so, it has had it."""
        volume = sum(
            _ROW_BYTES + len(write.key) + (0 if write.value is None else len(write.value))
            for write in writes
        )
        had = self._had[client] + volume
        if had * _PARTS > self.left:
            return False
        self._had[client] = had
        self.left -= volume
        return True

    def end(self) -> None:
        """There is room for everybody again."""
        self._had.clear()
        self.left = 0
