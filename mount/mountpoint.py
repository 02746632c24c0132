"""The directory to mount on: checked before mounting, unmounted and cleaned up afterwards.

Each obstacle is reported in one sentence that names it and the next step.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from bftfs.errors import UsageError
from bftfs.printable import as_word

DEVICE = Path("/dev/fuse")
CONFIGURATION = Path("/etc/fuse.conf")
FILE_SYSTEM_TYPE = "fuse.bftfs"
ANSWER_PATIENCE_S = 5.0

_MNT_DETACH = 2


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of the kernel's table of mounts."""

    path: Path
    device: str  # "major:minor"
    kind: str
    source: str


def mounts() -> list[Mounted]:
    """The kernel's table of mounts, in the order of mounting."""
    found = []
    for line in _table().splitlines():
        before, _, after = line.partition(" - ")
        kind, source, *_ = after.split(" ")
        device, where = before.split(" ")[2], before.split(" ")[4]
        found.append(Mounted(Path(_unescaped(where)), device, kind, _unescaped(source)))
    return found


def _table() -> str:
    return Path("/proc/self/mountinfo").read_text()


def mounted_at(path: Path) -> Mounted | None:
    """The topmost mount at `path`, if it is a mountpoint."""
    return next((mounted for mounted in reversed(mounts()) if mounted.path == path), None)


def containing(path: Path) -> Mounted | None:
    """The mount of bftfs that the absolute `path` is in, if it is in one."""
    above = [mounted for mounted in mounts() if mounted.path in (path, *path.parents)]
    # Of several at one place, the last covers the others.
    innermost = max(reversed(above), key=lambda mounted: len(mounted.path.parts), default=None)
    return innermost if innermost is not None and innermost.kind == FILE_SYSTEM_TYPE else None


def resolved(path: Path) -> Path:
    """`path` as the table of mounts has it, without a request to the file system mounted there.

    Such a request might wait for ever.
    """
    inside = Path(os.path.realpath(path.absolute().parent)) / path.name
    return inside if mounted_at(inside) is not None else Path(os.path.realpath(inside))


def _unescaped(text: str) -> str:
    """`text` without the kernel's octal escapes of white space and backslashes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def require_fuse(*, allow_other: bool) -> None:
    """Refuse if this process cannot mount, naming what to install or to permit."""
    if not DEVICE.exists():
        raise UsageError(
            "/dev/fuse is missing: load the kernel's FUSE module with `modprobe fuse` "
            "(in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN)",
            exit_code=1,
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise UsageError(
            "you may not use /dev/fuse: mount as root, or ask root to run `chmod 666 /dev/fuse`",
            exit_code=1,
        )
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise UsageError(
            "fusermount3 is missing, without which only root can mount: `apt-get install fuse3`",
            exit_code=1,
        )
    if allow_other and not _user_allow_other():
        raise UsageError(
            "mount option allow_other is for root, unless /etc/fuse.conf has a line "
            "user_allow_other",
            exit_code=1,
        )


def _user_allow_other() -> bool:
    try:
        lines = CONFIGURATION.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def prepare(path: Path) -> bool:
    """Refuse unless one can mount at `path`. True if a dead mount had to be removed first."""
    cleaned = False
    mounted = mounted_at(path)
    if mounted is not None and mounted.kind == FILE_SYSTEM_TYPE:
        if not _is_dead(path):
            raise UsageError(
                f"{as_word(path)}: {as_word(mounted.source)} is mounted there already; "
                f"run `umount {as_word(path)}` first, or choose another directory"
            )
        detach(path)
        cleaned = True
    try:
        status = path.stat()
        entries = next(iter(os.scandir(path)), None) if stat.S_ISDIR(status.st_mode) else None
    except FileNotFoundError:
        raise UsageError(
            f"{as_word(path)}: no such directory; make it with `mkdir -p {as_word(path)}`"
        ) from None
    except OSError as error:
        dead = error.errno == errno.ENOTCONN
        step = f"run `umount {as_word(path)}` and try again" if dead else "choose another directory"
        raise UsageError(f"{as_word(path)}: {error.strerror}; {step}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(
            f"{as_word(path)}: is not a directory; choose an empty directory to mount on"
        )
    if entries is not None:
        raise UsageError(
            f"{as_word(path)}: is not empty, and its files would be hidden; choose an empty "
            "directory"
        )
    if not os.access(path, os.W_OK):
        raise UsageError(
            f"{as_word(path)}: you may not write there; choose a directory of your own"
        )
    return cleaned


def _is_dead(path: Path) -> bool:
    """True if the process behind a mount is gone; False if it only does not answer in time."""
    outcome: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            outcome.append(error.errno or 0)

    asking = threading.Thread(target=ask, daemon=True)  # may wait for a cluster that is down
    asking.start()
    asking.join(ANSWER_PATIENCE_S)
    return outcome == [errno.ENOTCONN]


def unmount(path: Path) -> bool:
    """Unmount; False if programs use the mount."""
    return _unmount(path, lazily=False)


def detach(path: Path) -> None:
    """Take a mount out of the tree, even while programs use it."""
    _unmount(path, lazily=True)


def _unmount(path: Path, *, lazily: bool) -> bool:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.umount2(os.fsencode(path), _MNT_DETACH if lazily else 0) == 0)
    command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", str(path)]
    outcome = subprocess.run(command, capture_output=True, check=False)
    return outcome.returncode == 0
