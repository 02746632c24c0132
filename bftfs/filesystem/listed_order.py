"""The order in which directories were listed, and whether programs look at their entries in it.

`ls -l`, `find`, `du` and `rsync` list a directory, and then look at one entry after the other, in
that order or nearly so. The second look in a row shows the pattern: then the attributes of many
entries are asked for together (`metadata`). Nothing here affects what programs see, only what is
asked for before they want it.

Bounded: the listings of the directories that were listed least recently are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from bftfs import limits
from bftfs.filesystem.directory import ListedEntry
from bftfs.identifiers import ObjectId

ENTRIES: Final = 65_536  # of all directories whose order is remembered, which count as one each…
ENTRIES_OF_ONE: Final = 16_384  # …and of one of them: of a longer listing, the last ones
TOGETHER: Final = 100  # entries whose attributes are asked for at once
NEAR: Final = 16  # entries between two looks that are still in a row: several threads mix theirs
LOOKED_US: Final = 30 * limits.SECOND_US  # for how long after a pattern listings expect it again


@dataclass(slots=True)
class _Order:
    """One directory: its entries as they were listed, and where programs look."""

    entries: list[ObjectId] = field(default_factory=list)
    last: int = 0  # the serial of the last entry
    at: int | None = None  # where the next look is expected
    looked_us: int | None = None  # when the pattern was seen


class ListedOrder:
    """The order in which a mount has listed the entries of directories."""

    def __init__(self) -> None:
        self._orders: OrderedDict[ObjectId, _Order] = OrderedDict()
        self._count = 0

    def listed(self, directory: ObjectId, after: int, entries: Iterable[ListedEntry]) -> None:
        """These are the entries of the directory that follow the serial `after`."""
        order = self._orders.pop(directory, None)
        if order is None:
            order = _Order()
            self._count += 1
        self._orders[directory] = order
        self._count -= len(order.entries)
        if not after or after != order.last:
            order.entries, order.at = [], None
        for entry in entries:
            order.entries.append(entry.identifier)
            order.last = entry.serial
        surplus = len(order.entries) - ENTRIES_OF_ONE
        if surplus > 0:
            del order.entries[:surplus]
            order.at = None
        self._count += len(order.entries)
        while self._count > ENTRIES:
            _, forgotten = self._orders.popitem(last=False)
            self._count -= len(forgotten.entries) + 1

    def looked_at(
        self, directory: ObjectId, identifier: ObjectId, now_us: int
    ) -> tuple[ObjectId, ...]:
        """A program looks at an entry whose attributes are not known.

        Gives the entries to ask for together, from that one on; none if this is no pattern yet.
        A program that looks at the same entry again and again waits for a change of that one.
        """
        order = self._orders.get(directory)
        place = None if order is None else _place(order, identifier)
        if order is None or place is None:
            return ()
        expected, order.at = order.at, place + 1
        if expected in (None, order.at) or abs(place - expected) > NEAR:
            return ()
        order.looked_us = now_us
        return _from(order, place)

    def is_looked_at(self, directory: ObjectId, now_us: int) -> bool:
        """True if programs have looked at the entries in this order lately."""
        order = self._orders.get(directory)
        if order is None or order.looked_us is None:
            return False
        return 0 <= now_us - order.looked_us < LOOKED_US

    def following(self, directory: ObjectId, identifier: ObjectId) -> tuple[ObjectId, ...]:
        """The entries from this one on that are to be asked for together."""
        order = self._orders.get(directory)
        place = None if order is None else _place(order, identifier)
        return () if order is None or place is None else _from(order, place)


def _from(order: _Order, place: int) -> tuple[ObjectId, ...]:
    found = tuple(order.entries[place : place + TOGETHER])
    order.at = place + len(found)
    return found


def _place(order: _Order, identifier: ObjectId) -> int | None:
    """Where it is in the listing; as a rule, where it is expected."""
    entries, expected = order.entries, order.at or 0
    for first, end in ((expected, expected + NEAR), (0, len(entries))):
        try:
            return entries.index(identifier, first, end)
        except ValueError:
            continue
    return None
