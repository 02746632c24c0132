"""chmod(2), chown(2), utimensat(2), stat(2), statfs(2)."""

import errno
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.expectations import (
    ALICE,
    BOB,
    Person,
    act_as,
    evict,
    fails_with,
    needs_root,
    opened,
    program,
)

KEEP = -1


def _mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.lstat().st_mode))


class TestModes:
    """chmod(2)."""

    @pytest.mark.parametrize(
        "mode", [0o000, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o7777]
    )
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_is_kept(self, directory: Path, kind: str, mode: int) -> None:
        path = directory / kind
        path.touch() if kind == "file" else path.mkdir()
        before = path.stat()
        path.chmod(mode)
        assert _mode(path) == oct(mode)
        assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before.st_mode)
        assert path.stat().st_mtime_ns == before.st_mtime_ns

    def test_of_an_open_file(self, directory: Path) -> None:
        with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
            os.fchmod(descriptor, 0o604)
            assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o604
        assert _mode(directory / "file") == oct(0o604)

    def test_goes_through_a_symlink(self, directory: Path) -> None:
        (directory / "file").touch()
        (directory / "symlink").symlink_to("file")
        (directory / "symlink").chmod(0o600)
        assert _mode(directory / "file") == oct(0o600)
        assert _mode(directory / "symlink") == oct(0o777)

    def test_change_sets_the_change_time(self, directory: Path) -> None:
        (directory / "file").touch()
        started = time.time()
        (directory / "file").chmod(0o600)
        assert (directory / "file").stat().st_ctime >= started - 0.1

    def test_missing_file(self, directory: Path) -> None:
        with fails_with(errno.ENOENT):
            (directory / "missing").chmod(0o600)

    @needs_root
    def test_only_the_owner_may(self, directory: Path) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", ALICE.uid, ALICE.gid)
        act_as(ALICE, lambda: (directory / "file").chmod(0o666))
        with fails_with(errno.EPERM):
            act_as(BOB, lambda: (directory / "file").chmod(0o600))
        assert _mode(directory / "file") == oct(0o666)

    @needs_root
    def test_setgid_needs_membership(self, directory: Path) -> None:
        """Who is not in the file's group gets the mode without the bit, and no error."""
        (directory / "file").touch()
        os.chown(directory / "file", ALICE.uid, BOB.gid)
        act_as(ALICE, lambda: (directory / "file").chmod(0o2755))
        assert _mode(directory / "file") == oct(0o755)
        member = Person(ALICE.uid, ALICE.gid, groups=(BOB.gid,))
        act_as(member, lambda: (directory / "file").chmod(0o2755))
        assert _mode(directory / "file") == oct(0o2755)


class TestOwners:
    """chown(2)."""

    @needs_root
    @pytest.mark.parametrize(
        ("uid", "gid"), [(1, 2), (65534, 65534), (2**31, 2**31 + 1), (2**32 - 2, 2**32 - 2)]
    )
    def test_are_kept(self, directory: Path, uid: int, gid: int) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", uid, gid)
        status = (directory / "file").stat()
        assert (status.st_uid, status.st_gid) == (uid, gid)

    @needs_root
    def test_one_without_the_other(self, directory: Path) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", 7, KEEP)
        os.chown(directory / "file", KEEP, 8)
        os.chown(directory / "file", KEEP, KEEP)
        status = (directory / "file").stat()
        assert (status.st_uid, status.st_gid) == (7, 8)

    @needs_root
    def test_of_a_symlink_itself(self, directory: Path) -> None:
        (directory / "file").touch()
        (directory / "symlink").symlink_to("file")
        os.lchown(directory / "symlink", 7, 8)
        assert (directory / "symlink").lstat().st_uid == 7
        assert (directory / "file").stat().st_uid == os.geteuid()
        os.chown(directory / "symlink", 9, 10)
        assert (directory / "file").stat().st_uid == 9
        assert (directory / "symlink").lstat().st_uid == 7

    @needs_root
    def test_nobody_gives_files_away(self, directory: Path) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", ALICE.uid, ALICE.gid)
        for uid in (BOB.uid, 0):
            with fails_with(errno.EPERM):
                act_as(ALICE, lambda uid=uid: os.chown(directory / "file", uid, KEEP))
        with fails_with(errno.EPERM):
            act_as(BOB, lambda: os.chown(directory / "file", BOB.uid, BOB.gid))

    @needs_root
    def test_owner_gives_the_file_to_a_group_of_hers(self, directory: Path) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", ALICE.uid, ALICE.gid)
        member = Person(ALICE.uid, ALICE.gid, groups=(777,))
        act_as(member, lambda: os.chown(directory / "file", KEEP, 777))
        assert (directory / "file").stat().st_gid == 777
        with fails_with(errno.EPERM):
            act_as(member, lambda: os.chown(directory / "file", KEEP, 778))

    @needs_root
    @pytest.mark.parametrize(
        ("before", "after"), [(0o4755, 0o755), (0o2755, 0o755), (0o6755, 0o755), (0o755, 0o755)]
    )
    def test_change_takes_setuid_and_setgid_away(
        self, directory: Path, before: int, after: int
    ) -> None:
        (directory / "file").touch()
        (directory / "file").chmod(before)
        os.chown(directory / "file", ALICE.uid, ALICE.gid)
        assert _mode(directory / "file") == oct(after)

    @needs_root
    def test_directory_keeps_setgid(self, directory: Path) -> None:
        directory.chmod(0o2755)
        os.chown(directory, ALICE.uid, ALICE.gid)
        assert _mode(directory) == oct(0o2755)


