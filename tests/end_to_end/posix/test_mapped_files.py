"""mmap(2)."""

import errno
import mmap
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    BLOCK,
    assert_contents,
    evict,
    fails_with,
    opened,
    payload,
    program,
)

pytestmark = pytest.mark.isolated

SIZE = 2 * BLOCK + 5000


@pytest.fixture
def file(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(payload(SIZE))
    return path


@pytest.mark.parametrize("cached", [True, False])
def test_reading(file: Path, cached: bool) -> None:
    if not cached:
        evict(file)
    with (
        opened(file, os.O_RDONLY) as descriptor,
        mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[BLOCK - 3 : BLOCK + 3] == payload(SIZE)[BLOCK - 3 : BLOCK + 3]
        assert mapped[:] == payload(SIZE)


@pytest.mark.parametrize("end", ["msync", "close"])
def test_shared_write_reaches_the_file(file: Path, end: str) -> None:
    expected = bytearray(payload(SIZE))
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapped:
        for offset in (0, 4095, BLOCK - 2, 2 * BLOCK, SIZE - 4):
            mapped[offset : offset + 4] = b"MMAP"
            expected[offset : offset + 4] = b"MMAP"
        if end == "msync":
            mapped.flush()
            assert os.pread(descriptor, SIZE, 0) == expected
    assert_contents(file, bytes(expected))
    evict(file)
    assert_contents(file, bytes(expected))


def test_shared_write_is_read_at_once(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapped:
        mapped[10:15] = b"hello"
        assert os.pread(descriptor, 5, 10) == b"hello"
        os.pwrite(descriptor, b"WORLD", 10)
        assert mapped[10:15] == b"WORLD"


def test_private_write_stays_private(file: Path) -> None:
    with (
        opened(file, os.O_RDONLY) as descriptor,
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as mapped,
    ):
        mapped[:5] = b"local"
        assert mapped[:5] == b"local"
    evict(file)
    assert_contents(file, payload(SIZE))


def test_mapping_outlives_its_descriptor_and_the_name(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    with mmap.mmap(descriptor, 0) as mapped:
        os.close(descriptor)
        second = file.with_name("second")
        os.link(file, second)
        file.unlink()
        assert mapped[BLOCK : BLOCK + 100] == payload(SIZE)[BLOCK : BLOCK + 100]
        mapped[:5] = b"alive"
        mapped.flush()
    evict(second)
    assert second.read_bytes()[:5] == b"alive"


def test_mapping_of_a_deleted_file(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        file.unlink()
        with mmap.mmap(descriptor, 0) as mapped:
            mapped[:5] = b"alive"
            mapped.flush()
        assert os.pread(descriptor, 5, 0) == b"alive"


def test_grown_file_is_mapped_anew(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        for number in range(1, 20):
            os.ftruncate(descriptor, number * 10_000)
            with mmap.mmap(descriptor, 0) as mapped:
                assert mapped[-10:] == bytes(10)
                mapped[-10:] = b"%010d" % number
    evict(directory / "file")
    data = (directory / "file").read_bytes()
    for number in range(1, 20):
        assert data[number * 10_000 - 10 : number * 10_000] == b"%010d" % number


def test_random_pages(directory: Path) -> None:
    size = 1 << 20
    choice = random.Random(3)
    expected = bytearray(size)
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, size)
        with mmap.mmap(descriptor, size) as mapped:
            for _ in range(200):
                offset = choice.randrange(size - 100)
                piece = choice.randbytes(choice.randrange(1, 100))
                mapped[offset : offset + len(piece)] = piece
                expected[offset : offset + len(piece)] = piece
    evict(directory / "file")
    assert_contents(directory / "file", bytes(expected))


def test_hole_is_mapped_as_zeros(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"end", 10 * BLOCK)
        with mmap.mmap(descriptor, 0) as mapped:
            assert mapped[BLOCK : BLOCK + 4096] == bytes(4096)
            mapped[BLOCK : BLOCK + 4] = b"fill"
    evict(directory / "file")
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 6, BLOCK - 1) == b"\0fill\0"
        assert os.pread(descriptor, 3, 10 * BLOCK) == b"end"


def test_two_processes_share_a_mapping(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapped:
        child = os.fork()
        if child == 0:
            with opened(file, os.O_RDWR) as own, mmap.mmap(own, 0) as other:
                other[100:105] = b"child"
            os._exit(0)
        os.waitpid(child, 0)
        assert mapped[100:105] == b"child"


def test_write_needs_a_writable_descriptor(file: Path) -> None:
    with opened(file, os.O_RDONLY) as descriptor, fails_with(errno.EACCES):
        mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_program_runs_from_here(directory: Path) -> None:
    copy = directory / "true"
    shutil.copy(program("true"), copy)
    evict(copy)
    assert subprocess.run([copy], check=False).returncode == 0


def test_running_program_is_not_overwritten(directory: Path) -> None:
    copy = directory / "sleep"
    shutil.copy(program("sleep"), copy)
    running = subprocess.Popen([copy, "60"])
    try:
        with fails_with(errno.ETXTBSY):
            os.open(copy, os.O_WRONLY)
        copy.unlink()
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
