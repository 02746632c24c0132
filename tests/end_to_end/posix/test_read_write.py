"""read(2), write(2) and their relatives: every byte where it belongs."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import (
    BLOCK,
    assert_contents,
    evict,
    fails_with,
    opened,
    payload,
    works_or_fails_with,
)

CREATE = os.O_CREAT | os.O_RDWR | os.O_EXCL
SIZES = [0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 10 * BLOCK + 17]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(directory: Path, size: int) -> None:
    data = payload(size)
    (directory / "file").write_bytes(data)
    assert_contents(directory / "file", data)
    evict(directory / "file")
    assert (directory / "file").stat().st_size == size
    assert_contents(directory / "file", data)


@pytest.mark.parametrize("step", [1000, 4096, 65_537, BLOCK])
def test_written_piece_by_piece(directory: Path, step: int) -> None:
    data = payload(2 * BLOCK + 4321)
    with opened(directory / "file", CREATE) as descriptor:
        for start in range(0, len(data), step):
            assert os.write(descriptor, data[start : start + step]) == len(
                data[start : start + step]
            )
    evict(directory / "file")
    assert_contents(directory / "file", data)


def test_written_backwards(directory: Path) -> None:
    data = payload(3 * BLOCK + 100)
    with opened(directory / "file", CREATE) as descriptor:
        for start in reversed(range(0, len(data), 50_000)):
            os.pwrite(descriptor, data[start : start + 50_000], start)
    evict(directory / "file")
    assert_contents(directory / "file", data)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (1, 4096), (4095, 2), (BLOCK - 1, 2), (BLOCK, BLOCK), (BLOCK - 7, BLOCK + 14), (5, 9)],
)
@pytest.mark.parametrize("cached", [True, False])
def test_overwriting_changes_only_its_range(
    directory: Path, offset: int, length: int, cached: bool
) -> None:
    data = bytearray(payload(3 * BLOCK))
    (directory / "file").write_bytes(data)
    if not cached:
        evict(directory / "file")
    with opened(directory / "file", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"!" * length, offset)
    data[offset : offset + length] = b"!" * length
    evict(directory / "file")
    assert_contents(directory / "file", bytes(data))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 10), (100, BLOCK), (BLOCK - 3, 6), (2 * BLOCK, 50), (2 * BLOCK + 49, 10)],
)
def test_positioned_reads_leave_the_offset_alone(directory: Path, offset: int, length: int) -> None:
    data = payload(2 * BLOCK + 50)
    (directory / "file").write_bytes(data)
    evict(directory / "file")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, length, offset) == data[offset : offset + length]
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0


def test_reads_end_at_the_end(directory: Path) -> None:
    (directory / "file").write_bytes(b"0123456789")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 100, 7) == b"789"
        assert os.pread(descriptor, 100, 10) == b""
        assert os.pread(descriptor, 100, 1 << 40) == b""


def test_scattered_and_gathered(directory: Path) -> None:
    with opened(directory / "file", CREATE) as descriptor:
        assert os.writev(descriptor, [b"one ", b"two ", b"three"]) == 13
        assert os.pwritev(descriptor, [b"T", b"W"], 4) == 2
        first, second = bytearray(4), bytearray(20)
        assert os.preadv(descriptor, [first, second], 0) == 13
        assert first + second[:9] == b"one TWo three"


@pytest.mark.parametrize(
    ("whence", "distance", "result"),
    [(os.SEEK_SET, 4, 4), (os.SEEK_CUR, -3, 2), (os.SEEK_END, 0, 10), (os.SEEK_END, 5, 15)],
)
def test_seeking(directory: Path, whence: int, distance: int, result: int) -> None:
    (directory / "file").write_bytes(b"0123456789")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        os.lseek(descriptor, 5, os.SEEK_SET)
        assert os.lseek(descriptor, distance, whence) == result
        with fails_with(errno.EINVAL):
            os.lseek(descriptor, -20, os.SEEK_CUR)


def test_end_is_where_the_last_writer_put_it(directory: Path) -> None:
    """SEEK_END of one descriptor after writes through another."""
    with (
        opened(directory / "file", CREATE) as writer,
        opened(directory / "file", os.O_RDONLY) as reader,
    ):
        os.write(writer, b"x" * 5000)
        assert os.lseek(reader, 0, os.SEEK_END) == 5000
        assert os.fstat(reader).st_size == 5000


def test_written_data_is_read_at_once_through_another_descriptor(directory: Path) -> None:
    with (
        opened(directory / "file", CREATE) as writer,
        opened(directory / "file", os.O_RDONLY) as reader,
    ):
        for number in range(20):
            os.write(writer, b"%04d" % number)
            assert os.read(reader, 100) == b"%04d" % number


def test_append_goes_to_the_end_whatever_the_offset(directory: Path) -> None:
    (directory / "file").write_bytes(b"start ")
    with opened(directory / "file", os.O_WRONLY | os.O_APPEND) as descriptor:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"middle ")
        (directory / "file").open("ab").close()
        os.lseek(descriptor, 2, os.SEEK_SET)
        os.write(descriptor, b"end")
    assert_contents(directory / "file", b"start middle end")


def test_appends_through_two_descriptors_alternate(directory: Path) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with opened(directory / "file", flags) as one, opened(directory / "file", flags) as two:
        for number in range(50):
            os.write(one, b"<%d>" % number)
            os.write(two, b"[%d]" % number)
    assert_contents(directory / "file", b"".join(b"<%d>[%d]" % (n, n) for n in range(50)))


def _append_lines(path: Path, name: int) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        for number in range(50):
            os.write(descriptor, b"%d:%04d:%s\n" % (name, number, b"x" * 90))


def test_appends_by_processes_are_all_there_and_whole(directory: Path) -> None:
    path = directory / "log"
    path.touch()
    processes = [
        multiprocessing.get_context("fork").Process(target=_append_lines, args=(path, name))
        for name in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    evict(path)
    expected = {b"%d:%04d:%s" % (n, i, b"x" * 90) for n in range(4) for i in range(50)}
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(expected)
    assert set(lines) == expected


def test_write_sets_the_times(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**18, 10**18))
    before = path.stat()
    started = time.time()
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"y")
    after = path.stat()
    # The kernel's clock for file times is coarse: it may lie a tick behind.
    assert after.st_mtime >= started - 0.1
    assert after.st_ctime_ns >= before.st_ctime_ns
    assert after.st_mtime <= time.time() + 0.1
    assert after.st_size == 1


def test_times_do_not_change_after_close(directory: Path) -> None:
    """What stat says after close stays, also when cached data has been pushed out."""
    path = directory / "file"
    path.write_bytes(payload(BLOCK + 5))
    before = path.stat()
    evict(path)
    after = path.stat()
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns == before.st_ctime_ns


def test_reading_and_zero_length_writes_change_nothing(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"data")
    before = path.stat()
    with opened(path, os.O_RDWR) as descriptor:
        os.read(descriptor, 10)
        os.write(descriptor, b"")
        os.pwrite(descriptor, b"", 100)
    after = path.stat()
    assert after.st_size == 4
    assert after.st_mtime_ns == before.st_mtime_ns


def test_reading_a_directory_is_refused(directory: Path) -> None:
    with opened(directory, os.O_RDONLY) as descriptor, fails_with(errno.EISDIR):
        os.read(descriptor, 10)


def test_offset_beyond_every_file_is_refused(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with (
        opened(directory / "file", os.O_RDWR) as descriptor,
        fails_with(errno.EFBIG, errno.EINVAL),
    ):
        os.pwrite(descriptor, b"x", (1 << 63) - 1)
    assert_contents(directory / "file", b"data")


def test_offset_beyond_the_largest_file_does_no_harm(directory: Path) -> None:
    """It is refused at once, or when the data is pushed out; or the file may be that large."""
    path = directory / "file"
    path.write_bytes(b"data")
    with (
        works_or_fails_with(errno.EFBIG, errno.EINVAL, errno.EIO),
        opened(path, os.O_RDWR) as descriptor,
    ):
        os.pwrite(descriptor, b"x", 1 << 62)
        os.fsync(descriptor)
    os.truncate(path, 4)
    assert_contents(path, b"data")
    with opened(directory, os.O_RDONLY) as descriptor, works_or_fails_with(errno.EFBIG, errno.EIO):
        # An error of writing behind is told to the next syncfs as well; not to another test's.
        linux.sync_file_system(descriptor)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(directory: Path, flag: int) -> None:
    with opened(directory / "file", CREATE | flag) as descriptor:
        for number in range(5):
            os.pwrite(descriptor, payload(5000, number), number * 5000)
    assert_contents(directory / "file", b"".join(payload(5000, n) for n in range(5)))


def test_a_larger_file(directory: Path) -> None:
    """16 MiB: more than one request can hold."""
    data = payload(16 << 20)
    (directory / "file").write_bytes(data)
    evict(directory / "file")
    assert_contents(directory / "file", data)
