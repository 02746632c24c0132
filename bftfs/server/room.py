"""What a node decides upon when room gets short."""

from __future__ import annotations

from typing import NamedTuple

from bftfs.limits import MIB

ROOM_BYTES = 16 * MIB  # with less than that to spare, a node whose disk was full is full still


class Figures(NamedTuple):
    """What a store measures of its room, in bytes."""

    live_bytes: int  # what the tables occupy; the rest of the file is used again before it grows
    free_bytes: int  # what can still be stored, without the reserve
    reserve_bytes: int  # what is kept back
    drawable_bytes: int  # what those that may use the reserve still get, if the disk gives no more

    @property
    def has_room_again(self) -> bool:
        """True if there is room to speak of, now that there was none."""
        return self.free_bytes >= min(ROOM_BYTES, self.reserve_bytes)
