"""POSIX ACLs, by setfacl(1) and getfacl(1)."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    ALICE,
    BOB,
    Person,
    act_as,
    fails_with,
    needs_root,
    program,
)

pytestmark = needs_root

GROUP = 41900
MEMBER = Person(uid=41003, gid=41003, groups=(GROUP,))


def _set(path: Path, *words: str) -> None:
    subprocess.run([program("setfacl"), *words, str(path)], check=True, capture_output=True)


def _get(path: Path) -> set[str]:
    shown = subprocess.run(
        [program("getfacl"), "--numeric", "--omit-header", "--absolute-names", "--no-effective",
         path],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {line for line in shown.stdout.splitlines() if line}


def _mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def _may(person: Person, path: Path) -> str:
    """What this person may do with the file, as letters."""
    rights = (("r", os.O_RDONLY), ("w", os.O_WRONLY))

    def attempt() -> str:
        allowed = ""
        for letter, flags in rights:
            try:
                os.close(os.open(path, flags))
            except PermissionError:
                continue
            allowed += letter
        return allowed

    return act_as(person, attempt)


@pytest.fixture
def file(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(b"data")
    path.chmod(0o600)
    return path


def test_named_user_is_let_in(file: Path) -> None:
    _set(file, "-m", f"u:{ALICE.uid}:rw")
    assert _may(ALICE, file) == "rw"
    assert _may(BOB, file) == ""
    assert _get(file) == {
        "user::rw-", f"user:{ALICE.uid}:rw-", "group::---", "mask::rw-", "other::---",
    }  # fmt: skip


def test_named_group_is_let_in(file: Path) -> None:
    _set(file, "-m", f"g:{GROUP}:r")
    assert _may(MEMBER, file) == "r"
    assert _may(BOB, file) == ""


def test_named_user_is_kept_out(file: Path) -> None:
    file.chmod(0o666)
    _set(file, "-m", f"u:{ALICE.uid}:-")
    assert _may(ALICE, file) == ""
    assert _may(BOB, file) == "rw"


def test_mask_limits_and_shows_as_the_group_s_mode(file: Path) -> None:
    _set(file, "-m", f"u:{ALICE.uid}:rw,g:{GROUP}:rw")
    assert _mode(file) == oct(0o660)
    _set(file, "-m", "m::r")
    assert _mode(file) == oct(0o640)
    assert _may(ALICE, file) == "r"
    assert _may(MEMBER, file) == "r"


def test_chmod_changes_the_mask(file: Path) -> None:
    _set(file, "-m", f"u:{ALICE.uid}:rw")
    file.chmod(0o600)
    assert _may(ALICE, file) == ""
    assert "mask::---" in _get(file)
    assert f"user:{ALICE.uid}:rw-" in _get(file)
    file.chmod(0o660)
    assert _may(ALICE, file) == "rw"
    assert "group::---" in _get(file)


def test_minimal_list_is_the_mode(file: Path) -> None:
    _set(file, "-m", "u::rwx,g::rx,o::x")
    assert _mode(file) == oct(0o751)
    assert _get(file) == {"user::rwx", "group::r-x", "other::--x"}


def test_removed(file: Path) -> None:
    _set(file, "-m", f"u:{ALICE.uid}:rw")
    _set(file, "-b")
    assert _may(ALICE, file) == ""
    assert _get(file) == {"user::rw-", "group::---", "other::---"}


def test_only_the_owner_sets_it(file: Path) -> None:
    _set(file, "-m", f"u:{ALICE.uid}:rw")
    value = os.getxattr(file, "system.posix_acl_access")
    with fails_with(errno.EPERM):
        act_as(ALICE, lambda: os.setxattr(file, "system.posix_acl_access", value))
    os.chown(file, ALICE.uid, ALICE.gid)
    act_as(ALICE, lambda: os.setxattr(file, "system.posix_acl_access", value))


def test_directory_lets_a_named_user_search_and_change(directory: Path) -> None:
    below = directory / "below"
    below.mkdir(0o700)
    (below / "file").write_bytes(b"data")
    _set(below, "-m", f"u:{ALICE.uid}:rwx")
    act_as(ALICE, (below / "new").touch)
    act_as(ALICE, lambda: (below / "new").rename(below / "renamed"))
    act_as(ALICE, (below / "renamed").unlink)
    with fails_with(errno.EACCES):
        act_as(BOB, lambda: os.listdir(below))


class TestDefaultLists:
    """What is made in a directory gets the directory's default list."""

    @pytest.fixture
    def parent(self, directory: Path) -> Path:
        os.umask(0)
        path = directory / "parent"
        path.mkdir(0o755)
        _set(path, "-d", "-m", f"u::rwx,u:{ALICE.uid}:rwx,g::rx,o::-")
        return path

    def test_is_shown(self, parent: Path) -> None:
        assert {line for line in _get(parent) if line.startswith("default:")} == {
            "default:user::rwx", f"default:user:{ALICE.uid}:rwx", "default:group::r-x",
            "default:mask::rwx", "default:other::---",
        }  # fmt: skip
        assert _mode(parent) == oct(0o755), "a default list says nothing about its directory"

    def test_file_inherits(self, parent: Path) -> None:
        (parent / "file").write_bytes(b"data")
        assert _get(parent / "file") == {
            "user::rw-", f"user:{ALICE.uid}:rwx", "group::r-x", "mask::rw-", "other::---",
        }  # fmt: skip
        assert _mode(parent / "file") == oct(0o660)
        assert _may(ALICE, parent / "file") == "rw"
        assert _may(BOB, parent / "file") == ""

    def test_mode_that_is_asked_for_limits(self, parent: Path) -> None:
        os.close(os.open(parent / "file", os.O_CREAT | os.O_WRONLY, 0o600))
        assert _may(ALICE, parent / "file") == ""
        assert "mask::---" in _get(parent / "file")

    def test_umask_does_not_count_or_limits_the_mask(self, parent: Path) -> None:
        """A FUSE kernel that applies the umask itself does so here too; never is more allowed."""
        os.umask(0o027)
        (parent / "file").touch()
        assert _mode(parent / "file") in (oct(0o660), oct(0o640))
        assert f"user:{ALICE.uid}:rwx" in _get(parent / "file")
        assert _may(BOB, parent / "file") == ""

    def test_directory_inherits_and_hands_on(self, parent: Path) -> None:
        (parent / "below").mkdir()
        assert {line for line in _get(parent / "below") if line.startswith("default:")} == {
            line for line in _get(parent) if line.startswith("default:")
        }
        (parent / "below" / "file").touch()
        assert _may(ALICE, parent / "below" / "file") == "rw"

    def test_other_makers_of_files(self, parent: Path) -> None:
        os.mknod(parent / "node", stat.S_IFREG | 0o666)
        os.mkfifo(parent / "fifo", 0o666)
        (parent / "symlink").symlink_to("node")
        for name in ("node", "fifo"):
            assert f"user:{ALICE.uid}:rwx" in _get(parent / name), name

    def test_link_and_rename_bring_no_list(self, parent: Path, directory: Path) -> None:
        (directory / "file").touch()
        (directory / "file").chmod(0o600)
        (directory / "file").rename(parent / "file")
        assert _get(parent / "file") == {"user::rw-", "group::---", "other::---"}

    def test_removed(self, parent: Path) -> None:
        _set(parent, "-k")
        (parent / "file").touch()
        assert _get(parent / "file") == {"user::rw-", "group::rw-", "other::rw-"}

    def test_files_cannot_have_one(self, parent: Path, file: Path) -> None:
        value = os.getxattr(parent, "system.posix_acl_default")
        with fails_with(errno.EACCES):
            os.setxattr(file, "system.posix_acl_default", value)


def test_saved_and_restored(directory: Path, outside: Path) -> None:
    (directory / "below").mkdir()
    (directory / "below" / "file").touch()
    _set(directory / "below", "-m", f"u:{ALICE.uid}:rwx,d:u:{ALICE.uid}:rx")
    _set(directory / "below" / "file", "-m", f"g:{GROUP}:rw")
    before = _get(directory / "below"), _get(directory / "below" / "file")
    saved = subprocess.run(
        [program("getfacl"), "-R", "below"], cwd=directory, check=True, capture_output=True
    ).stdout
    _set(directory / "below", "-R", "-b")
    (outside / "saved").write_bytes(saved)
    subprocess.run(
        [program("setfacl"), f"--restore={outside / 'saved'}"], cwd=directory, check=True
    )
    assert (_get(directory / "below"), _get(directory / "below" / "file")) == before
