"""What a mount remembers of listings is bounded, whatever is listed."""

from __future__ import annotations

from bftfs.filesystem import listed_order
from bftfs.filesystem.directory import ListedEntry
from bftfs.filesystem.listed_order import ListedOrder
from bftfs.identifiers import ObjectKind
from tests.unit.filesystem.world import fresh

NOW_US = 1


def entries(count: int, first: int = 1) -> list[ListedEntry]:
    return [
        ListedEntry(serial, b"%d" % serial, fresh(ObjectKind.INODE), 1)
        for serial in range(first, first + count)
    ]


def test_of_many_empty_directories_few_are_remembered() -> None:
    """`find` lists each directory of a tree, and many may be empty."""
    order = ListedOrder()
    for _ in range(listed_order.ENTRIES + 100):
        order.listed(fresh(ObjectKind.DIRECTORY), 0, ())
    assert len(order._orders) <= listed_order.ENTRIES


def test_what_is_counted_is_what_is_remembered() -> None:
    order = ListedOrder()
    places = [fresh(ObjectKind.DIRECTORY) for _ in range(40)]
    for turn in range(200):
        place = places[turn % 40]
        order.listed(place, 0, entries(turn % 7 * 1_000))
        order.listed(place, turn % 7 * 1_000, entries(turn % 5 * 900, turn % 7 * 1_000 + 1))
        held = sum(len(each.entries) + 1 for each in order._orders.values())
        assert held == order._count <= listed_order.ENTRIES


def test_of_a_long_listing_the_last_entries_are_remembered() -> None:
    order, place = ListedOrder(), fresh(ObjectKind.DIRECTORY)
    listed = entries(listed_order.ENTRIES_OF_ONE + 10)
    order.listed(place, 0, listed)
    assert not order.looked_at(place, listed[0].identifier, NOW_US)
    assert not order.looked_at(place, listed[20].identifier, NOW_US)
    found = order.looked_at(place, listed[21].identifier, NOW_US)
    assert found == tuple(each.identifier for each in listed[21:][: listed_order.TOGETHER])
