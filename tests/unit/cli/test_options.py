"""Which cluster a command means that is told of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bftfs.cli import options
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from mount import mountpoint
from mount.mountpoint import Mounted


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place that the table of mounts says is a mount of the cluster in /srv/cluster."""
    entry = Mounted(tmp_path, "0:1", mountpoint.FILE_SYSTEM_TYPE, "/srv/cluster")
    monkeypatch.setattr(mountpoint, "mounts", lambda: [entry])
    monkeypatch.setenv(options.DATA_VARIABLE, "/srv/other")
    monkeypatch.setenv("HOME", "/home/ann")
    return tmp_path


def test_inside_a_mount_it_is_the_one_that_is_mounted(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounted / "below").mkdir()
    monkeypatch.chdir(mounted / "below")
    assert options.data_in_use() == Path("/srv/cluster")


def test_elsewhere_it_is_that_of_the_environment_or_of_make_up(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert options.data_in_use() == Path("/srv/other")
    monkeypatch.setenv(options.DATA_VARIABLE, "")
    assert options.data_in_use() == Path("/home/ann/.local/share/bftfs")
    assert options.data_words(DataDirectory(Path("/home/ann/.local/share/bftfs"))) == ""
    assert options.data_words(DataDirectory(Path("/srv/x"))) == " --data /srv/x"


def test_a_directory_that_was_removed_is_in_no_mount(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert options.data_in_use() == Path("/srv/other")


def test_a_directory_that_cannot_be_entered_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bftfs.data_directory.os.stat", refuse)
    with pytest.raises(UsageError, match=r"/root/x: cannot be looked into \(Permission denied\)"):
        DataDirectory.existing(Path("/root/x"))
