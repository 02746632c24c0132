"""What /proc tells about the processes that make requests: their groups and pending signals.

FUSE tells the user and one group of a caller, and libfuse does not pass INTERRUPT requests on. So
the supplementary groups of callers are read here, and whether they want to be interrupted.

Concurrency: one thread; no method awaits.
"""

from __future__ import annotations

import os
import signal
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from bftfs.credentials import Credentials, Grant

PROC = Path("/proc")
GROUPS_REMEMBERED: Final = 256  # processes
GROUPS_VALID_NS: Final = 1_000_000_000  # a process that changes its groups is noticed after this

# Signals by which people end programs. Programs expect that the handlers of other signals do not
# interrupt system calls on files.
_ENDING: Final = sum(
    1 << (number - 1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)
)
_KILL: Final = 1 << (signal.SIGKILL - 1)
_EXITING: Final = 0x4  # [linux/sched.h] PF_EXITING


class Callers:
    """The credentials of calling processes, as far as the mount's grant covers their groups."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._known: OrderedDict[tuple[int, int, int], tuple[int, Credentials]] = OrderedDict()

    def credentials(self, *, pid: int, uid: int, gid: int) -> Credentials:
        """The credentials of thread `pid` (0: of another namespace), with this uid and gid."""
        key = (pid, uid, gid)
        now = time.monotonic_ns()
        known = self._known.get(key)
        if known is not None and now - known[0] < GROUPS_VALID_NS:
            return known[1]
        groups = () if uid == 0 else groups_of(pid)
        credentials = self._grant.claimable(Credentials(uid, gid, groups))
        self._known[key] = (now, credentials)
        self._known.move_to_end(key)
        if len(self._known) > GROUPS_REMEMBERED:
            self._known.popitem(last=False)
        return credentials


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a thread; none if it cannot be seen."""
    groups = _status(pid).get("Groups", "").split()
    return tuple(sorted(map(int, groups)))


def wants_to_end(pid: int) -> bool:
    """True if the thread would end, or at least run a handler, if its system call returned.

    A thread that has a pending signal and still waits for us is in an uninterruptible wait. A
    thread that exits, and waits until we have closed its files, takes no more signals.
    """
    state, is_exiting = _state(pid)
    if is_exiting:
        return state in ("S", "D")
    if state != "D":
        return False
    status = _status(pid)
    pending = _mask(status, "SigPnd") | _mask(status, "ShdPnd")
    kept_away = _mask(status, "SigBlk") | _mask(status, "SigIgn")
    return bool(pending & (_ENDING & ~kept_away | _KILL))


def _state(pid: int) -> tuple[str, bool]:
    """The letter of a thread's state; True if it exits."""
    for line in _lines(f"{pid}/stat") if pid else ():
        fields = line.rpartition(")")[2].split()
        return fields[0], bool(int(fields[6]) & _EXITING)
    return "", False


def _session(pid: int) -> str:
    """The session of a process."""
    for line in _lines(f"{pid}/stat"):
        return line.rpartition(")")[2].split()[3]
    return ""


def process_of(thread: int) -> int | None:
    """The process that a thread belongs to; None if there is no such thread."""
    process = _status(thread).get("Tgid")
    return None if process is None else int(process)


def ending() -> tuple[int, ...]:
    """The processes that have a thread that wants to end. Slow: reads all of /proc."""
    return tuple(
        process
        for process in _numbers("")
        if any(wants_to_end(thread) for thread in _numbers(f"{process}/task"))
    )


def uses(pid: int, inode: int, device: str, *, opener: int) -> bool:
    """True if a process has inode `inode` of `device` ("major:minor") open or mapped.

    The files of an exiting process are no longer listed; then the process counts as a user if it
    is of the same session as `opener`.

    Only /proc is read: to look at the file itself would be a request to this mount.
    """
    descriptors = _numbers(f"{pid}/fdinfo")
    if not descriptors:
        return _session(pid) == _session(opener)
    mounts = _mounts_of(device)
    for descriptor in descriptors:
        facts = _facts(f"{pid}/fdinfo/{descriptor}")
        if facts.get("ino") == str(inode) and facts.get("mnt_id") in mounts:
            return True
    major, minor = map(int, device.split(":"))
    mapped = f" {major:02x}:{minor:02x} {inode} "
    return any(mapped in line for line in _lines(f"{pid}/maps"))


def _mounts_of(device: str) -> frozenset[str]:
    """The ids of the mounts of a device."""
    fields = (line.split(" ", 3) for line in _lines("self/mountinfo"))
    return frozenset(mount for mount, _, where, _ in fields if where == device)


def _numbers(directory: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(PROC / directory) if name.isdigit()]
    except OSError:
        return []


def _status(pid: int) -> dict[str, str]:
    return _facts(f"{pid}/status") if pid else {}


def _facts(path: str) -> dict[str, str]:
    """The contents of a file of lines "name: value"."""
    return {
        name: value.strip() for name, _, value in (line.partition(":") for line in _lines(path))
    }


def _lines(path: str) -> list[str]:
    """The lines of a file of /proc; none if the process is gone."""
    try:
        return (PROC / path).read_text(errors="surrogateescape").split("\n")[:-1]
    except OSError:
        return []


def _mask(status: dict[str, str], name: str) -> int:
    return int(status.get(name, "0"), 16)
