"""rename(2) and renameat2(2)."""

import errno
import os
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import assert_contents, fails_with, opened, works_or_fails_with


def _names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def test_gives_the_file_its_new_name(directory: Path) -> None:
    (directory / "old").write_bytes(b"data")
    inode = (directory / "old").stat().st_ino
    (directory / "old").rename(directory / "new")
    assert _names(directory) == {"new"}
    assert (directory / "new").stat().st_ino == inode
    assert_contents(directory / "new", b"data")
    with fails_with(errno.ENOENT):
        (directory / "old").stat()


def test_moves_between_directories(directory: Path) -> None:
    (directory / "a").mkdir()
    (directory / "b").mkdir()
    (directory / "a" / "file").write_bytes(b"data")
    (directory / "a" / "file").rename(directory / "b" / "renamed")
    assert _names(directory / "a") == set()
    assert _names(directory / "b") == {"renamed"}
    assert_contents(directory / "b" / "renamed", b"data")


def test_replaces_a_file(directory: Path) -> None:
    (directory / "new").write_bytes(b"new")
    (directory / "file").write_bytes(b"old")
    inode = (directory / "new").stat().st_ino
    with opened(directory / "file", os.O_RDONLY) as replaced:
        (directory / "new").rename(directory / "file")
        assert os.pread(replaced, 10, 0) == b"old"
        assert os.fstat(replaced).st_nlink == 0
    assert _names(directory) == {"file"}
    assert (directory / "file").stat().st_ino == inode
    assert_contents(directory / "file", b"new")


def test_replaces_one_of_several_names(directory: Path) -> None:
    (directory / "new").write_bytes(b"new")
    (directory / "file").write_bytes(b"old")
    (directory / "other").hardlink_to(directory / "file")
    (directory / "new").rename(directory / "file")
    assert_contents(directory / "other", b"old")
    assert (directory / "other").stat().st_nlink == 1


def test_replaces_a_symlink_and_not_its_target(directory: Path) -> None:
    (directory / "new").write_bytes(b"new")
    (directory / "target").write_bytes(b"target")
    (directory / "symlink").symlink_to("target")
    (directory / "new").rename(directory / "symlink")
    assert not (directory / "symlink").is_symlink()
    assert_contents(directory / "symlink", b"new")
    assert_contents(directory / "target", b"target")


def test_moves_a_symlink_and_not_its_target(directory: Path) -> None:
    (directory / "target").write_bytes(b"target")
    (directory / "symlink").symlink_to("target")
    (directory / "symlink").rename(directory / "moved")
    assert (directory / "moved").readlink() == Path("target")
    assert _names(directory) == {"moved", "target"}


def test_replaces_an_empty_directory(directory: Path) -> None:
    (directory / "full").mkdir()
    (directory / "full" / "file").touch()
    (directory / "empty").mkdir()
    (directory / "full").rename(directory / "empty")
    assert _names(directory) == {"empty"}
    assert _names(directory / "empty") == {"file"}


