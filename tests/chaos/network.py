"""Network namespaces as machines, and the wire between them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.wire import MTU_BYTES, Way, address, rule
from tests.end_to_end.watchdog import PROJECT


class NoNetworks(Exception):
    """Network namespaces or TUN devices cannot be had here; says why."""


def _ip(*words: str) -> None:
    finished = subprocess.run(
        ["ip", *words], capture_output=True, text=True, timeout=30, check=False
    )
    if finished.returncode:
        raise NoNetworks(f"ip {' '.join(words)}: {finished.stderr.strip()}")


class Network:
    """`machines` network namespaces, each with an address, all connected."""

    def __init__(self, prefix: str, machines: int, *, seed: int) -> None:
        self._names = [f"{prefix}{number}" for number in range(machines)]
        self._wire: subprocess.Popen[str] | None = None
        self._seed = seed

    def build(self) -> None:
        """Make the machines and connect them."""
        for name in self._names:
            _ip("netns", "add", name)
        self._wire = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.wire", str(self._seed), *self._names],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the run first, and then the wire
        )
        if self._answer() != "ready":
            raise NoNetworks("the TUN devices cannot be made (is there /dev/net/tun?)")
        for number, name in enumerate(self._names):
            _ip("-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "mtu", str(MTU_BYTES), "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def tear_down(self) -> None:
        """Remove the machines; what runs in them loses its network."""
        if self._wire is not None:
            assert self._wire.stdin is not None
            with contextlib.suppress(OSError):
                self._wire.stdin.close()
            self._wire.wait(timeout=30)
        for name in self._names:
            with contextlib.suppress(NoNetworks):
                _ip("netns", "del", name)

    def inside(self, machine: int) -> list[str]:
        """What a command line begins with that runs on this machine (but with our files)."""
        return ["nsenter", f"--net={Path('/run/netns') / self._names[machine]}", "--"]

    def change(self, source: int, target: int, way: Way) -> None:
        """Packets from one machine to another fare so from now on."""
        assert self._wire is not None
        assert self._wire.stdin is not None
        self._wire.stdin.write(rule(source, target, way))
        self._wire.stdin.flush()
        if self._answer() != "done":
            raise NoNetworks("the wire has ended")

    def others(self, machine: int) -> Iterator[int]:
        """All machines but this one."""
        return (number for number in range(len(self._names)) if number != machine)

    def _answer(self) -> str:
        assert self._wire is not None
        assert self._wire.stdout is not None
        return self._wire.stdout.readline().strip()
