"""Calls that a FUSE file system may not get to see: what a program gets instead.

Each test names the answers that are as good as the full one: a call that is not supported must say
so by the error that programs know, and must change nothing.
"""

import errno
import fcntl
import mmap
import os
import select
from pathlib import Path

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


def test_fallocate_allocates_or_is_not_supported(directory: Path) -> None:
    with opened(directory / "file", CREATE) as descriptor:
        size = 0
        with works_or_fails_with(errno.EOPNOTSUPP):
            linux.allocate(descriptor, 0, 0, 10_000)
            size = 10_000
        assert os.fstat(descriptor).st_size == size
        assert os.pread(descriptor, 20_000, 0) == bytes(size)


def test_posix_fallocate_always_works(directory: Path) -> None:
    """The C library writes when the file system cannot allocate; no byte may change."""
    (directory / "file").write_bytes(payload(5000))
    with opened(directory / "file", os.O_RDWR) as descriptor:
        os.posix_fallocate(descriptor, 1000, BLOCK + 1000)
    evict(directory / "file")
    assert_contents(directory / "file", payload(5000) + bytes(BLOCK - 3000))


def test_hole_is_punched_or_punching_is_not_supported(directory: Path) -> None:
    expected = bytearray(payload(BLOCK))
    (directory / "file").write_bytes(expected)
    with (
        opened(directory / "file", os.O_RDWR) as descriptor,
        works_or_fails_with(errno.EOPNOTSUPP),
    ):
        linux.allocate(
            descriptor, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, 4096, 8192
        )
        expected[4096:12_288] = bytes(8192)
    evict(directory / "file")
    assert_contents(directory / "file", bytes(expected))


def test_seeking_for_data_never_skips_any(directory: Path) -> None:
    """Without knowledge of holes, all is data, and the one hole is behind the end."""
    end = 10 * BLOCK
    with opened(directory / "file", CREATE) as descriptor:
        os.pwrite(descriptor, b"start", 0)
        os.pwrite(descriptor, b"end", end - 3)
        os.fsync(descriptor)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
        assert 5 <= hole <= end
        data = os.lseek(descriptor, 100_000, os.SEEK_DATA)
        assert 100_000 <= data <= end - 3
        assert os.lseek(descriptor, end - 1, os.SEEK_HOLE) == end
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails_with(errno.ENXIO):
                os.lseek(descriptor, end, whence)


def test_ioctl_answers_or_is_no_ioctl_of_this_file(directory: Path) -> None:
    with (
        opened(directory / "file", CREATE) as descriptor,
        works_or_fails_with(errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS),
    ):
        fcntl.ioctl(descriptor, linux.FS_IOC_GETFLAGS, bytearray(8))


def test_nonsense_ioctl(directory: Path) -> None:
    with (
        opened(directory / "file", CREATE) as descriptor,
        fails_with(errno.ENOTTY, errno.ENOSYS),
    ):
        fcntl.ioctl(descriptor, 0xDEAD)


def test_clone_is_made_or_not_supported(directory: Path) -> None:
    (directory / "source").write_bytes(payload(10_000))
    with (
        opened(directory / "source", os.O_RDONLY) as source,
        opened(directory / "target", CREATE) as target,
        works_or_fails_with(errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL),
    ):
        fcntl.ioctl(target, linux.FICLONE, source)
        assert os.pread(target, 20_000, 0) == payload(10_000)


def test_nameless_file_is_made_or_not_supported(directory: Path) -> None:
    """O_TMPFILE; tempfile.TemporaryFile falls back to a name that it deletes."""
    with (
        works_or_fails_with(errno.EOPNOTSUPP, errno.EISDIR),
        opened(directory, os.O_TMPFILE | os.O_RDWR, 0o600) as descriptor,
    ):
        os.write(descriptor, b"data")
        assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(directory) == []


def test_direct_input_and_output_work_or_are_refused(directory: Path) -> None:
    """O_DIRECT, with a buffer that is aligned as devices want it."""
    (directory / "file").write_bytes(payload(BLOCK))
    with works_or_fails_with(errno.EINVAL):
        with (
            opened(directory / "file", os.O_RDWR | os.O_DIRECT) as descriptor,
            mmap.mmap(-1, 8192) as buffer,
        ):
            assert os.preadv(descriptor, [buffer], 4096) == 8192
            assert buffer[:] == payload(BLOCK)[4096:12_288]
            buffer[:] = b"d" * 8192
            assert os.pwritev(descriptor, [buffer], 0) == 8192
        with opened(directory / "file", os.O_RDONLY) as ordinary:
            assert os.pread(ordinary, 8192, 0) == b"d" * 8192, "the cache kept the old data"
        evict(directory / "file")
        assert_contents(directory / "file", b"d" * 8192 + payload(BLOCK)[8192:])


def test_polled_file_is_ready(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with opened(directory / "file", os.O_RDWR) as descriptor:
        assert select.select([descriptor], [descriptor], [], 5) == ([descriptor], [descriptor], [])


def test_advice_is_accepted(directory: Path) -> None:
    (directory / "file").write_bytes(payload(BLOCK))
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        for advice in (
            os.POSIX_FADV_NORMAL,
            os.POSIX_FADV_SEQUENTIAL,
            os.POSIX_FADV_RANDOM,
            os.POSIX_FADV_WILLNEED,
            os.POSIX_FADV_DONTNEED,
        ):
            os.posix_fadvise(descriptor, 0, 0, advice)
        assert os.pread(descriptor, BLOCK, 0) == payload(BLOCK)


def test_limits_are_told(directory: Path) -> None:
    assert os.pathconf(directory, "PC_NAME_MAX") == 255
    assert os.pathconf(directory, "PC_LINK_MAX") >= 127
