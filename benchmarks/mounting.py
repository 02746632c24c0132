"""A mount of a deployment's cluster, for programs of a scenario that use files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.deployment import Deployment
from benchmarks.errors import BenchmarkError
from bftfs.cli.processes import mount_cluster, mount_processes, unmount_path
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from mount.mountpoint import require_fuse


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the files are, and the process that serves them."""

    mountpoint: Path
    pid: int


def require_mounts() -> None:
    """Refuse to start where nothing can be mounted."""
    try:
        require_fuse(allow_other=False)
    except UsageError as error:
        raise BenchmarkError(error.message) from None


@contextmanager
def mounted(deployment: Deployment, *, below: Path | None = None) -> Iterator[Mount]:
    """A mount with the default options that lasts as long as the body does."""
    mountpoint = Path(tempfile.mkdtemp(prefix="mount-", dir=below)).resolve()
    try:
        with _of(deployment.directory, mountpoint) as mount:
            yield mount
    finally:
        os.rmdir(mountpoint)


@contextmanager
def _of(directory: DataDirectory, mountpoint: Path) -> Iterator[Mount]:
    try:
        mount_cluster(directory, mountpoint, options="")
    except (UsageError, click.exceptions.Exit) as error:
        raise BenchmarkError("the cluster could not be mounted, as was said above") from error
    try:
        [process] = mount_processes(directory)
        yield Mount(mountpoint, process.pid)
    finally:
        try:
            unmount_path(directory, mountpoint)
        except UsageError as error:
            raise BenchmarkError(error.message) from error
