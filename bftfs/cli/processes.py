"""The processes of a cluster on this machine: its nodes and its mounts.

`bftfs up` and `down` start and stop nodes; `bftfs mount` and `unmount`, below, mounts. Nodes have
pid files, and mounts are known by their command lines. A pid file alone proves nothing after a
reboot: a process counts as ours only while its command line names the module that we started and
the directory that it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click

from bftfs.cli.options import data_option
from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory, NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.printable import as_word
from bftfs.runtime import clock
from mount.mountpoint import (
    FILE_SYSTEM_TYPE,
    mounted_at,
    mounts,
    prepare,
    require_fuse,
    resolved,
)
from mount.options import parse

UNMOUNT_PATIENCE_S = 60.0  # dirty data is written first
STOP_PATIENCE_S = 20.0
_MODULE = "nodes"


def is_running(pid: int, node: NodeDirectory) -> bool:
    """True if process `pid` is no zombie and a node's: `python -m nodes` or `bftfs node run`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    runs_nodes = _MODULE.encode() in words or (b"node", b"run") in pairwise(words)
    return state != "Z" and runs_nodes and os.fsencode(node.path) in words


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
            f"{as_word(directory)}: is not a directory; give another one for {purpose}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{as_word(directory)}: cannot be made ({error.strerror}); give another one for "
            f"{purpose}"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(
            f"{as_word(directory)}: not writable; give another directory for {purpose}"
        )


# --- mounts ---------------------------------------------------------------------------------


def require_mountable(directory: DataDirectory, mountpoint: Path, *, options: str) -> Path:
    """The mount point as the kernel will name it, made if it is missing.

    A `UsageError` if the cluster cannot be mounted there, whether there is a cluster yet or not.
    """
    require_fuse(allow_other=parse(options).allow_other)
    mountpoint = resolved(mountpoint)
    if mountpoint in mounts_of(directory):
        return mountpoint
    # A look at the mount of a cluster that is down would wait for ever.
    if mounted_at(mountpoint) is None and not os.path.lexists(mountpoint):
        require_writable(mountpoint, purpose="the mount")
    prepare(mountpoint)
    return mountpoint


class MountProcess(NamedTuple):
    """A process that serves a mount, known by its command line."""

    pid: int
    mountpoint: Path
    options: str


@click.command()
@data_option
@click.argument("mountpoint", type=Path)
@click.option("-o", "options", default="", help="Mount options, separated by commas.")
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground.")
@click.option("--at", default=None, help="Mount the files as of this time or snapshot, read-only.")
def mount(
    directory: DataDirectory, mountpoint: Path, options: str, foreground: bool, at: str | None
) -> None:
    """Mount a cluster whose nodes are running.

    Options: close-to-open (the default) or strict, ro, hard (the default) or soft, allow_other,
    client=NAME, and those of mount(8).

    Example: bftfs mount --data /srv/files -o client=alice,soft /mnt/files
    """
    mountpoint = mountpoint.absolute()
    if at is not None:
        # Only then: it takes as long to import as all else here.
        from bftfs.filesystem.time_names import format_time_name

        time_us = _time_of_mount(at)
        at = at if time_us is None else format_time_name(time_us)
        if "," in at:
            raise UsageError(f"--at {at}: neither a time nor the name of a snapshot")
        options = f"{options},at={at}" if options else f"at={at}"
    command = _command(directory, mountpoint, options)
    if foreground:
        os.execv(command[0], [*command, "--foreground"])
    if not mount_cluster(directory, mountpoint, options=options):
        raise UsageError(f"{as_word(mountpoint)}: this cluster is mounted there already")


def _time_of_mount(text: str) -> int | None:
    """The time that `text` says; None if it may be a snapshot, which the mount process looks up."""
    from bftfs.cli.times import AmbiguousTime, past_time

    try:
        return past_time(text, now_us=clock.now_us())
    except AmbiguousTime:
        return None


