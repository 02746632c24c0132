"""mount.main: what the command lines say and refuse, before anything is mounted."""

import os
import sys
from pathlib import Path

import pytest

from mount import main as program
from mount.main import main, mount_helper


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory, as far as anybody looks before connecting."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "cluster.toml").touch()
    return path


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that the process was to become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: commands.append(words))
    return commands


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What `python -m mount` says when it refuses."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code not in (0, None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_directory_without_a_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    said = refused(capsys, "--data", tmp_path, tmp_path)
    assert said.startswith(f"bftfs: {tmp_path}: no cluster here")


def test_an_unknown_mount_option(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path):
    said = refused(capsys, "--data", data, tmp_path, "-o", "strickt")
    assert "strickt" in said
    assert "did you mean strict?" in said


def test_an_unknown_word(capsys: pytest.CaptureFixture[str]):
    assert "--colour" in refused(capsys, "--colour")


def test_a_mountpoint_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(program, "require_fuse", lambda *, allow_other: None)
    said = refused(capsys, "--data", data, tmp_path / "missing")
    assert f"mkdir -p {tmp_path / 'missing'}" in said


def test_the_helper_becomes_the_mount_command(
    data: Path, tmp_path: Path, executed: list[list[str]]
):
    with pytest.raises(SystemExit) as end:
        mount_helper([str(data), str(tmp_path), "-o", "rw,noauto,_netdev,strict"])
    assert end.value.code == 0
    (words,) = executed
    assert words == [
        sys.executable, "-P", "-m", "mount", "--data", str(data), str(tmp_path),
        "-o", "rw,noauto,_netdev,strict",
    ]  # fmt: skip


def test_the_helper_refuses_unknown_options_if_not_sloppy(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, executed: list[list[str]]
):
    with pytest.raises(SystemExit) as end:
        mount_helper([str(data), str(tmp_path), "-o", "colour=red"])
    assert end.value.code == 2
    assert "colour=red" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        mount_helper([str(data), str(tmp_path), "-s", "-n", "-o", "colour=red"])
    assert end.value.code == 0
    (words,) = executed
    assert words[-1] == "--sloppy"


def test_the_helper_may_be_asked_to_do_nothing_and_tell_it(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, executed: list[list[str]]
):
    with pytest.raises(SystemExit) as end:
        mount_helper([str(data), str(tmp_path), "-fv"])
    assert end.value.code == 0
    assert executed == []
    assert f"-m mount --data {data} {tmp_path}" in capsys.readouterr().out
