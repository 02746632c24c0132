"""mkdir(2), rmdir(2), and the shape of the tree."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import assert_contents, fails_with, opened


@pytest.mark.parametrize(
    ("umask", "asked", "given"),
    [(0o022, 0o777, 0o755), (0o000, 0o700, 0o700), (0o077, 0o755, 0o700), (0o000, 0o1777, 0o1777)],
)
def test_new_directory(directory: Path, umask: int, asked: int, given: int) -> None:
    os.umask(umask)
    os.mkdir(directory / "new", asked)
    status = (directory / "new").stat()
    assert stat.S_ISDIR(status.st_mode)
    assert oct(stat.S_IMODE(status.st_mode)) == oct(given)
    assert os.listdir(directory / "new") == []


def test_link_count_follows_the_number_of_subdirectories(directory: Path) -> None:
    """2 and one for each, or always 1; what `find` takes a shortcut by."""
    counts = [directory.stat().st_nlink]
    for number in range(5):
        (directory / str(number)).mkdir()
        counts.append(directory.stat().st_nlink)
    (directory / "0").rmdir()
    counts.append(directory.stat().st_nlink)
    (directory / "file").touch()
    counts.append(directory.stat().st_nlink)
    assert counts in ([2, 3, 4, 5, 6, 7, 6, 6], [1] * 8)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("file", errno.EEXIST),
        ("full", errno.EEXIST),
        ("symlink", errno.EEXIST),
        ("missing/new", errno.ENOENT),
        ("file/new", errno.ENOTDIR),
        ("n" * 256, errno.ENAMETOOLONG),
        (".", errno.EEXIST),
        ("..", errno.EEXIST),
    ],
)
def test_mkdir_refusals(directory: Path, path: str, number: int) -> None:
    (directory / "file").touch()
    (directory / "full" / "below").mkdir(parents=True)
    (directory / "symlink").symlink_to("nowhere")
    with fails_with(number):
        os.mkdir(f"{directory}/{path}")


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("file", (errno.ENOTDIR,)),
        ("full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("symlink", (errno.ENOTDIR,)),
        ("missing", (errno.ENOENT,)),
        ("file/below", (errno.ENOTDIR,)),
        ("full/.", (errno.EINVAL,)),
        ("full/..", (errno.ENOTEMPTY, errno.EEXIST)),
    ],
)
def test_rmdir_refusals(directory: Path, path: str, numbers: tuple[int, ...]) -> None:
    (directory / "file").touch()
    (directory / "full" / "below").mkdir(parents=True)
    (directory / "symlink").symlink_to("full")
    with fails_with(*numbers):
        os.rmdir(f"{directory}/{path}")
    assert (directory / "full" / "below").is_dir()


def test_trailing_slashes_are_harmless(directory: Path) -> None:
    os.mkdir(f"{directory}/new/")
    os.rename(f"{directory}/new/", f"{directory}/moved/")
    os.rmdir(f"{directory}/moved//")
    assert os.listdir(directory) == []


def test_name_is_free_after_rmdir(directory: Path) -> None:
    for _ in range(20):
        (directory / "name").mkdir()
        (directory / "name" / "file").touch()
        (directory / "name" / "file").unlink()
        (directory / "name").rmdir()
        (directory / "name").touch()
        (directory / "name").unlink()
    assert os.listdir(directory) == []


@pytest.mark.parametrize("change", ["create", "unlink", "mkdir", "rmdir", "symlink", "link"])
def test_change_of_its_names_changes_its_times(directory: Path, change: str) -> None:
    parent = directory / "parent"
    parent.mkdir()
    (parent / "file").touch()
    (parent / "empty").mkdir()
    os.utime(parent, ns=(10**18, 10**18))
    before = parent.stat()
    match change:
        case "create":
            (parent / "new").touch()
        case "unlink":
            (parent / "file").unlink()
        case "mkdir":
            (parent / "new").mkdir()
        case "rmdir":
            (parent / "empty").rmdir()
        case "symlink":
            (parent / "new").symlink_to("x")
        case "link":
            (parent / "new").hardlink_to(parent / "file")
    after = parent.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_write_to_a_file_leaves_its_times_alone(directory: Path) -> None:
    (directory / "file").touch()
    os.utime(directory, ns=(10**18, 10**18))
    (directory / "file").write_bytes(b"data")
    assert directory.stat().st_mtime_ns == 10**18


def test_inode_numbers_differ(directory: Path) -> None:
    for number in range(50):
        (directory / f"file-{number}").touch()
        (directory / f"directory-{number}").mkdir()
    numbers = [path.stat().st_ino for path in directory.iterdir()]
    assert len(set(numbers)) == 100
    assert directory.stat().st_ino not in numbers
    assert 0 not in numbers


def test_dot_and_dot_dot(directory: Path) -> None:
    (directory / "below").mkdir()
    with linux.DirectoryStream(directory / "below") as stream:
        listed = {stream.next(), stream.next()}
    assert listed in ({b".", b".."}, {None}), "both are listed, or neither"
    assert (directory / "below" / ".").stat().st_ino == (directory / "below").stat().st_ino
    assert (directory / "below" / "..").stat().st_ino == directory.stat().st_ino


def test_deep_paths(directory: Path) -> None:
    path = directory
    for depth in range(60):
        path /= f"level-{depth}"
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"deep")
    assert_contents(path / "file", b"deep")
    top = directory / "level-0"
    top.rename(directory / "moved")
    moved = directory / "moved" / path.relative_to(top)
    assert_contents(moved / "file", b"deep")


def test_deeper_than_any_path_is_long(directory: Path) -> None:
    """Step by step one gets deeper than PATH_MAX."""
    name = "n" * 200
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(25):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    try:
        with open("file", "wb", opener=lambda p, f: os.open(p, f, dir_fd=descriptor)) as file:
            file.write(b"deep")
        assert os.stat("file", dir_fd=descriptor).st_size == 4
    finally:
        os.close(descriptor)
    with fails_with(errno.ENAMETOOLONG):
        os.stat(str(directory) + f"/{name}" * 25)


def test_current_directory(directory: Path) -> None:
    (directory / "here").mkdir()
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(directory / "here")
        Path("relative").write_bytes(b"data")
        assert Path.cwd() == directory / "here"
        (directory / "here").rename(directory / "there")
        assert Path.cwd() == directory / "there"
        assert_contents(Path("relative"), b"data")
    finally:
        os.fchdir(before)
        os.close(before)


def test_attributes_of_a_directory_can_change(directory: Path) -> None:
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fchmod(descriptor, 0o750)
        os.fsync(descriptor)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