class TestTimes:
    """utimensat(2)."""

    @pytest.mark.parametrize(
        "moment",
        [
            0,
            1,
            999_999_999,
            1_234_567_890_123_456_789,
            (2**31) * 10**9 + 1,
            (2**32 + 5) * 10**9 + 999_999_999,
        ],
    )
    def test_have_nanoseconds(self, directory: Path, moment: int) -> None:
        (directory / "file").touch()
        os.utime(directory / "file", ns=(moment, moment + 1))
        status = (directory / "file").stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (moment, moment + 1)

    def test_before_1970(self, directory: Path) -> None:
        (directory / "file").touch()
        linux.set_times(directory / "file", accessed=(-100, 5), modified=(-86_400, 999_999_999))
        status = (directory / "file").stat()
        assert status.st_atime_ns == -100 * 10**9 + 5
        assert status.st_mtime_ns == -86_400 * 10**9 + 999_999_999

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_of_everything(self, directory: Path, kind: str) -> None:
        (directory / "file").touch()
        (directory / "directory").mkdir()
        (directory / "symlink").symlink_to("file")
        os.utime(directory / kind, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
        status = (directory / kind).lstat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (10**18 + 1, 10**18 + 2)

    def test_one_without_the_other(self, directory: Path) -> None:
        (directory / "file").touch()
        os.utime(directory / "file", ns=(10**18, 10**18))
        omit = (0, linux.UTIME_OMIT)
        linux.set_times(directory / "file", accessed=(5, 6), modified=omit)
        linux.set_times(directory / "file", accessed=omit, modified=(7, 8))
        linux.set_times(directory / "file", accessed=omit, modified=omit)
        status = (directory / "file").stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (5 * 10**9 + 6, 7 * 10**9 + 8)

    def test_now(self, directory: Path) -> None:
        (directory / "file").touch()
        os.utime(directory / "file", ns=(10**18, 10**18))
        started = time.time()
        linux.set_times(
            directory / "file", accessed=(0, linux.UTIME_OMIT), modified=(0, linux.UTIME_NOW)
        )
        status = (directory / "file").stat()
        assert status.st_atime_ns == 10**18
        assert started - 0.1 <= status.st_mtime <= time.time() + 0.1

    def test_of_an_open_file(self, directory: Path) -> None:
        """What futimens sets is not undone by data that was written before and is pushed out."""
        with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
            os.write(descriptor, b"data")
            os.utime(descriptor, ns=(10**18, 10**18))
            assert os.fstat(descriptor).st_mtime_ns == 10**18
        assert (directory / "file").stat().st_mtime_ns == 10**18

    @needs_root
    def test_others_may_only_touch_what_they_may_write(self, directory: Path) -> None:
        (directory / "file").touch()
        os.chown(directory / "file", ALICE.uid, ALICE.gid)
        (directory / "file").chmod(0o644)
        act_as(ALICE, lambda: os.utime(directory / "file", ns=(1, 2)))
        with fails_with(errno.EPERM):
            act_as(BOB, lambda: os.utime(directory / "file", ns=(3, 4)))
        with fails_with(errno.EACCES):
            act_as(BOB, lambda: os.utime(directory / "file"))
        (directory / "file").chmod(0o666)
        act_as(BOB, lambda: os.utime(directory / "file"))
        with fails_with(errno.EPERM):
            act_as(BOB, lambda: os.utime(directory / "file", ns=(3, 4)))
        assert (directory / "file").stat().st_mtime > 10**9

    def test_of_a_new_file_are_now(self, directory: Path) -> None:
        started = time.time()
        (directory / "file").touch()
        (directory / "directory").mkdir()
        (directory / "symlink").symlink_to("x")
        for path in directory.iterdir():
            status = path.lstat()
            for moment in (status.st_atime, status.st_mtime, status.st_ctime):
                assert started - 0.1 <= moment <= time.time() + 0.1, path.name


class TestAccessTime:
    """atime as with the mount option relatime; what the kernel has cached may leave no trace."""

    @pytest.fixture
    def old(self, directory: Path) -> Path:
        """A file that was read two days ago, and written since, and is not in the cache."""
        path = directory / "file"
        path.write_bytes(b"data")
        evict(path)
        now = time.time_ns()
        os.utime(path, ns=(now - 172_800 * 10**9, now - 3600 * 10**9))
        return path

    def test_advances_when_older_than_the_data(self, old: Path) -> None:
        before = old.stat().st_atime_ns
        old.read_bytes()
        assert old.stat().st_atime_ns > before

    def test_stays_when_newer_than_the_data(self, old: Path) -> None:
        now = time.time_ns()
        # The change time counts too, and utimensat sets it to now; so the access is to come.
        os.utime(old, ns=(now + 60 * 10**9, now - 3600 * 10**9))
        before = old.stat().st_atime_ns
        old.read_bytes()
        assert old.stat().st_atime_ns == before

    def test_advances_after_a_day(self, old: Path) -> None:
        now = time.time_ns()
        os.utime(old, ns=(now - 90_000 * 10**9, now - 172_800 * 10**9))
        old.read_bytes()
        assert old.stat().st_atime_ns > now - 3600 * 10**9

    def test_leaves_the_other_times_alone(self, old: Path) -> None:
        before = old.stat()
        old.read_bytes()
        assert old.stat().st_mtime_ns == before.st_mtime_ns
        assert old.stat().st_ctime_ns == before.st_ctime_ns

    def test_owner_may_read_without_trace(self, old: Path) -> None:
        before = old.stat().st_atime_ns
        with opened(old, os.O_RDONLY | os.O_NOATIME) as descriptor:
            os.read(descriptor, 10)
        assert old.stat().st_atime_ns == before


def test_stat_is_plausible(directory: Path) -> None:
    (directory / "file").write_bytes(b"x" * 10_000)
    status = (directory / "file").stat()
    assert status.st_dev == directory.stat().st_dev
    assert status.st_blksize >= 512
    assert status.st_blocks * 512 < 10_000_000


def test_stat_by_name_and_by_descriptor_agree(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"data")
        assert os.fstat(descriptor)[:7] == (directory / "file").stat()[:7]
        os.fsync(descriptor)
        assert os.fstat(descriptor) == (directory / "file").stat()


def test_statfs_is_plausible(directory: Path) -> None:
    space = os.statvfs(directory)
    assert space.f_bsize >= 512
    assert space.f_frsize >= 512
    assert 0 < space.f_bavail <= space.f_bfree <= space.f_blocks
    assert space.f_namemax == 255
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        assert os.fstatvfs(descriptor).f_blocks == space.f_blocks


def test_df_shows_it(directory: Path) -> None:
    for option in ("-k", "-i"):
        shown = subprocess.run(
            [program("df"), option, directory], check=True, capture_output=True, text=True
        )
        assert len(shown.stdout.splitlines()) == 2
