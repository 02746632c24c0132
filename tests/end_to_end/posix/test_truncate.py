"""truncate(2): what is cut off never comes back."""

import errno
import os
import time
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    ALICE,
    BLOCK,
    act_as,
    assert_contents,
    evict,
    fails_with,
    needs_root,
    opened,
    payload,
    works_or_fails_with,
)

SIZE = 3 * BLOCK + 1000
CUTS = [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, SIZE - 1]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("cached", [True, False])
def test_extending_after_shrinking_gives_zeros(directory: Path, cut: int, cached: bool) -> None:
    data = payload(SIZE)
    path = directory / "file"
    path.write_bytes(data)
    if not cached:
        evict(path)
    os.truncate(path, cut)
    if not cached:
        evict(path)
    assert_contents(path, data[:cut])
    os.truncate(path, SIZE)
    assert_contents(path, data[:cut] + bytes(SIZE - cut))
    evict(path)
    assert_contents(path, data[:cut] + bytes(SIZE - cut))


@pytest.mark.parametrize("cut", CUTS)
def test_writing_beyond_the_new_end_gives_zeros_between(directory: Path, cut: int) -> None:
    data = payload(SIZE)
    path = directory / "file"
    path.write_bytes(data)
    with opened(path, os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, cut)
        os.pwrite(descriptor, b"end", SIZE)
    expected = data[:cut] + bytes(SIZE - cut) + b"end"
    assert_contents(path, expected)
    evict(path)
    assert_contents(path, expected)


def test_emptied_on_open_then_extended(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(payload(SIZE))
    evict(path)
    with opened(path, os.O_RDWR | os.O_TRUNC) as descriptor:
        os.ftruncate(descriptor, SIZE)
        assert os.pread(descriptor, SIZE, 0) == bytes(SIZE)
    evict(path)
    assert_contents(path, bytes(SIZE))


def test_shrunk_and_extended_again_and_again(directory: Path) -> None:
    path = directory / "file"
    expected = bytearray()
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        for number in range(30):
            cut = (number * 37_501) % (2 * BLOCK)
            os.ftruncate(descriptor, cut)
            expected[cut:] = b""
            expected.extend(bytes(cut - len(expected)))
            piece = payload(900, number)
            start = (number * 91_003) % (3 * BLOCK)
            os.pwrite(descriptor, piece, start)
            expected.extend(bytes(max(0, start + 900 - len(expected))))
            expected[start : start + 900] = piece
            if number % 7 == 0:
                os.fsync(descriptor)
    evict(path)
    assert_contents(path, bytes(expected))


def test_extending_an_empty_file(directory: Path) -> None:
    (directory / "file").touch()
    os.truncate(directory / "file", 100_000)
    evict(directory / "file")
    assert_contents(directory / "file", bytes(100_000))


def test_unsynced_data_beyond_the_cut_is_gone(directory: Path) -> None:
    """Written, not yet pushed out, cut off, extended: zeros, in the cache and afterwards."""
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, payload(10_000))
        os.ftruncate(descriptor, 5)
        os.ftruncate(descriptor, 10_000)
        assert os.pread(descriptor, 10_000, 5) == bytes(9995)
    evict(path)
    assert_contents(path, payload(10_000)[:5] + bytes(9995))


def test_seen_through_open_descriptors(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(payload(SIZE))
    with opened(path, os.O_RDONLY) as reader:
        assert len(os.pread(reader, 100, BLOCK)) == 100
        os.truncate(path, 50)
        assert os.fstat(reader).st_size == 50
        assert os.pread(reader, 100, BLOCK) == b""
        assert os.pread(reader, 100, 0) == payload(SIZE)[:50]


@pytest.mark.parametrize("size", [0, 10, 20])
def test_sets_the_times(directory: Path, size: int) -> None:
    path = directory / "file"
    path.write_bytes(b"0123456789abcde")
    os.utime(path, ns=(10**18, 10**18))
    started = time.time()
    os.truncate(path, size)
    assert path.stat().st_mtime >= started - 0.1
    assert path.stat().st_ctime >= started - 0.1


def test_refusals(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with fails_with(errno.EISDIR):
        os.truncate(directory, 0)
    with fails_with(errno.ENOENT):
        os.truncate(directory / "missing", 0)
    with fails_with(errno.ENOTDIR):
        os.truncate(directory / "file" / "below", 0)
    with fails_with(errno.EINVAL):
        os.truncate(directory / "file", -1)
    with opened(directory / "file", os.O_RDONLY) as descriptor, fails_with(errno.EINVAL):
        os.ftruncate(descriptor, 0)
    assert_contents(directory / "file", b"data")


def test_larger_than_the_largest_file(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with works_or_fails_with(errno.EFBIG, errno.EINVAL):
        os.truncate(directory / "file", 1 << 62)
    os.truncate(directory / "file", 4)
    assert_contents(directory / "file", b"data")


@needs_root
def test_needs_permission_to_write(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"data")
    path.chmod(0o644)
    with fails_with(errno.EACCES):
        act_as(ALICE, lambda: os.truncate(path, 0))
    with fails_with(errno.EACCES):
        act_as(ALICE, lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))
    assert_contents(path, b"data")
