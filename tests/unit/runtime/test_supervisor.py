"""What a service manager is told, and what it asks for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bftfs.runtime import supervisor


def listening(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.settimeout(5)
    return manager


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told_at_the_address_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    path = f"@bftfs-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listening(f"\0{path[1:]}" if abstract else path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        supervisor.tell(supervisor.READY)
        assert manager.recv(64) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nobody/listens/here"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    supervisor.tell(supervisor.READY)


@pytest.mark.parametrize(
    ("asked", "process", "every_us"),
    [
        ("3000000", "me", 1_500_000),
        ("3000000", None, 1_500_000),
        ("3000000", "1", None),  # of the process that has started this one
        ("", None, None),
        ("-5", None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_how_often_it_wants_to_be_told(
    monkeypatch: pytest.MonkeyPatch, asked: str, process: str | None, every_us: int | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", asked)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if process is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if process == "me" else process)
    assert supervisor.alive_every_us() == every_us
