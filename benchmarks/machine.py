"""Where a result was measured: the machine, the file system under a directory, the commit."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts that matter when figures are compared with another machine's."""

    processor: str
    cores: int
    memory_mib: int
    kernel: str
    distribution: str
    python: str
    load_average: float  # over the minute before the run: not 0, not alone

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        return cls(
            processor=_colon_value("/proc/cpuinfo", "model name") or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_mib=int(_colon_value("/proc/meminfo", "MemTotal").split()[0]) // 1024,
            kernel=platform.release(),
            distribution=_distribution(),
            python=platform.python_version(),
            load_average=round(os.getloadavg()[0], 2),
        )


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system that a directory lies on."""

    kind: str
    mount_point: str
    options: str

    @classmethod
    def of(cls, directory: Path) -> "FileSystem":
        """From the mount table: the deepest mount point above `directory`, mounted last."""
        resolved = directory.resolve()
        found = cls("unknown", "", "")
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            # proc(5): id, parent, major:minor, root, mount point, options, …, "-", type, source, …
            mount, _, source = line.partition(" - ")
            mount_point, options = mount.split(" ")[4:6]
            above = resolved.is_relative_to(mount_point)
            if above and len(mount_point) >= len(found.mount_point):
                kind, _, rest = source.partition(" ")
                found = cls(kind, mount_point, f"{options} {rest}")
        return found


@dataclass(frozen=True, slots=True)
class Commit:
    """The version of the project that was measured."""

    hash: str
    modified: bool

    @classmethod
    def here(cls) -> "Commit | None":
        """The commit checked out; None where the project is not a git work tree."""
        head = _git("rev-parse", "HEAD")
        if not head:
            return None
        changes = _git("status", "--porcelain", "--untracked-files=no")
        return cls(head, modified=bool(changes))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_REPOSITORY), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _colon_value(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
