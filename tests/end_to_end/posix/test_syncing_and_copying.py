"""fsync(2) and its relatives; copy_file_range(2), sendfile(2), and the programs that copy."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import (
    BLOCK,
    assert_contents,
    evict,
    opened,
    payload,
    program,
    works_or_fails_with,
)

CREATE = os.O_CREAT | os.O_RDWR | os.O_EXCL
SIZE = 2 * BLOCK + 777


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync, linux.sync_file_system])
class TestSyncing:
    """Each must succeed wherever it may be called."""

    def test_file(self, directory: Path, sync: Callable[[int], None]) -> None:
        with opened(directory / "file", CREATE) as descriptor:
            sync(descriptor)
            os.write(descriptor, payload(10_000))
            sync(descriptor)
            sync(descriptor)
            os.write(descriptor, b"more")
            sync(descriptor)
        assert_contents(directory / "file", payload(10_000) + b"more")

    def test_file_that_is_open_for_reading(
        self, directory: Path, sync: Callable[[int], None]
    ) -> None:
        (directory / "file").write_bytes(b"data")
        with opened(directory / "file", os.O_RDONLY) as descriptor:
            sync(descriptor)

    def test_directory(self, directory: Path, sync: Callable[[int], None]) -> None:
        (directory / "file").touch()
        with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            sync(descriptor)

    def test_deleted_file(self, directory: Path, sync: Callable[[int], None]) -> None:
        with opened(directory / "file", CREATE) as descriptor:
            os.write(descriptor, b"data")
            (directory / "file").unlink()
            sync(descriptor)
            assert os.pread(descriptor, 10, 0) == b"data"


class TestCopying:
    """Within the file system, out of it, and into it."""

    def test_range_within(self, directory: Path) -> None:
        (directory / "source").write_bytes(payload(SIZE))
        with (
            opened(directory / "source", os.O_RDONLY) as source,
            opened(directory / "target", CREATE) as target,
        ):
            done = 0
            while count := os.copy_file_range(source, target, SIZE - done):
                done += count
        assert done == SIZE
        evict(directory / "target")
        assert_contents(directory / "target", payload(SIZE))

    def test_range_at_offsets(self, directory: Path) -> None:
        (directory / "source").write_bytes(payload(SIZE))
        (directory / "target").write_bytes(b"t" * SIZE)
        with (
            opened(directory / "source", os.O_RDONLY) as source,
            opened(directory / "target", os.O_RDWR) as target,
        ):
            count = os.copy_file_range(source, target, 5000, BLOCK - 100, BLOCK + 33)
            assert 0 < count <= 5000
        expected = bytearray(b"t" * SIZE)
        expected[BLOCK + 33 : BLOCK + 33 + count] = payload(SIZE)[BLOCK - 100 :][:count]
        assert_contents(directory / "target", bytes(expected))

    def test_range_between_file_systems(self, directory: Path, outside: Path) -> None:
        """Or EXDEV, upon which every program falls back to read and write."""
        (outside / "source").write_bytes(payload(SIZE))
        with (
            opened(outside / "source", os.O_RDONLY) as source,
            opened(directory / "target", CREATE) as target,
            works_or_fails_with(errno.EXDEV),
        ):
            count = os.copy_file_range(source, target, SIZE)
            assert os.pread(target, SIZE, 0) == payload(SIZE)[:count]

    def test_sendfile(self, directory: Path, outside: Path) -> None:
        (outside / "source").write_bytes(payload(SIZE))
        for origin, goal in (
            (outside / "source", directory / "in"),
            (directory / "in", directory / "within"),
            (directory / "within", outside / "out"),
        ):
            with opened(origin, os.O_RDONLY) as source, opened(goal, CREATE) as target:
                done = 0
                while count := os.sendfile(target, source, done, SIZE):
                    done += count
            assert_contents(goal, payload(SIZE))

    def test_splice(self, directory: Path) -> None:
        (directory / "source").write_bytes(payload(SIZE))
        reading, writing = os.pipe()
        with (
            opened(directory / "source", os.O_RDONLY) as source,
            opened(directory / "target", CREATE) as target,
        ):
            while count := os.splice(source, writing, 65_536):
                while count:
                    count -= os.splice(reading, target, count)
        os.close(reading)
        os.close(writing)
        assert_contents(directory / "target", payload(SIZE))

    @pytest.mark.parametrize(
        "options",
        [[], ["--sparse=always"], ["--sparse=never"], ["--reflink=auto"], ["-a"]],
        ids=lambda options: " ".join(options) or "plain",
    )
    def test_cp(self, directory: Path, options: list[str]) -> None:
        expected = payload(BLOCK) + bytes(BLOCK) + payload(1000)
        (directory / "source").write_bytes(expected)
        subprocess.run(
            [program("cp"), *options, directory / "source", directory / "target"], check=True
        )
        assert_contents(directory / "target", expected)

    def test_python_s_copy_keeps_times_and_attributes(self, directory: Path, outside: Path) -> None:
        (outside / "source").write_bytes(payload(SIZE))
        (outside / "source").chmod(0o640)
        os.utime(outside / "source", ns=(10**18 + 1, 10**18 + 2))
        shutil.copy2(outside / "source", directory / "copy")
        status = (directory / "copy").stat()
        assert status.st_mtime_ns == 10**18 + 2
        assert oct(status.st_mode & 0o777) == oct(0o640)
        assert_contents(directory / "copy", payload(SIZE))

    def test_move_between_file_systems(self, directory: Path, outside: Path) -> None:
        (outside / "tree" / "below").mkdir(parents=True)
        (outside / "tree" / "below" / "file").write_bytes(b"data")
        subprocess.run([program("mv"), outside / "tree", directory], check=True)
        assert_contents(directory / "tree" / "below" / "file", b"data")
        assert not (outside / "tree").exists()
