"""A process that sets a test free whose mount hangs.

A program that waits for a FUSE file system cannot be killed, not even by a signal's handler, and a
page fault on a mapped file stops every Python thread with it. So somebody else must watch: this
process is told when a test begins, how long it may take, and when it is over, and when the time is
up it aborts the FUSE connections below one directory. Every waiting system call then fails, and so
does the test. When the test process dies, whatever it has left there is unmounted and stopped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import select
from types import TracebackType
from typing import Self

from tests.end_to_end import linux

PROJECT = Path(__file__).resolve().parents[2]
GRACE_S = 5


def mounts_below(root: Path) -> list[Path]:
    """The mount points below `root`, the deepest first; asks the kernel, touches no mount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        escaped = line.split()[4]
        point = Path(escaped.encode().decode("unicode_escape"))
        if point.is_relative_to(root):
            found.append(point)
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


class Watchdog:
    """The test process's end of it."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.watchdog", str(root)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._tell("farewell")
        self._process.stdin.close()
        self._process.wait(timeout=30)

    @contextlib.contextmanager
    def guard(self, limit_s: float, name: str) -> Iterator[None]:
        """Everything below the root is aborted when the body takes longer than this.

        Somewhat later than the limit, so that a test that still can fails by itself; but then, too,
        something hangs.
        """
        started = time.monotonic()
        self._tell(f"arm {limit_s + GRACE_S} {name}")
        try:
            yield
        finally:
            overdue = time.monotonic() - started > limit_s
            self._tell(f"arm 0 {name}" if overdue else "disarm")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def _give_up(root: Path, flags: int) -> None:
    for point in mounts_below(root):
        # A mount that is busy refuses to go; its connection is aborted nevertheless.
        with contextlib.suppress(OSError):
            linux.unmount(point, linux.MNT_FORCE | linux.UMOUNT_NOFOLLOW | flags)


def _clean_up(root: Path) -> None:
    _give_up(root, linux.MNT_DETACH)
    for data in root.glob("*/data"):
        command = [sys.executable, "-m", "bftfs", "down", "--data", str(data)]
        subprocess.run(command, cwd=PROJECT, timeout=60, check=False)
    shutil.rmtree(root, ignore_errors=True)


def _watch(root: Path) -> None:
    deadline: float | None = None
    name = ""
    received = b""
    while True:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select([0], [], [], patience)
        if not ready:
            sys.stderr.write(f"\nwatchdog: {name} hangs; aborting the mounts below {root}\n")
            _give_up(root, 0)
            deadline = None
            continue
        news = os.read(0, 65536)
        if not news:
            _clean_up(root)
            return
        *lines, received = (received + news).split(b"\n")
        for line in lines:
            match line.decode().split(maxsplit=2):
                case ["arm", seconds, name]:
                    deadline = time.monotonic() + float(seconds)
                case ["farewell"]:
                    return
                case _:
                    deadline = None


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
