"""Who may do what: modes, groups, sticky directories, setuid and setgid."""

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
    assert_contents,
    fails_with,
    needs_root,
    opened,
)

pytestmark = needs_root

GROUP = 41900
MEMBER = Person(uid=41003, gid=41003, groups=(5, GROUP, 7))


def _owned(path: Path, owner: Person, mode: int, gid: int | None = None) -> Path:
    os.chown(path, owner.uid, owner.gid if gid is None else gid)
    path.chmod(mode)
    return path


def _file(directory: Path, name: str, owner: Person, mode: int) -> Path:
    (directory / name).write_bytes(b"data")
    return _owned(directory / name, owner, mode)


def _read(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _write(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY))


class TestFiles:
    """Read, write and execute, for the owner, the group and others."""

    @pytest.mark.parametrize(
        ("person", "read", "write"),
        [
            (ALICE, 0o400, 0o200),
            (Person(BOB.uid, ALICE.gid), 0o040, 0o020),
            (Person(BOB.uid, BOB.gid, groups=(1, ALICE.gid)), 0o040, 0o020),
            (BOB, 0o004, 0o002),
        ],
        ids=["owner", "group", "supplementary-group", "other"],
    )
    def test_exactly_one_class_counts(
        self, directory: Path, person: Person, read: int, write: int
    ) -> None:
        path = _file(directory, "file", ALICE, 0)
        for mode, allowed in ((read, [_read]), (write, [_write]), (0o777 & ~(read | write), [])):
            path.chmod(mode)
            for action in (_read, _write):
                if action in allowed:
                    act_as(person, lambda action=action: action(path))
                else:
                    with fails_with(errno.EACCES):
                        act_as(person, lambda action=action: action(path))

    def test_root_may_read_and_write_everything(self, directory: Path) -> None:
        path = _file(directory, "file", ALICE, 0)
        _read(path)
        _write(path)

    def test_access_agrees(self, directory: Path) -> None:
        path = _file(directory, "file", ALICE, 0o640)
        assert act_as(ALICE, lambda: os.access(path, os.R_OK | os.W_OK))
        assert not act_as(ALICE, lambda: os.access(path, os.X_OK))
        assert not act_as(BOB, lambda: os.access(path, os.R_OK))
        assert act_as(BOB, lambda: os.access(path, os.F_OK))
        assert not os.access(path, os.X_OK)

    def test_execution_needs_the_bit(self, directory: Path) -> None:
        script = directory / "script"
        script.write_text("#!/bin/sh\nexit 7\n")
        script.chmod(0o644)
        with fails_with(errno.EACCES):
            subprocess.run([script], check=False)
        script.chmod(0o755)
        assert subprocess.run([script], check=False).returncode == 7
        assert act_as(ALICE, lambda: subprocess.run([script], check=False).returncode) == 7
        script.chmod(0o750)
        with fails_with(errno.EACCES):
            act_as(ALICE, lambda: subprocess.run([script], check=False))

    def test_new_files_belong_to_who_makes_them(self, directory: Path) -> None:
        directory.chmod(0o777)
        act_as(ALICE, (directory / "file").touch)
        act_as(ALICE, (directory / "below").mkdir)
        act_as(ALICE, lambda: (directory / "symlink").symlink_to("x"))
        for path in directory.iterdir():
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (ALICE.uid, ALICE.gid), path.name


class TestDirectories:
    """List, search, and change."""

    def test_search_permission_guards_everything_below(self, directory: Path) -> None:
        below = directory / "below"
        below.mkdir()
        _file(below, "file", BOB, 0o666)
        _owned(below, ALICE, 0o766)
        assert act_as(BOB, lambda: os.listdir(below)) == ["file"]
        with fails_with(errno.EACCES):
            act_as(BOB, lambda: _read(below / "file"))
        with fails_with(errno.EACCES):
            act_as(BOB, (below / "file").stat)
        with fails_with(errno.EACCES):
            act_as(BOB, (below / "new").touch)

    def test_read_permission_guards_the_list(self, directory: Path) -> None:
        below = directory / "below"
        below.mkdir()
        _file(below, "file", BOB, 0o644)
        _owned(below, ALICE, 0o711)
        with fails_with(errno.EACCES):
            act_as(BOB, lambda: os.listdir(below))
        act_as(BOB, lambda: _read(below / "file"))

    def test_write_permission_guards_the_names(self, directory: Path) -> None:
        below = directory / "below"
        below.mkdir()
        _file(below, "file", BOB, 0o666)
        (below / "empty").mkdir()
        _owned(below / "empty", BOB, 0o755)
        _owned(below, ALICE, 0o755)
        directory.chmod(0o777)
        for action in (
            (below / "new").touch,
            (below / "new").mkdir,
            lambda: (below / "new").symlink_to("x"),
            (below / "file").unlink,
            (below / "empty").rmdir,
            lambda: (below / "file").rename(below / "new"),
            lambda: (below / "file").rename(directory / "out"),
            lambda: os.link(below / "file", below / "new"),
            lambda: os.mkfifo(below / "new"),
        ):
            with fails_with(errno.EACCES):
                act_as(BOB, action)
        act_as(BOB, lambda: (below / "file").write_bytes(b"the file itself may change"))

    def test_own_directory(self, directory: Path) -> None:
        directory.chmod(0o777)

        def live() -> None:
            home = directory / "home"
            home.mkdir(0o700)
            (home / "file").write_bytes(b"data")
            (home / "below").mkdir()
            (home / "file").rename(home / "below" / "file")
            (home / "below" / "file").unlink()
            (home / "below").rmdir()

        act_as(ALICE, live)
        with fails_with(errno.EACCES):
            act_as(BOB, lambda: os.listdir(directory / "home"))

    def test_supplementary_group_may_write(self, directory: Path) -> None:
        _owned(directory, ALICE, 0o770, gid=GROUP)
        act_as(MEMBER, lambda: (directory / "file").write_bytes(b"data"))
        act_as(MEMBER, lambda: (directory / "file").rename(directory / "renamed"))
        assert_contents(directory / "renamed", b"data")
        with fails_with(errno.EACCES):
            act_as(BOB, lambda: os.listdir(directory))

    def test_directory_moved_to_another_parent_must_be_writable(self, directory: Path) -> None:
        """Its `..` changes, and that is a write."""
        directory.chmod(0o777)
        (directory / "moving").mkdir()
        _owned(directory / "moving", BOB, 0o755)
        (directory / "target").mkdir()
        _owned(directory / "target", ALICE, 0o777)
        with fails_with(errno.EACCES):
            act_as(ALICE, lambda: (directory / "moving").rename(directory / "target" / "moving"))
        act_as(ALICE, lambda: (directory / "moving").rename(directory / "renamed"))