@click.command()
@click.argument("mountpoint", type=Path)
def unmount(mountpoint: Path) -> None:
    """Unmount, after writing all data to the nodes, as `umount` and `fusermount3 -u` do.

    Example: bftfs unmount /mnt/files
    """
    mountpoint = mountpoint.absolute()
    for mounted in mounts():
        if mounted.kind == FILE_SYSTEM_TYPE and mounted.path == mountpoint:
            unmount_path(DataDirectory(Path(mounted.source)), mountpoint)
            return
    raise UsageError(
        f"{as_word(mountpoint)}: no bftfs is mounted there; /proc/mounts lists all mounts"
    )


def _command(directory: DataDirectory, mountpoint: Path, options: str) -> list[str]:
    # -P: a directory that happens to be the current one must not provide modules.
    command = [sys.executable, "-P", "-m", "mount", "--data", str(directory.path), str(mountpoint)]
    return [*command, "-o", options] if options else command


def mount_cluster(directory: DataDirectory, mountpoint: Path, *, options: str) -> bool:
    """Mount the cluster and return once it is usable; False if it was mounted there before.

    The mount process itself says on the terminal what it waits for, and why it fails.
    """
    if mountpoint in mounts_of(directory) and _answers(mountpoint):
        return False
    command = _command(directory, mountpoint, options)
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    if outcome.returncode < 0:
        raise UsageError(
            f"{as_word(mountpoint)}: the mount process was killed; see "
            f"{as_word(directory.mount_log)}",
            exit_code=1,
        )
    if outcome.returncode != 0:
        raise click.exceptions.Exit(1)
    return True


def _answers(mountpoint: Path) -> bool:
    """True if there is a process behind the mount (not after it was killed)."""
    try:
        os.statvfs(mountpoint)
    except OSError:
        return False
    return True


def mounts_of(directory: DataDirectory) -> list[Path]:
    """Where the cluster in `directory` is mounted on this machine."""
    return [
        mounted.path
        for mounted in mounts()
        if mounted.kind == FILE_SYSTEM_TYPE and mounted.source == str(directory.path)
    ]


def mount_processes(directory: DataDirectory) -> list[MountProcess]:
    """The processes that serve mounts of the cluster in `directory`."""
    marker = [b"-m", b"mount", b"--data", os.fsencode(directory.path)]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        for at in range(len(words) - len(marker)):
            if words[at : at + len(marker)] == marker:
                mountpoint, *rest = map(os.fsdecode, words[at + len(marker) :])
                options = rest[rest.index("-o") + 1] if "-o" in rest[:-1] else ""
                found.append(MountProcess(int(entry.name), Path(mountpoint), options))
                break
    return found


def unmount_path(directory: DataDirectory, mountpoint: Path) -> None:
    """Unmount and wait until the mount process has written everything and ended."""
    # Without a look at the mount, which hangs where no node answers.
    is_root = os.geteuid() == 0
    command = ["umount", "--no-canonicalize"] if is_root else ["fusermount3", "-u"]
    outcome = subprocess.run(
        [*command, str(mountpoint)], capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0:
        raise UsageError(
            f"{as_word(mountpoint)}: {outcome.stderr.strip() or 'cannot be unmounted'}; "
            "end the programs that use it (`fuser -vm` lists them) and try again",
            exit_code=1,
        )
    await_end_of_mounts(directory, mountpoint)


def await_end_of_mounts(directory: DataDirectory, mountpoint: Path | None = None) -> None:
    """Wait until no process is left that serves the `mountpoint`, or any of the cluster.

    A process whose mount was detached, or is being unmounted by another command, may still write.
    """
    deadline = time.monotonic() + UNMOUNT_PATIENCE_S
    while writing := [
        process
        for process in mount_processes(directory)
        if mountpoint is None or process.mountpoint == mountpoint
    ]:
        if time.monotonic() > deadline:
            raise UsageError(
                f"{as_word(writing[0].mountpoint)}: unmounted, but its process "
                f"{writing[0].pid} still "
                f"writes; see {as_word(directory.mount_log)}",
                exit_code=1,
            )
        time.sleep(0.02)
