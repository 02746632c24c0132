"""Processes that `bftfs up` starts and `bftfs down` stops, known by their pid files.

A pid file alone proves nothing after a reboot: a process counts as ours only while its command line
names the module that we started and the directory that it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory, NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId

STOP_PATIENCE_S = 20.0
_MODULE = "nodes"


def is_running(pid: int, node: NodeDirectory) -> bool:
    """True if process `pid` is `python -m nodes … directory …`, and no zombie."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z" and _MODULE.encode() in words and os.fsencode(node.path) in words


def pid_in(file: Path) -> int | None:
    """The process id that a pid file holds, if any."""
    try:
        return int(file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def running_nodes(directory: DataDirectory, description: ClusterDescription) -> dict[NodeId, int]:
    """The process ids of the cluster's nodes that run on this machine."""
    found = {}
    for member in description.members:
        node = directory.node(member.node)
        pid = pid_in(node.pid)
        if pid is not None and is_running(pid, node):
            found[member.node] = pid
    return found


def start(node: NodeDirectory, description: Path) -> subprocess.Popen[bytes]:
    """Start a node in a session of its own, its output appended to its log."""
    node.log.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--data", str(node.path), "--cluster", str(description)]
    with node.log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def stop(pid: int, node: NodeDirectory) -> bool:
    """Ask the process to stop and wait for it. False if it does not stop in time."""
    if is_running(pid, node):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_PATIENCE_S
    while is_running(pid, node):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def last_words(log: Path, *, lines: int = 3) -> str:
    """The end of a log, for a message about a process that did not start."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            tail = file.read().decode(errors="replace").strip().splitlines()[-lines:]
    except OSError:
        return "(no log)"
    return "\n  ".join(tail) or "(its log is empty)"


def require_writable(directory: Path, *, purpose: str) -> None:
    """Create `directory` if need be; a `UsageError` if it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(
            f"{directory}: is not a directory; give another one for {purpose}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{directory}: cannot be made ({error.strerror}); give another one for {purpose}"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"{directory}: not writable; give another directory for {purpose}")
