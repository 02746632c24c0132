"""link(2), symlink(2), unlink(2): names and what they name."""

import errno
import os
import stat
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
)


def test_link_is_another_name_of_the_same_file(directory: Path) -> None:
    (directory / "one").write_bytes(b"data")
    before = (directory / "one").stat()
    (directory / "two").hardlink_to(directory / "one")
    one, two = (directory / "one").stat(), (directory / "two").stat()
    assert one.st_ino == two.st_ino
    assert one.st_nlink == two.st_nlink == 2
    assert one.st_ctime_ns >= before.st_ctime_ns
    assert one.st_mtime_ns == before.st_mtime_ns
    (directory / "two").write_bytes(b"changed")
    assert_contents(directory / "one", b"changed")
    (directory / "one").chmod(0o600)
    assert stat.S_IMODE((directory / "two").stat().st_mode) == 0o600


def test_file_lives_as_long_as_one_of_its_names(directory: Path) -> None:
    names = [directory / f"name-{number}" for number in range(20)]
    names[0].write_bytes(b"data")
    for name in names[1:]:
        name.hardlink_to(names[0])
    for left in range(len(names), 0, -1):
        last = names[left - 1]
        assert last.stat().st_nlink == left
        assert_contents(last, b"data")
        last.unlink()
    assert list(directory.iterdir()) == []


def test_link_between_directories(directory: Path) -> None:
    (directory / "a").mkdir()
    (directory / "b").mkdir()
    (directory / "a" / "file").write_bytes(b"data")
    (directory / "b" / "file").hardlink_to(directory / "a" / "file")
    (directory / "a" / "file").unlink()
    (directory / "a").rmdir()
    assert_contents(directory / "b" / "file", b"data")


def test_link_to_a_symlink_itself(directory: Path) -> None:
    (directory / "symlink").symlink_to("target")
    os.link(directory / "symlink", directory / "second", follow_symlinks=False)
    assert (directory / "second").readlink() == Path("target")
    assert (directory / "symlink").lstat().st_nlink == 2


@pytest.mark.parametrize(
    ("source", "target", "number"),
    [
        ("file", "other", errno.EEXIST),
        ("file", "directory", errno.EEXIST),
        ("file", "symlink", errno.EEXIST),
        ("directory", "new", errno.EPERM),
        ("missing", "new", errno.ENOENT),
        ("file", "missing/new", errno.ENOENT),
        ("file", "other/new", errno.ENOTDIR),
        ("file", "n" * 256, errno.ENAMETOOLONG),
    ],
)
def test_link_refusals(directory: Path, source: str, target: str, number: int) -> None:
    (directory / "file").touch()
    (directory / "other").touch()
    (directory / "directory").mkdir()
    (directory / "symlink").symlink_to("nowhere")
    with fails_with(number):
        os.link(directory / source, directory / target)
    assert (directory / "file").stat().st_nlink == 1


def test_link_by_descriptor(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"data")
        linux.link_descriptor(descriptor, directory / "second")
    assert_contents(directory / "second", b"data")


def test_link_to_a_deleted_file_is_refused(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        (directory / "file").unlink()
        with fails_with(errno.ENOENT):
            linux.link_descriptor(descriptor, directory / "back")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("missing", errno.ENOENT),
        ("directory", errno.EISDIR),
        ("file/below", errno.ENOTDIR),
        ("file/", errno.ENOTDIR),
        ("missing/file", errno.ENOENT),
    ],
)
def test_unlink_refusals(directory: Path, path: str, number: int) -> None:
    (directory / "file").touch()
    (directory / "directory").mkdir()
    with fails_with(number):
        os.unlink(f"{directory}/{path}")