class TestSticky:
    """In a directory with the sticky bit one deletes only what is one's own."""

    @pytest.fixture
    def common(self, directory: Path) -> Path:
        path = directory / "common"
        path.mkdir()
        _owned(path, Person(0, 0), 0o1777)
        _file(path, "alice", ALICE, 0o666)
        _file(path, "bob", BOB, 0o666)
        (path / "alice-directory").mkdir()
        _owned(path / "alice-directory", ALICE, 0o777)
        return path

    def test_others_files_stay(self, common: Path, directory: Path) -> None:
        directory.chmod(0o777)
        for action in (
            (common / "alice").unlink,
            lambda: (common / "alice").rename(common / "stolen"),
            lambda: (common / "alice").rename(directory / "stolen"),
            lambda: (common / "bob").rename(common / "alice"),
            (common / "alice-directory").rmdir,
        ):
            with fails_with(errno.EPERM, errno.EACCES):
                act_as(BOB, action)
        assert set(os.listdir(common)) == {"alice", "alice-directory", "bob"}

    def test_own_files_go(self, common: Path) -> None:
        act_as(ALICE, lambda: (common / "alice").rename(common / "renamed"))
        act_as(ALICE, (common / "renamed").unlink)
        act_as(ALICE, (common / "alice-directory").rmdir)

    def test_owner_of_the_directory_deletes_all(self, common: Path) -> None:
        _owned(common, BOB, 0o1777)
        act_as(BOB, (common / "alice").unlink)

    def test_root_deletes_all(self, common: Path) -> None:
        (common / "alice").unlink()
        (common / "alice-directory").rmdir()


class TestSetgidDirectories:
    """What is made in a directory with the setgid bit belongs to its group."""

    def test_group_is_inherited(self, directory: Path) -> None:
        _owned(directory, ALICE, 0o2777, gid=GROUP)
        act_as(BOB, (directory / "file").touch)
        act_as(BOB, (directory / "below").mkdir)
        act_as(BOB, lambda: (directory / "symlink").symlink_to("x"))
        act_as(BOB, lambda: os.mkfifo(directory / "fifo"))
        for path in directory.iterdir():
            assert (path.lstat().st_uid, path.lstat().st_gid) == (BOB.uid, GROUP), path.name

    def test_subdirectories_inherit_the_bit(self, directory: Path) -> None:
        _owned(directory, ALICE, 0o2777, gid=GROUP)
        act_as(BOB, lambda: (directory / "below").mkdir(0o755))
        assert stat.S_IMODE((directory / "below").stat().st_mode) == 0o2755
        act_as(BOB, (directory / "below" / "deeper").mkdir)
        assert (directory / "below" / "deeper").stat().st_gid == GROUP

    def test_files_do_not_inherit_the_bit(self, directory: Path) -> None:
        _owned(directory, ALICE, 0o2777, gid=GROUP)
        act_as(BOB, (directory / "file").touch)
        assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o644

    def test_group_is_the_maker_s_otherwise(self, directory: Path) -> None:
        _owned(directory, ALICE, 0o777, gid=GROUP)
        act_as(BOB, (directory / "file").touch)
        assert (directory / "file").stat().st_gid == BOB.gid


class TestSetuidAndSetgid:
    """A change by somebody without privileges takes the bits away."""

    @pytest.mark.parametrize("change", ["write", "truncate", "truncating-open", "append"])
    def test_gone_after(self, directory: Path, change: str) -> None:
        path = _file(directory, "file", ALICE, 0o6777)

        def alter() -> None:
            match change:
                case "write":
                    with opened(path, os.O_WRONLY) as descriptor:
                        os.write(descriptor, b"x")
                case "append":
                    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
                        os.write(descriptor, b"x")
                case "truncate":
                    os.truncate(path, 1)
                case "truncating-open":
                    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))

        act_as(BOB, alter)
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o777)

    def test_root_s_write_leaves_them(self, directory: Path) -> None:
        path = _file(directory, "file", ALICE, 0o6777)
        with opened(path, os.O_WRONLY) as descriptor:
            os.write(descriptor, b"x")
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o6777)

    def test_reading_leaves_them(self, directory: Path) -> None:
        path = _file(directory, "file", ALICE, 0o6777)
        act_as(BOB, path.read_bytes)
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o6777)

    def test_link_and_rename_leave_them(self, directory: Path) -> None:
        path = _file(directory, "file", ALICE, 0o6755)
        os.link(path, directory / "second")
        path.rename(directory / "third")
        assert oct(stat.S_IMODE((directory / "third").stat().st_mode)) == oct(0o6755)
