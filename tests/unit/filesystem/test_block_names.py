"""Names of blocks: which versions are part of a file. Sentence by sentence."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.crypto.digest import Digest
from bftfs.filesystem.attributes import Layout
from bftfs.filesystem.block_names import (
    BASE_BYTES,
    NO_VERSION,
    OVERTAKEN,
    PAGE,
    BlockName,
    CoveredBlock,
    base_of,
    decode_name,
    grow,
    key_of_block,
    name_at,
    names_in,
)
from bftfs.filesystem.block_names import name_blocks as name_blocks_within
from bftfs.filesystem.inode import Writing
from bftfs.identifiers import ClientId, ObjectKind
from bftfs.query_update.object_type import Caller, Refusal
from bftfs.read_write.timestamp import BlockTimestamp
from tests.builders import Overlay, SortedDict
from tests.unit.filesystem.world import fresh

LAYOUT = Layout(4096)
NEWER = LAYOUT.cut(1, 7)
name_blocks = partial(name_blocks_within, size=limits.FILE_BYTES)
ALICE, BOB = ClientId(b"a" * 16), ClientId(b"b" * 16)


def state() -> Any:
    return Overlay(fresh(ObjectKind.INODE), SortedDict())


def caller(client: ClientId = ALICE, time_us: int = 100) -> Caller:
    return Caller(client, 0, 0, (), time_us)


def version(number: int, time_us: int, value: bytes = b"v") -> CoveredBlock:
    return CoveredBlock(number, time_us, Digest(value * 32))


def name(state: Any, number: int) -> tuple[int, int, ClientId]:
    found = name_at(state, number)
    assert found is not None
    return found.incarnation, found.timestamp.time, found.timestamp.client


def test_a_version_is_its_clients_whoever_wrote_it() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5), version(3, 6)], caller(BOB))
    assert name(file, 0) == (0, 5, BOB)
    assert name(file, 3) == (0, 6, BOB)
    assert name_at(file, 1) is None


def test_a_version_is_named_by_an_update_that_is_later() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 100)], caller(time_us=100))
    with pytest.raises(Refusal) as refusal:
        name_blocks(file, LAYOUT, [version(0, 101)], caller(time_us=100))
    assert refusal.value.code == errno.EINVAL


def test_a_version_that_nodes_may_have_collected_is_not_named() -> None:
    latest_us = 5 + limits.COVERED_WITHIN_US
    name_blocks(state(), LAYOUT, [version(0, 5)], caller(time_us=latest_us))
    with pytest.raises(Refusal) as refusal:
        name_blocks(state(), LAYOUT, [version(0, 5)], caller(time_us=latest_us + 1))
    assert refusal.value.code == errno.EAGAIN


@pytest.mark.parametrize("times", [(5, 6), (6, 5)])
def test_of_two_versions_the_later_is_named(times: tuple[int, int]) -> None:
    file = state()
    behind = [
        name_blocks(file, LAYOUT, [version(0, time_us)], caller(client))
        for time_us, client in zip(times, (ALICE, BOB), strict=True)
    ]
    assert behind == [(), () if times == (5, 6) else (0,)]  # and the other's writer is told
    assert name(file, 0) == (0, 6, BOB if times == (5, 6) else ALICE)


def test_a_version_may_be_named_again() -> None:
    file = state()
    for _ in range(2):
        assert name_blocks(file, LAYOUT, [version(0, 5)], caller()) == ()


def test_what_was_cut_off_gives_way_to_what_is_written_then() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 9), version(1, 9)], caller())
    name_blocks(file, NEWER, [version(0, 8), version(1, 8)], caller(BOB))
    assert name(file, 0) == (0, 9, ALICE)
    assert name(file, 1) == (7, 8, BOB)


def test_names_are_listed_by_their_numbers() -> None:
    file = state()
    numbers = [0, 1, PAGE - 1, PAGE, 5 * PAGE, limits.FILE_BYTES // 4096 - 1]
    name_blocks(file, LAYOUT, [version(number, number % 99) for number in numbers], caller())
    stored = SortedDict(file.delta)
    file = Overlay(file.object, stored)
    for first in range(0, 6 * PAGE, PAGE):
        page = names_in(file, first, first + PAGE)
        assert [number for number, _ in page] == [
            number for number in numbers if first <= number < first + PAGE
        ]
        assert all(decode_name(stored) == name_at(file, number) for number, stored in page)
    assert all(len(key_of_block(number)) <= limits.STATE_KEY_BYTES for number in numbers)


# --- bases ------------------------------------------------------------------------------------


def merged(base: bytes | None, time_us: int = 50, number: int = 0) -> CoveredBlock:
    return CoveredBlock(number, time_us, Digest(b"m" * 32), base)


def test_what_was_merged_on_the_named_version_is_named() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5)], caller())
    assert name_blocks(file, LAYOUT, [merged(base_of(name_at(file, 0)))], caller(BOB)) == ()
    assert name(file, 0) == (0, 50, BOB)


def test_what_was_merged_on_another_version_is_refused() -> None:
    file = state()
    old = base_of(BlockName(0, BlockTimestamp(4, BOB, Digest(b"o" * 32))))
    name_blocks(file, LAYOUT, [version(0, 5)], caller())
    for base in (old, NO_VERSION):
        with pytest.raises(Refusal) as refusal:
            name_blocks(file, LAYOUT, [merged(base)], caller(BOB))
        assert refusal.value.code == OVERTAKEN
    assert name(file, 0) == (0, 5, ALICE)


def test_where_there_was_no_version_there_must_be_none() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(1, 5)], caller())
    name_blocks(file, LAYOUT, [merged(NO_VERSION)], caller())
    name_blocks(file, NEWER, [merged(NO_VERSION, number=1)], caller())  # it was cut off
    assert name(file, 1) == (7, 50, ALICE)
    with pytest.raises(Refusal) as refusal:
        name_blocks(file, LAYOUT, [merged(b"v" * BASE_BYTES, number=2)], caller())
    assert refusal.value.code == OVERTAKEN


def test_what_is_named_already_was_merged_before() -> None:
    file = state()
    for _ in range(2):
        assert name_blocks(file, LAYOUT, [merged(NO_VERSION)], caller()) == ()


def test_requests_of_before_there_were_bases_mean_what_they_meant() -> None:
    """Nodes invoke them again, when they finish or rebuild a version."""
    old = msgspec.msgpack.encode([9, 7, 8, [None] * 5, [[0, 6, b"v" * 32]]])
    writing = msgspec.msgpack.decode(old, type=Writing)
    assert writing.appended_to is None
    assert writing.blocks == (version(0, 6),)
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5)], caller())
    assert name_blocks(file, LAYOUT, writing.blocks, caller(BOB)) == ()
    assert name(file, 0) == (0, 6, BOB)


def test_bases_are_bounded() -> None:
    long = msgspec.msgpack.encode([0, 6, b"v" * 32, b"v" * (BASE_BYTES + 1)])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(long, type=CoveredBlock)


# --- the end of the file ---------------------------------------------------------------------


def test_nothing_behind_the_end_is_named() -> None:
    file = state()
    name_blocks_within(file, LAYOUT, [version(0, 5), version(1, 5)], caller(), size=4097)
    for size in (0, 4095, 4096):
        with pytest.raises(Refusal) as refusal:
            name_blocks_within(file, LAYOUT, [version(1, 6)], caller(), size=size)
        assert refusal.value.code == errno.EINVAL
    assert name(file, 1) == (0, 5, ALICE)


def valid(state: Any, number: int) -> int | None:
    found = name_at(state, number)
    assert found is not None
    return found.valid


def test_when_a_file_grows_past_a_block_no_more_of_it_counts() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5), version(1, 5)], caller())
    grow(file, LAYOUT, 4096 + 10, ())
    assert (valid(file, 0), valid(file, 1)) == (None, 10)
    assert name(file, 1) == (0, 5, ALICE)
    grow(file, LAYOUT, 4096 + 20, ())
    assert valid(file, 1) == 10
    assert name_blocks(file, LAYOUT, [version(1, 4)], caller()) == (1,)
    assert name_blocks(file, LAYOUT, [version(1, 5)], caller()) == ()
    assert valid(file, 1) == 10
    name_blocks(file, LAYOUT, [version(1, 6)], caller())
    assert valid(file, 1) is None


def test_all_of_a_block_counts_that_is_written_as_the_file_grows() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5)], caller())
    grow(file, LAYOUT, 10, [version(0, 5)])
    assert valid(file, 0) is None
    grow(file, LAYOUT, 10, [version(0, 4)], behind=(0,))
    assert valid(file, 0) == 10


def test_a_file_grows_from_the_end_of_a_block_or_from_nothing() -> None:
    file = state()
    name_blocks(file, LAYOUT, [version(0, 5)], caller())
    for size in (0, 4096, 8192 + 7):
        grow(file, LAYOUT, size, ())
    assert valid(file, 0) is None
