"""Holes: zeros that nobody wrote, in files of up to 1 TiB."""

import os
from pathlib import Path

import pytest

from tests.end_to_end.expectations import BLOCK, assert_contents, evict, opened, payload

TEBIBYTE = 1 << 40
CREATE = os.O_CREAT | os.O_RDWR | os.O_EXCL


@pytest.mark.parametrize("offset", [1, 4096, 5000, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77])
@pytest.mark.parametrize("start", [b"", b"start"])
def test_hole_before_the_data_reads_as_zeros(directory: Path, offset: int, start: bytes) -> None:
    start = start[:offset]
    with opened(directory / "file", CREATE) as descriptor:
        os.pwrite(descriptor, start, 0)
        os.pwrite(descriptor, b"data", offset)
    evict(directory / "file")
    assert_contents(directory / "file", start + bytes(offset - len(start)) + b"data")


def test_hole_filled_later(directory: Path) -> None:
    with opened(directory / "file", CREATE) as descriptor:
        os.pwrite(descriptor, b"end", 3 * BLOCK)
        os.fsync(descriptor)
        assert os.pread(descriptor, 5, BLOCK) == bytes(5)
        os.pwrite(descriptor, b"middle", BLOCK + 10)
    evict(directory / "file")
    expected = bytearray(3 * BLOCK + 3)
    expected[BLOCK + 10 : BLOCK + 16] = b"middle"
    expected[3 * BLOCK :] = b"end"
    assert_contents(directory / "file", bytes(expected))


def test_many_holes(directory: Path) -> None:
    expected = bytearray(1 << 20)
    with opened(directory / "file", CREATE) as descriptor:
        os.ftruncate(descriptor, len(expected))
        for number in range(40):
            offset = number * 25_013
            piece = payload(100, number)
            os.pwrite(descriptor, piece, offset)
            expected[offset : offset + 100] = piece
    evict(directory / "file")
    assert_contents(directory / "file", bytes(expected))


@pytest.mark.parametrize("end", [(1 << 31) + 1, (1 << 32) + 1, 100 * BLOCK * BLOCK, TEBIBYTE])
def test_data_at_the_end_of_a_huge_hole(directory: Path, end: int) -> None:
    data = payload(6000)
    start = end - len(data)
    with opened(directory / "file", CREATE) as descriptor:
        os.pwrite(descriptor, data, start)
    evict(directory / "file")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        assert os.fstat(descriptor).st_size == end
        assert os.pread(descriptor, 20_000, start) == data
        assert os.pread(descriptor, 5000, start - 5000) == bytes(5000)
        assert os.pread(descriptor, 5000, 0) == bytes(5000)
        assert os.pread(descriptor, 5000, end // 2) == bytes(5000)


def test_data_scattered_over_a_tebibyte(directory: Path) -> None:
    offsets = [0, 123_456_789, (1 << 35) - 50, (1 << 39) + 4095, TEBIBYTE - 100]
    with opened(directory / "file", CREATE) as descriptor:
        for offset in offsets:
            os.pwrite(descriptor, payload(100, offset), offset)
    evict(directory / "file")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        for offset in offsets:
            assert os.pread(descriptor, 100, offset) == payload(100, offset), offset


def test_extended_to_a_tebibyte_and_back(directory: Path) -> None:
    (directory / "file").write_bytes(b"small")
    os.truncate(directory / "file", TEBIBYTE)
    evict(directory / "file")
    with opened(directory / "file", os.O_RDWR) as descriptor:
        assert os.fstat(descriptor).st_size == TEBIBYTE
        assert os.pread(descriptor, 10, 0) == b"small" + bytes(5)
        assert os.pread(descriptor, 100, TEBIBYTE - 10) == bytes(10)
        os.pwrite(descriptor, b"last", TEBIBYTE - 4)
        os.ftruncate(descriptor, 7)
    assert_contents(directory / "file", b"small\0\0")
    os.truncate(directory / "file", TEBIBYTE)
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 10, TEBIBYTE - 10) == bytes(10), "old data came back"


def test_file_with_data_says_that_it_occupies_blocks(directory: Path) -> None:
    """tar takes a file of no blocks for one hole, and does not read it."""
    (directory / "file").write_bytes(payload(100_000))
    evict(directory / "file")
    assert (directory / "file").stat().st_blocks > 0
