"""`bftfs mount` and `bftfs unmount`: the front door to the mount process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from bftfs.cli.processes import is_running, pid_in
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError

MOUNT_MODULE = "mount"
UNMOUNT_PATIENCE_S = 60.0  # dirty data is written first


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The cluster's files.")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-o", "options", default="", help="strict, ro, soft, allow_other, …")
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground.")
def mount(data: Path, mountpoint: Path, options: str, foreground: bool) -> None:
    """Mount a cluster whose nodes are running."""
    directory = DataDirectory.existing(data.absolute())
    mountpoint = mountpoint.absolute()
    if foreground:
        os.execv(
            sys.executable,
            [sys.executable, "-m", *_arguments(directory, mountpoint, options, foreground=True)],
        )
    if not mount_cluster(directory, mountpoint, options=options):
        raise UsageError(f"{mountpoint}: this cluster is mounted there already")


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
def unmount(mountpoint: Path) -> None:
    """Unmount, with dirty data written. (`umount` and `fusermount3 -u` do as well.)"""
    mountpoint = mountpoint.absolute()
    for source, where in _mounts():
        if where == mountpoint:
            unmount_path(DataDirectory(source), mountpoint)
            return
    raise UsageError(
        f"{mountpoint}: no bftfs is mounted there; `grep bftfs /proc/mounts` lists them"
    )


def _arguments(
    directory: DataDirectory, mountpoint: Path, options: str, *, foreground: bool
) -> list[str]:
    arguments = [MOUNT_MODULE, "--data", str(directory.path), str(mountpoint)]
    if options:
        arguments += ["-o", options]
    if foreground:
        arguments.append("--foreground")
    return arguments


def mount_cluster(directory: DataDirectory, mountpoint: Path, *, options: str) -> bool:
    """Mount the cluster and return once it is usable; False if it was mounted there before."""
    if mountpoint in mounts_of(directory) and _answers(mountpoint):
        return False
    outcome = subprocess.run(
        [sys.executable, "-m", *_arguments(directory, mountpoint, options, foreground=False)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if outcome.returncode != 0:
        message = outcome.stderr.strip().removeprefix("bftfs: ")
        raise UsageError(
            message
            or f"{mountpoint}: the mount process failed; see {directory.path / 'mount.log'}",
            exit_code=1,
        )
    return True


def _answers(mountpoint: Path) -> bool:
    """Whether there is a process behind the mount (not after it was killed)."""
    try:
        os.statvfs(mountpoint)
    except OSError:
        return False
    return True


def mounts_of(directory: DataDirectory) -> list[Path]:
    """Where the cluster in `directory` is mounted on this machine."""
    return [where for source, where in _mounts() if source == directory.path]


def _mounts() -> list[tuple[Path, Path]]:
    """(data directory, mountpoint) of every bftfs mount, from the kernel's table."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, source, *_ = after.split(" ")
        if kind == "fuse.bftfs":
            found.append((Path(_unescape(source)), Path(_unescape(before.split(" ")[4]))))
    return found


def _unescape(text: str) -> str:
    """The kernel writes white space and backslashes in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def unmount_path(directory: DataDirectory, mountpoint: Path) -> None:
    """Unmount and wait until the mount process has written everything and ended."""
    processes = _mount_processes(directory, mountpoint)
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    outcome = subprocess.run(
        [*command, str(mountpoint)], capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0:
        raise UsageError(
            f"{mountpoint}: {outcome.stderr.strip() or 'cannot be unmounted'}; "
            "end the programs that use it (`fuser -vm` lists them) and try again",
            exit_code=1,
        )
    deadline = time.monotonic() + UNMOUNT_PATIENCE_S
    while any(is_running(pid, module=MOUNT_MODULE, directory=directory.path) for pid in processes):
        if time.monotonic() > deadline:
            raise UsageError(
                f"{mountpoint}: unmounted, but its process {processes} still writes; see "
                f"{directory.path / 'mount.log'}",
                exit_code=1,
            )
        time.sleep(0.02)


def _mount_processes(directory: DataDirectory, mountpoint: Path) -> list[int]:
    """The processes that serve `mountpoint`: each keeps a file named after it in DIR/run/mounts."""
    processes = []
    if directory.mounts.is_dir():
        for file in directory.mounts.iterdir():
            pid = pid_in(file)
            if pid is not None and Path(file.read_text().split("\n")[1]) == mountpoint:
                processes.append(pid)
    return processes