class TestSymlinks:
    """symlink(2), readlink(2), and following."""

    @pytest.mark.parametrize("length", [1, 59, 60, 255, 1024, 4095])
    def test_target_of_any_length(self, directory: Path, length: int) -> None:
        target = ("long/" * (length // 5 + 1))[:length]
        (directory / "symlink").symlink_to(target)
        assert os.readlink(directory / "symlink") == target
        status = (directory / "symlink").lstat()
        assert stat.S_ISLNK(status.st_mode)
        assert status.st_size == length

    def test_target_that_is_too_long(self, directory: Path) -> None:
        with fails_with(errno.ENAMETOOLONG):
            os.symlink("x" * 4096, directory / "symlink")

    def test_target_of_any_content(self, directory: Path) -> None:
        target = b"\xff\xfe new\nline \xc3\xa9 //../."
        os.symlink(target, os.fsencode(directory / "symlink"))
        assert os.readlink(os.fsencode(directory / "symlink")) == target

    def test_empty_target_is_refused(self, directory: Path) -> None:
        with fails_with(errno.ENOENT):
            os.symlink("", directory / "symlink")

    def test_name_that_is_taken(self, directory: Path) -> None:
        (directory / "file").touch()
        with fails_with(errno.EEXIST):
            (directory / "file").symlink_to("target")

    def test_dangling(self, directory: Path) -> None:
        (directory / "symlink").symlink_to("nowhere")
        with fails_with(errno.ENOENT):
            (directory / "symlink").read_bytes()
        assert (directory / "symlink").is_symlink()

    def test_followed_to_files_and_through_directories(self, directory: Path) -> None:
        (directory / "real" / "below").mkdir(parents=True)
        (directory / "real" / "below" / "file").write_bytes(b"data")
        (directory / "way").symlink_to("real/below")
        (directory / "absolute").symlink_to(directory / "way" / "file")
        (directory / "real" / "up").symlink_to("../way/../below/file")
        for path in ("way/file", "absolute", "real/up"):
            assert_contents(directory / path, b"data")

    def test_loops_end(self, directory: Path) -> None:
        (directory / "self").symlink_to("self")
        (directory / "one").symlink_to("two")
        (directory / "two").symlink_to("one/below")
        for name in ("self", "one", "two"):
            with fails_with(errno.ELOOP):
                (directory / name).stat()
            with fails_with(errno.ELOOP):
                os.open(directory / name, os.O_RDONLY)

    def test_long_chains(self, directory: Path) -> None:
        (directory / "0").write_bytes(b"data")
        for number in range(1, 42):
            (directory / str(number)).symlink_to(str(number - 1))
        assert_contents(directory / "40", b"data")
        with fails_with(errno.ELOOP):
            (directory / "41").read_bytes()

    def test_unlink_removes_the_symlink_and_not_its_target(self, directory: Path) -> None:
        (directory / "target").write_bytes(b"data")
        (directory / "symlink").symlink_to("target")
        (directory / "symlink").unlink()
        assert_contents(directory / "target", b"data")

    def test_readlink_of_anything_else_is_refused(self, directory: Path) -> None:
        (directory / "file").touch()
        for path in (directory, directory / "file"):
            with fails_with(errno.EINVAL):
                path.readlink()


class TestDeletedWhileOpen:
    """A file without a name lives until the last descriptor is closed."""

    @pytest.mark.parametrize("size", [0, 10, 3 * BLOCK + 5])
    @pytest.mark.parametrize("synced", [True, False])
    def test_is_read_and_written_as_before(self, directory: Path, size: int, synced: bool) -> None:
        data = payload(size)
        path = directory / "file"
        path.write_bytes(data)
        if synced:
            evict(path)
        with opened(path, os.O_RDWR) as descriptor:
            path.unlink()
            assert os.fstat(descriptor).st_nlink == 0
            assert os.fstat(descriptor).st_size == size
            assert os.pread(descriptor, size, 0) == data
            os.pwrite(descriptor, b"more", size)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(descriptor, size + 10, 0) == data + b"more"
            os.ftruncate(descriptor, 2)
            assert os.fstat(descriptor).st_size == 2
            assert os.pread(descriptor, 10, 0) == (data + b"more")[:2]
        assert list(directory.iterdir()) == []

    def test_attributes_can_change(self, directory: Path) -> None:
        with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
            (directory / "file").unlink()
            os.fchmod(descriptor, 0o640)
            os.utime(descriptor, ns=(10**18, 10**18 + 1))
            status = os.fstat(descriptor)
            assert stat.S_IMODE(status.st_mode) == 0o640
            assert status.st_mtime_ns == 10**18 + 1

    def test_is_not_the_next_file_of_that_name(self, directory: Path) -> None:
        path = directory / "file"
        with opened(path, os.O_CREAT | os.O_RDWR) as old:
            os.write(old, b"old")
            path.unlink()
            with opened(path, os.O_CREAT | os.O_RDWR) as new:
                os.write(new, b"new one")
                assert os.fstat(new).st_ino != os.fstat(old).st_ino
                assert os.pread(old, 10, 0) == b"old"
        assert_contents(path, b"new one")

    def test_is_opened_again_through_its_descriptor(self, directory: Path) -> None:
        with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
            os.write(descriptor, b"data")
            (directory / "file").unlink()
            with opened(Path(f"/proc/self/fd/{descriptor}"), os.O_RDONLY) as again:
                assert os.read(again, 10) == b"data"

    def test_two_descriptors(self, directory: Path) -> None:
        path = directory / "file"
        with opened(path, os.O_CREAT | os.O_RDWR) as one:
            with opened(path, os.O_RDWR) as two:
                path.unlink()
                os.write(two, b"from two")
            assert os.pread(one, 20, 0) == b"from two"

    def test_many(self, directory: Path) -> None:
        descriptors = []
        for number in range(50):
            descriptor = os.open(directory / "same", os.O_CREAT | os.O_EXCL | os.O_RDWR)
            os.write(descriptor, b"%d" % number)
            (directory / "same").unlink()
            descriptors.append(descriptor)
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == b"%d" % number
            os.close(descriptor)

    def test_deleted_directory_is_empty_and_stays_so(self, directory: Path) -> None:
        (directory / "gone").mkdir()
        with opened(directory / "gone", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            (directory / "gone").rmdir()
            assert os.listdir(descriptor) == []
            assert os.fstat(descriptor).st_nlink == 0
            with fails_with(errno.ENOENT):
                os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
            with fails_with(errno.ENOENT):
                os.mkdir("below", dir_fd=descriptor)
