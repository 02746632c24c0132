"""Which block holds a byte, under which incarnation."""

from __future__ import annotations

import pytest

from bftfs import limits
from bftfs.filesystem.attributes import Layout, Span, spans
from bftfs.identifiers import ObjectId, block_id


def test_a_new_file_has_one_incarnation() -> None:
    layout = Layout(4096)
    assert layout.newest == 0
    assert layout.incarnation(0) == layout.incarnation(1 << 28) == 0


def test_each_block_has_the_incarnation_of_its_range() -> None:
    layout = Layout(4096, ((0, 7), (3, 9), (10, 8)))
    assert [layout.incarnation(number) for number in (0, 2, 3, 9, 10, 99)] == [7, 7, 9, 9, 8, 8]
    assert layout.newest == 9
    inode = ObjectId(bytes(range(16)))
    assert layout.block(inode, 4) == block_id(inode, incarnation=9, number=4)


@pytest.mark.parametrize(
    ("first", "ranges"),
    [
        (0, ((0, 20),)),
        (2, ((0, 7), (2, 20))),
        (3, ((0, 7), (3, 20))),
        (4, ((0, 7), (3, 9), (4, 20))),
        (99, ((0, 7), (3, 9), (10, 8), (99, 20))),
    ],
)
def test_a_cut_replaces_all_ranges_after_it(
    first: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    assert Layout(4096, ((0, 7), (3, 9), (10, 8))).cut(first, 20).ranges == ranges


def test_room_for_a_cut() -> None:
    full = Layout(4096, tuple((number, number) for number in range(limits.LAYOUT_RANGES)))
    last = limits.LAYOUT_RANGES - 1
    assert full.has_room_to_cut(last)
    assert len(full.cut(last, 1000).ranges) == limits.LAYOUT_RANGES
    assert not full.has_room_to_cut(last + 1)


def test_the_cheapest_merge_rewrites_the_fewest_blocks() -> None:
    layout = Layout(4096, ((0, 1), (100, 2), (103, 3), (105, 4), (200, 5)))
    assert layout.cheapest_merge(300 * 4096) == (100, 105)
    layout = Layout(4096, ((0, 1), (100, 2), (200, 3)))
    assert layout.cheapest_merge(201 * 4096) == (100, 201)
    assert layout.cheapest_merge(0) == (100, 201)
    merged = layout.merged(100, 201, 9)
    assert merged.ranges == ((0, 1), (100, 9))


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, []),
        (5, 10, [Span(0, 5, 15)]),
        (4090, 6, [Span(0, 4090, 4096)]),
        (4090, 7, [Span(0, 4090, 4096), Span(1, 0, 1)]),
        (4096, 8192, [Span(1, 0, 4096), Span(2, 0, 4096)]),
    ],
)
def test_spans(offset: int, length: int, expected: list[Span]) -> None:
    assert list(spans(offset, length, 4096)) == expected
