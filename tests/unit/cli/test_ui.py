"""bftfs.cli.ui: what goes wrong before there is a page, and how a browser gets the address."""

from __future__ import annotations

import html
import os
import socket
import stat
import sys
import webbrowser
from pathlib import Path

import pytest

from bftfs.cli import ui
from bftfs.cli.main import main
from bftfs.errors import UsageError


def test_only_this_machine_can_reach_it() -> None:
    with ui._listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}: another program has it; choose"):
            ui._listen(port)


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster.toml").touch()
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "bftfs.ui.app", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["ui", "--data", str(tmp_path)])
    assert ended.value.code == 2
    assert "need the Python package flask" in capsys.readouterr().err


def test_no_command_line_has_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody on this machine sees the command lines of processes."""
    opened: list[str] = []

    def remember(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", remember)
    address = "http://127.0.0.1:1/place/enter?token=secret&more"
    ui._open(address, tmp_path)
    (page,) = tmp_path.iterdir()
    assert opened == [page.as_uri()]
    assert stat.S_IMODE(os.stat(page).st_mode) == 0o600
    assert address in html.unescape(page.read_text())


def test_without_a_browser_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    ui._open("http://127.0.0.1:1/", tmp_path)
    assert "found no browser" in capsys.readouterr().err
