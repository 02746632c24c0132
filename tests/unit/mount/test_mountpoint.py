"""mount.mountpoint"""

import errno
import os
from pathlib import Path

import pytest

from bftfs.errors import UsageError
from mount import mountpoint
from mount.mountpoint import Mounted, mounted_at, prepare, require_fuse

TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /mnt/a rw,nosuid - fuse.bftfs /srv/data rw,user_id=0
41 22 0:41 / /mnt/a rw,nosuid - fuse.bftfs /srv/other rw,user_id=0
42 22 0:42 / /mnt/with\040blank rw - fuse.bftfs /srv/back\134slash rw
"""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "_table", lambda: TABLE)


@pytest.mark.usefixtures("table")
def test_the_kernel_s_table_is_read():
    assert mounted_at(Path("/mnt/with blank")) == Mounted(
        Path("/mnt/with blank"), "0:42", "fuse.bftfs", "/srv/back\\slash"
    )
    assert mounted_at(Path("/mnt/b")) is None


@pytest.mark.usefixtures("table")
def test_of_several_mounts_the_last_is_seen():
    found = mounted_at(Path("/mnt/a"))
    assert found is not None
    assert found.source == "/srv/other"


def test_a_path_is_resolved(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "other").symlink_to("real")
    (tmp_path / "real" / "files").symlink_to("/usr")
    assert mountpoint.resolved(tmp_path / "other" / "new") == tmp_path / "real" / "new"
    assert mountpoint.resolved(tmp_path / "other" / "files") == Path("/usr")


def test_a_mountpoint_is_resolved_without_a_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other").symlink_to(".")
    mounted = tmp_path / "files"
    monkeypatch.setattr(mountpoint, "_table", lambda: f"4 2 0:40 / {mounted} rw - fuse.bftfs /s rw")
    looked: list[object] = []
    usual = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: (looked.append(str(path)), usual(path))[1])
    assert mountpoint.resolved(tmp_path / "other" / "files") == mounted
    assert str(mounted) not in looked


def test_an_empty_directory_will_do(tmp_path: Path):
    assert not prepare(tmp_path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "mkdir -p"),
        (lambda path: path.write_text(""), "not a directory"),
        (lambda path: (path / "full").mkdir(parents=True), "not empty"),
    ],
)
def test_what_will_not_do_is_told(tmp_path: Path, make: object, told: str):
    path = tmp_path / "files"
    make(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=told) as caught:
        prepare(path)
    assert str(path) in str(caught.value)


def mount_there(monkeypatch: pytest.MonkeyPatch, path: Path, outcome: OSError | None) -> list[Path]:
    """A mount at `path` of which statvfs says `outcome`; what is detached."""
    detached: list[Path] = []
    entry = f"40 22 0:40 / {path} rw,nosuid - fuse.bftfs /srv/data rw,user_id=0\n"
    monkeypatch.setattr(mountpoint, "_table", lambda: entry)

    def statvfs(_: Path) -> None:
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(mountpoint, "detach", detached.append)
    return detached


def test_a_mount_without_a_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detached = mount_there(monkeypatch, tmp_path, OSError(errno.ENOTCONN, "not connected"))
    assert prepare(tmp_path)
    assert detached == [tmp_path]


@pytest.mark.parametrize("outcome", [None, OSError(errno.EACCES, "not for you")])
def test_a_mount_that_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: OSError | None
):
    detached = mount_there(monkeypatch, tmp_path, outcome)
    with pytest.raises(UsageError, match="/srv/data is mounted there already"):
        prepare(tmp_path)
    assert detached == []


def test_without_the_device_one_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mountpoint, "DEVICE", tmp_path / "fuse")
    with pytest.raises(UsageError, match="modprobe fuse"):
        require_fuse(allow_other=False)


@pytest.fixture
def without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path / "fuse"
    device.touch()
    monkeypatch.setattr(mountpoint, "DEVICE", device)
    monkeypatch.setattr(mountpoint, "CONFIGURATION", tmp_path / "fuse.conf")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def test_without_the_helper_one_is_told_what_to_install(
    without_root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(without_root))
    with pytest.raises(UsageError, match="apt-get install fuse3"):
        require_fuse(allow_other=False)


def test_allow_other_needs_a_line_of_root(without_root: Path, monkeypatch: pytest.MonkeyPatch):
    helper = without_root / "fusermount3"
    helper.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(without_root))
    require_fuse(allow_other=False)
    configuration = without_root / "fuse.conf"
    for line in ("", "#user_allow_other\n"):
        configuration.write_text(line)
        with pytest.raises(UsageError, match="user_allow_other"):
            require_fuse(allow_other=True)
    configuration.write_text("mount_max = 3\nuser_allow_other\n")
    require_fuse(allow_other=True)
