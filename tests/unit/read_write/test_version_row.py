"""A version's row: rows of all times are read, and what outlives a rewriting."""

from __future__ import annotations

import pytest

from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.read_write import version_row
from bftfs.read_write.version_row import COLLECTED_BELOW, VERIFIED, checksum_of, verified_us

CHECKSUM = CrossChecksum(bytes(range(192)))
NOW_US = 1_763_740_800_000_000


def test_the_time_of_verification_is_kept_with_the_flag() -> None:
    row = version_row.verified(CHECKSUM, NOW_US, before=version_row.unverified(CHECKSUM))
    assert row[0] & VERIFIED
    assert (checksum_of(row), verified_us(row)) == (CHECKSUM, NOW_US)
    marked = version_row.with_versions_collected_below(row)
    assert marked[0] & COLLECTED_BELOW
    assert (checksum_of(marked), verified_us(marked)) == (CHECKSUM, NOW_US)


@pytest.mark.parametrize("flags", [0, VERIFIED, COLLECTED_BELOW, VERIFIED | COLLECTED_BELOW])
def test_rows_that_do_not_say_when_are_read(flags: int) -> None:
    row = bytes((flags,)) + CHECKSUM
    assert (checksum_of(row), verified_us(row)) == (CHECKSUM, 0)


def test_collected_below_outlives_the_rest_of_a_row() -> None:
    before = version_row.with_versions_collected_below(version_row.unverified(CHECKSUM))
    assert version_row.verified(CHECKSUM, NOW_US, before=before)[0] & COLLECTED_BELOW
    assert version_row.unverified(CHECKSUM, before=before)[0] == COLLECTED_BELOW


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x80" + bytes(7)])
def test_a_damaged_time_is_one_that_a_message_can_tell(damage: bytes) -> None:
    row = version_row.verified(CHECKSUM, NOW_US)[:-8] + damage
    assert verified_us(row) == (1 << 63) - 1
