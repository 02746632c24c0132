"""setxattr(2), getxattr(2), listxattr(2), removexattr(2)."""

import errno
import os
import time
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import (
    ALICE,
    BOB,
    act_as,
    fails_with,
    needs_root,
    opened,
    payload,
    works_or_fails_with,
)

NAME = "user.name"


@pytest.fixture(params=["file", "directory"])
def target(directory: Path, request: pytest.FixtureRequest) -> Path:
    path = directory / "target"
    path.touch() if request.param == "file" else path.mkdir()
    return path


def _users(path: Path) -> set[str]:
    """The names that are not the system's, as SELinux's label is."""
    return {name for name in os.listxattr(path) if name.startswith(("user.", "trusted."))}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 2048])
def test_value_is_kept(target: Path, size: int) -> None:
    os.setxattr(target, NAME, payload(size))
    assert os.getxattr(target, NAME) == payload(size)
    assert _users(target) == {NAME}


def test_value_may_be_any_bytes(target: Path) -> None:
    value = bytes(range(256))
    os.setxattr(target, NAME, value)
    assert os.getxattr(target, NAME) == value


def test_many(target: Path) -> None:
    values = {f"user.attribute-{number}": b"%d" % number for number in range(40)}
    for name, value in values.items():
        os.setxattr(target, name, value)
    assert _users(target) == set(values)
    assert {name: os.getxattr(target, name) for name in values} == values
    for name in list(values)[::2]:
        os.removexattr(target, name)
    assert _users(target) == set(list(values)[1::2])


def test_replaced_by_a_shorter_and_a_longer_one(target: Path) -> None:
    for value in (b"first", b"2", b"the third one", b""):
        os.setxattr(target, NAME, value)
        assert os.getxattr(target, NAME) == value


def test_create_refuses_what_exists(target: Path) -> None:
    os.setxattr(target, NAME, b"first", os.XATTR_CREATE)
    with fails_with(errno.EEXIST):
        os.setxattr(target, NAME, b"second", os.XATTR_CREATE)
    assert os.getxattr(target, NAME) == b"first"


def test_replace_refuses_what_does_not_exist(target: Path) -> None:
    with fails_with(errno.ENODATA):
        os.setxattr(target, NAME, b"first", os.XATTR_REPLACE)
    os.setxattr(target, NAME, b"first")
    os.setxattr(target, NAME, b"second", os.XATTR_REPLACE)
    assert os.getxattr(target, NAME) == b"second"


def test_missing(target: Path) -> None:
    with fails_with(errno.ENODATA):
        os.getxattr(target, NAME)
    with fails_with(errno.ENODATA):
        os.removexattr(target, NAME)
    os.setxattr(target, NAME, b"value")
    os.removexattr(target, NAME)
    with fails_with(errno.ENODATA):
        os.getxattr(target, NAME)
    assert _users(target) == set()
    with fails_with(errno.ENOENT):
        os.getxattr(target.parent / "missing", NAME)


def test_length_is_told_and_short_buffers_are_refused(target: Path) -> None:
    os.setxattr(target, NAME, b"0123456789")
    assert linux.extended_attribute_into(target, NAME, 0) == 10
    assert linux.extended_attribute_into(target, NAME, 10) == b"0123456789"
    assert linux.extended_attribute_into(target, NAME, 100) == b"0123456789"
    with fails_with(errno.ERANGE):
        linux.extended_attribute_into(target, NAME, 9)
    length = linux.extended_attributes_into(target, 0)
    assert isinstance(length, int)
    assert length >= len(NAME) + 1
    with fails_with(errno.ERANGE):
        linux.extended_attributes_into(target, length - 1)


def test_longest_name(target: Path) -> None:
    name = "user." + "n" * 250
    os.setxattr(target, name, b"value")
    assert os.getxattr(target, name) == b"value"
    with fails_with(errno.ERANGE):
        os.setxattr(target, name + "n", b"value")


def test_largest_value(target: Path) -> None:
    """64 KiB is the kernel's limit; a file system may have less room, and says so."""
    with works_or_fails_with(errno.ENOSPC, errno.E2BIG, errno.ERANGE):
        os.setxattr(target, NAME, payload(65_536))
        assert os.getxattr(target, NAME) == payload(65_536)
    with fails_with(errno.E2BIG, errno.ERANGE):
        os.setxattr(target, NAME, payload(65_537))


@pytest.mark.parametrize("name", ["nonsense.name", "plain"])
def test_unknown_namespace(target: Path, name: str) -> None:
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(target, name, b"value")
    with fails_with(errno.EOPNOTSUPP, errno.ENODATA):
        os.getxattr(target, name)


def test_through_a_descriptor_also_when_deleted(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.setxattr(descriptor, NAME, b"value")
        (directory / "file").unlink()
        assert os.getxattr(descriptor, NAME) == b"value"
        os.setxattr(descriptor, NAME, b"second")
        assert os.getxattr(descriptor, NAME) == b"second"


def test_belongs_to_the_file_and_not_to_the_name(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    os.setxattr(path, NAME, b"value")
    os.link(path, directory / "link")
    path.rename(directory / "renamed")
    for name in ("link", "renamed"):
        assert os.getxattr(directory / name, NAME) == b"value"
    path.touch()
    assert _users(path) == set()


def test_follows_symlinks(directory: Path) -> None:
    (directory / "file").touch()
    (directory / "symlink").symlink_to("file")
    os.setxattr(directory / "symlink", NAME, b"value")
    assert os.getxattr(directory / "file", NAME) == b"value"
    with fails_with(errno.EPERM):
        os.setxattr(directory / "symlink", NAME, b"value", follow_symlinks=False)


def test_survives_writes_and_truncation(directory: Path) -> None:
    (directory / "file").write_bytes(b"data")
    os.setxattr(directory / "file", NAME, b"value")
    (directory / "file").write_bytes(b"other data")
    assert os.getxattr(directory / "file", NAME) == b"value"


def test_change_sets_the_change_time_only(target: Path) -> None:
    before = target.stat()
    started = time.time()
    os.setxattr(target, NAME, b"value")
    assert target.stat().st_mtime_ns == before.st_mtime_ns
    assert target.stat().st_ctime >= started - 0.1


@needs_root
def test_needs_the_permissions_of_the_contents(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    os.setxattr(path, NAME, b"value")
    os.chown(path, ALICE.uid, ALICE.gid)
    path.chmod(0o644)
    assert act_as(BOB, lambda: os.getxattr(path, NAME)) == b"value"
    with fails_with(errno.EACCES):
        act_as(BOB, lambda: os.setxattr(path, NAME, b"other"))
    with fails_with(errno.EACCES):
        act_as(BOB, lambda: os.removexattr(path, NAME))
    path.chmod(0o600)
    with fails_with(errno.EACCES):
        act_as(BOB, lambda: os.getxattr(path, NAME))
    act_as(ALICE, lambda: os.setxattr(path, NAME, b"hers"))
    assert os.getxattr(path, NAME) == b"hers"


@needs_root
def test_trusted_ones_are_root_s(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, "trusted.name", b"value")
    assert os.getxattr(path, "trusted.name") == b"value"
    with fails_with(errno.EPERM):
        act_as(ALICE, lambda: os.setxattr(path, "trusted.name", b"other"))
    with fails_with(errno.ENODATA, errno.EPERM):
        act_as(ALICE, lambda: os.getxattr(path, "trusted.name"))
