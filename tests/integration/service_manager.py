"""Stands for the service manager that started a process: hears what the process tells it."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

WATCHDOG_US = 400_000


class ServiceManager:
    """Hears what processes tell that were started with its `environment`."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bftfs-manager-")
        path = Path(self._directory.name) / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.parent.chmod(0o755)
        self.environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(WATCHDOG_US),
        }

    def hears(self, *, within_s: float) -> str:
        """The next thing that it is told; "" if that does not come in time."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def hears_until(self, state: str, *, within_s: float) -> list[str]:
        """All that it is told up to `state`; fails if nothing is told for so long."""
        heard = []
        while not heard or heard[-1] != state:
            heard.append(self.hears(within_s=within_s))
            assert heard[-1], f"silence for {within_s} s after {heard[:-1]}"
        return heard

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
        self._directory.cleanup()