def test_to_itself_does_nothing(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    (directory / "file").rename(directory / "file")
    assert_contents(directory / "file", b"data")


def test_to_another_name_of_the_same_file_does_nothing(directory: Path) -> None:
    (directory / "one").write_bytes(b"data")
    (directory / "two").hardlink_to(directory / "one")
    (directory / "one").rename(directory / "two")
    assert _names(directory) == {"one", "two"}
    assert (directory / "one").stat().st_nlink == 2


@pytest.mark.parametrize(
    ("source", "target", "numbers"),
    [
        ("file", "empty", (errno.EISDIR,)),
        ("empty", "file", (errno.ENOTDIR,)),
        ("empty", "symlink", (errno.ENOTDIR,)),
        ("empty", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("full/below", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("full", "full/below", (errno.EINVAL,)),
        ("full", "full/new", (errno.EINVAL,)),
        ("full", "full/below/deep/new", (errno.EINVAL,)),
        ("missing", "new", (errno.ENOENT,)),
        ("missing", "file", (errno.ENOENT,)),
        ("file", "missing/new", (errno.ENOENT,)),
        ("file", "other/new", (errno.ENOTDIR,)),
        ("file/below", "new", (errno.ENOTDIR,)),
        ("file", "n" * 256, (errno.ENAMETOOLONG,)),
        ("n" * 256, "new", (errno.ENAMETOOLONG,)),
        ("file", "new/", (errno.ENOTDIR,)),
        ("empty/.", "new", (errno.EBUSY, errno.EINVAL)),
        ("empty", "full/..", (errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY)),
    ],
)
def test_refusals(directory: Path, source: str, target: str, numbers: tuple[int, ...]) -> None:
    (directory / "file").write_bytes(b"data")
    (directory / "other").write_bytes(b"other")
    (directory / "symlink").symlink_to("empty")
    (directory / "empty").mkdir()
    (directory / "full" / "below" / "deep").mkdir(parents=True)
    with fails_with(*numbers):
        os.rename(f"{directory}/{source}", f"{directory}/{target}")
    assert _names(directory) == {"file", "other", "symlink", "empty", "full"}
    assert _names(directory / "full") == {"below"}
    assert_contents(directory / "file", b"data")


def test_directory_moves_with_everything_below(directory: Path) -> None:
    (directory / "a" / "tree" / "deep").mkdir(parents=True)
    (directory / "b").mkdir()
    (directory / "a" / "tree" / "deep" / "file").write_bytes(b"data")
    (directory / "a" / "tree").rename(directory / "b" / "tree")
    assert_contents(directory / "b" / "tree" / "deep" / "file", b"data")
    parent = (directory / "b" / "tree" / "..").stat().st_ino
    assert parent == (directory / "b").stat().st_ino


def test_directory_takes_its_link_count_along(directory: Path) -> None:
    (directory / "a" / "moving").mkdir(parents=True)
    (directory / "b").mkdir()
    alone = (directory / "b").stat().st_nlink
    with_child = (directory / "a").stat().st_nlink
    (directory / "a" / "moving").rename(directory / "b" / "moving")
    assert (directory / "a").stat().st_nlink == alone
    assert (directory / "b").stat().st_nlink == with_child


def test_changes_the_times_of_both_parents(directory: Path) -> None:
    for name in ("a", "b"):
        (directory / name).mkdir()
    (directory / "a" / "file").touch()
    for name in ("a", "b"):
        os.utime(directory / name, ns=(10**18, 10**18))
    (directory / "a" / "file").rename(directory / "b" / "file")
    for name in ("a", "b"):
        assert (directory / name).stat().st_mtime_ns > 10**18, name


def test_open_file_goes_along(directory: Path) -> None:
    with opened(directory / "old", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"before ")
        (directory / "old").rename(directory / "new")
        os.write(descriptor, b"after")
    assert_contents(directory / "new", b"before after")


def test_old_name_is_free_at_once(directory: Path) -> None:
    for number in range(20):
        (directory / "current").write_bytes(b"%d" % number)
        (directory / "current").rename(directory / f"kept-{number}")
    for number in range(20):
        assert_contents(directory / f"kept-{number}", b"%d" % number)


def test_again_and_again_over_the_same_name(directory: Path) -> None:
    """How programs save: the file is always there, and always the newest."""
    for number in range(30):
        (directory / "temporary").write_bytes(b"%d" % number)
        (directory / "temporary").rename(directory / "file")
        assert_contents(directory / "file", b"%d" % number)
    assert _names(directory) == {"file"}


class TestNoReplace:
    """RENAME_NOREPLACE."""

    def test_gives_a_free_name(self, directory: Path) -> None:
        (directory / "old").write_bytes(b"data")
        linux.rename(directory / "old", directory / "new", linux.RENAME_NOREPLACE)
        assert _names(directory) == {"new"}

    @pytest.mark.parametrize("taken", ["file", "empty", "symlink", "old"])
    def test_refuses_a_name_that_is_taken(self, directory: Path, taken: str) -> None:
        (directory / "old").write_bytes(b"data")
        (directory / "file").write_bytes(b"kept")
        (directory / "empty").mkdir()
        (directory / "symlink").symlink_to("nowhere")
        with fails_with(errno.EEXIST):
            linux.rename(directory / "old", directory / taken, linux.RENAME_NOREPLACE)
        assert_contents(directory / "file", b"kept")
        assert_contents(directory / "old", b"data")

    def test_moves_a_directory(self, directory: Path) -> None:
        (directory / "a" / "below").mkdir(parents=True)
        linux.rename(directory / "a" / "below", directory / "b", linux.RENAME_NOREPLACE)
        assert _names(directory) == {"a", "b"}


class TestExchange:
    """RENAME_EXCHANGE."""

    def test_swaps_two_files(self, directory: Path) -> None:
        (directory / "one").write_bytes(b"1")
        (directory / "two").write_bytes(b"2")
        inodes = (directory / "one").stat().st_ino, (directory / "two").stat().st_ino
        linux.rename(directory / "one", directory / "two", linux.RENAME_EXCHANGE)
        assert_contents(directory / "one", b"2")
        assert_contents(directory / "two", b"1")
        assert ((directory / "two").stat().st_ino, (directory / "one").stat().st_ino) == inodes
        assert (directory / "one").stat().st_nlink == 1

    def test_swaps_a_file_and_a_full_directory(self, directory: Path) -> None:
        (directory / "a").mkdir()
        (directory / "b" / "tree").mkdir(parents=True)
        (directory / "a" / "file").write_bytes(b"data")
        (directory / "b" / "tree" / "leaf").touch()
        alone, with_child = (directory / name for name in ("a", "b"))
        links = alone.stat().st_nlink, with_child.stat().st_nlink
        linux.rename(directory / "a" / "file", directory / "b" / "tree", linux.RENAME_EXCHANGE)
        assert_contents(directory / "b" / "tree", b"data")
        assert _names(directory / "a" / "file") == {"leaf"}
        assert (with_child.stat().st_nlink, alone.stat().st_nlink) == links
        parent = (directory / "a" / "file" / "..").stat().st_ino
        assert parent == (directory / "a").stat().st_ino

    @pytest.mark.parametrize(("source", "target"), [("file", "missing"), ("missing", "file")])
    def test_needs_both(self, directory: Path, source: str, target: str) -> None:
        (directory / "file").touch()
        with fails_with(errno.ENOENT):
            linux.rename(directory / source, directory / target, linux.RENAME_EXCHANGE)

    @pytest.mark.parametrize(("source", "target"), [("a", "a/b/c"), ("a/b/c", "a")])
    def test_refuses_to_make_a_loop(self, directory: Path, source: str, target: str) -> None:
        (directory / "a" / "b" / "c").mkdir(parents=True)
        with fails_with(errno.EINVAL):
            linux.rename(directory / source, directory / target, linux.RENAME_EXCHANGE)

    def test_two_names_of_one_file(self, directory: Path) -> None:
        (directory / "one").touch()
        (directory / "two").hardlink_to(directory / "one")
        linux.rename(directory / "one", directory / "two", linux.RENAME_EXCHANGE)
        assert _names(directory) == {"one", "two"}
        assert (directory / "one").stat().st_nlink == 2


def test_flags_that_make_no_sense(directory: Path) -> None:
    (directory / "one").touch()
    (directory / "two").touch()
    for flags in (linux.RENAME_NOREPLACE | linux.RENAME_EXCHANGE, 1 << 10):
        with fails_with(errno.EINVAL):
            linux.rename(directory / "one", directory / "two", flags)


def test_whiteout_is_an_overlay_s_business(directory: Path) -> None:
    (directory / "one").touch()
    with works_or_fails_with(errno.EINVAL):
        linux.rename(directory / "one", directory / "two", linux.RENAME_WHITEOUT)
    assert len(_names(directory)) in (1, 2)
