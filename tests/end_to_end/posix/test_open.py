"""open(2): which flags make, empty, refuse or find a file."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    ALICE,
    act_as,
    assert_contents,
    fails_with,
    needs_root,
    opened,
)

CREATE = os.O_CREAT | os.O_RDWR
EXCLUSIVE = CREATE | os.O_EXCL


@pytest.mark.parametrize(
    ("umask", "asked", "given"),
    [(0o022, 0o666, 0o644), (0o027, 0o777, 0o750), (0o000, 0o666, 0o666), (0o077, 0o444, 0o400)],
)
def test_new_file_is_empty_and_has_the_mode_less_the_umask(
    directory: Path, umask: int, asked: int, given: int
) -> None:
    os.umask(umask)
    with opened(directory / "new", CREATE, asked) as descriptor:
        status = os.fstat(descriptor)
    assert stat.S_ISREG(status.st_mode)
    assert oct(stat.S_IMODE(status.st_mode)) == oct(given)
    assert status.st_size == 0
    assert status.st_nlink == 1
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_create_opens_what_exists_without_changing_it(directory: Path) -> None:
    (directory / "file").write_bytes(b"old")
    (directory / "file").chmod(0o600)
    with opened(directory / "file", CREATE, 0o777) as descriptor:
        assert os.read(descriptor, 10) == b"old"
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling"])
def test_exclusive_create_refuses_whatever_has_the_name(directory: Path, kind: str) -> None:
    (directory / "file").write_bytes(b"old")
    (directory / "directory").mkdir()
    (directory / "symlink").symlink_to("file")
    (directory / "dangling").symlink_to("nowhere")
    with fails_with(errno.EEXIST):
        os.open(directory / kind, EXCLUSIVE)
    assert not (directory / "nowhere").exists()


def test_exclusive_create_makes_a_new_file(directory: Path) -> None:
    with opened(directory / "new", EXCLUSIVE) as descriptor:
        os.write(descriptor, b"x")
    assert_contents(directory / "new", b"x")


def test_create_through_a_dangling_symlink_makes_its_target(directory: Path) -> None:
    (directory / "symlink").symlink_to("target")
    with opened(directory / "symlink", CREATE) as descriptor:
        os.write(descriptor, b"through")
    assert_contents(directory / "target", b"through")


def test_truncating_open_empties(directory: Path) -> None:
    (directory / "file").write_bytes(b"old contents")
    with opened(directory / "file", os.O_WRONLY | os.O_TRUNC) as descriptor:
        assert os.fstat(descriptor).st_size == 0
        os.write(descriptor, b"new")
    assert_contents(directory / "file", b"new")


def test_truncating_open_is_seen_by_who_has_the_file_open(directory: Path) -> None:
    (directory / "file").write_bytes(b"old contents")
    with opened(directory / "file", os.O_RDONLY) as reader:
        assert os.pread(reader, 3, 0) == b"old"
        os.close(os.open(directory / "file", os.O_WRONLY | os.O_TRUNC))
        assert os.fstat(reader).st_size == 0
        assert os.pread(reader, 3, 0) == b""


@pytest.mark.parametrize(
    ("path", "flags", "number"),
    [
        ("missing", os.O_RDONLY, errno.ENOENT),
        ("missing/file", CREATE, errno.ENOENT),
        ("file/below", os.O_RDONLY, errno.ENOTDIR),
        ("file/below", CREATE, errno.ENOTDIR),
        ("file/", os.O_RDONLY, errno.ENOTDIR),
        ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("new/", CREATE, errno.EISDIR),
        ("directory", os.O_WRONLY, errno.EISDIR),
        ("directory", os.O_RDWR, errno.EISDIR),
        ("directory", CREATE, errno.EISDIR),
        ("symlink", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("dangling", os.O_RDONLY, errno.ENOENT),
        ("", os.O_RDONLY, errno.ENOENT),
    ],
)
def test_refusals(directory: Path, path: str, flags: int, number: int) -> None:
    (directory / "file").write_bytes(b"")
    (directory / "directory").mkdir()
    (directory / "symlink").symlink_to("file")
    (directory / "dangling").symlink_to("nowhere")
    with fails_with(number):
        os.open(f"{directory}/{path}" if path else "", flags)


def test_descriptor_does_only_what_it_was_opened_for(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with opened(directory / "file", os.O_WRONLY) as writer, fails_with(errno.EBADF):
        os.read(writer, 1)
    with opened(directory / "file", os.O_RDONLY) as reader, fails_with(errno.EBADF):
        os.write(reader, b"x")
    assert_contents(directory / "file", b"data")


@needs_root
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o444])
def test_creator_may_write_what_it_creates_read_only(directory: Path, mode: int) -> None:
    """git makes its objects with mode 0444, and then writes them."""
    directory.chmod(0o777)

    def create() -> None:
        with opened(directory / "object", EXCLUSIVE, mode) as descriptor:
            os.write(descriptor, b"written")
            os.fsync(descriptor)
            os.pwrite(descriptor, b"W", 0)

    act_as(ALICE, create)
    assert_contents(directory / "object", b"Written")


@needs_root
def test_permission_is_decided_when_a_file_is_opened(directory: Path) -> None:
    """Who has a file open keeps what it may do, whatever becomes of the mode."""
    directory.chmod(0o777)

    def write_after_chmod() -> None:
        with opened(directory / "file", EXCLUSIVE) as descriptor:
            os.write(descriptor, b"before ")
            os.fchmod(descriptor, 0)
            os.write(descriptor, b"after")
            os.ftruncate(descriptor, 9)
            os.fsync(descriptor)
            assert os.pread(descriptor, 20, 0) == b"before af"

    act_as(ALICE, write_after_chmod)
    assert_contents(directory / "file", b"before af")


def test_many_files_open_at_once(directory: Path) -> None:
    descriptors = [os.open(directory / str(number), EXCLUSIVE) for number in range(200)]
    try:
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, str(number).encode())
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == str(number).encode()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_one_file_opened_many_times(directory: Path) -> None:
    (directory / "file").write_bytes(b"x")
    descriptors = [os.open(directory / "file", os.O_RDWR) for _ in range(200)]
    try:
        os.pwrite(descriptors[0], b"seen by all", 0)
        assert {os.pread(descriptor, 20, 0) for descriptor in descriptors} == {b"seen by all"}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_relative_to_a_directory_descriptor(directory: Path) -> None:
    (directory / "below").mkdir()
    with opened(directory / "below", os.O_RDONLY | os.O_DIRECTORY) as parent:
        os.close(os.open("file", EXCLUSIVE, dir_fd=parent))
        assert stat.S_ISREG(os.stat("file", dir_fd=parent).st_mode)
        (directory / "below").rename(directory / "moved")
        os.unlink("file", dir_fd=parent)
    assert list((directory / "moved").iterdir()) == []


def test_opened_as_a_path_only(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    with opened(directory / "file", os.O_PATH) as descriptor:
        assert os.fstat(descriptor).st_size == 4
        with fails_with(errno.EBADF):
            os.read(descriptor, 1)
