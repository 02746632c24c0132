"""The mount as a client of its cluster: keys, connections, both protocols, the file system."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import FileSystemError, OperationFailed, UsageError
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.time_names import parse_time_name
from bftfs.limits import MIB
from bftfs.runtime.log_file import log_file
from bftfs.runtime.memory import collect_rarely, keep_freed_memory
from bftfs.runtime.network import Network
from mount.access import ROOT, credentials_of, file_system
from mount.options import MountOptions
from mount.session import Mount

CONNECT_PATIENCE_S: Final = 20.0
FREED_BYTES_KEPT: Final = 64 * MIB  # blocks and their fragments come and go all the time


def serve(
    directory: DataDirectory,
    mountpoint: Path,
    options: MountOptions,
    *,
    ready: Callable[[], None],
) -> None:
    """Mount a cluster, call `ready`, and serve until somebody unmounts or stops the process."""

    async def session(log: FilteringBoundLogger) -> None:
        description, identity = credentials_of(directory, options)
        async with Network(description, identity, decode=REPLIES.decode) as network:
            files, history = file_system(directory, description, identity, options)
            await _reach(directory, network, description, files, options)
            if options.at is not None:
                files = await network.perform(_past(history, options.at))
            mount = Mount(
                network,
                files,
                history if options.at is None else None,
                options,
                log,
                source=str(directory.path),
                mountpoint=mountpoint,
            )
            await mount.run(ready)

    keep_freed_memory(FREED_BYTES_KEPT)
    collect_rarely()
    with open_log(directory.mount_log, mountpoint=str(mountpoint), process=os.getpid()) as log:
        try:
            trio.run(session, log)
        except BaseExceptionGroup as group:
            raise _alone(group) from None


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in nested groups, as nurseries make them; else the group."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner


async def _reach(
    directory: DataDirectory,
    network: Network,
    description: ClusterDescription,
    files: FileSystem,
    options: MountOptions,
) -> None:
    """Make sure that the cluster answers, and that there is a file system on it."""
    with trio.move_on_after(CONNECT_PATIENCE_S):
        try:
            await network.perform(_require_root_directory(files, options))
        except OperationFailed as failure:
            raise UsageError(f"{directory.path}: {failure}", exit_code=1) from None
        return
    silent = "; ".join(f"node {node}: {why}" for node, why in network.links.unreachable())
    raise UsageError(
        f"{directory.path}: the cluster does not answer: {network.links.open} of "
        f"{description.n} nodes are connected ({silent or 'but too slow'}); "
        f"start the others, and see `bftfs status --data {directory.path}`",
        exit_code=1,
    )


async def _require_root_directory(files: FileSystem, options: MountOptions) -> None:
    """Make the file system, if this is the first mount of the cluster."""
    try:
        await files.attributes(files.root, ROOT)
    except FileSystemError as error:
        if error.code != errno.ESTALE:
            raise
        if options.read_only:
            raise UsageError(
                "there is no file system on this cluster yet: mount it without ro, once",
                exit_code=1,
            ) from None
        await files.format(ROOT)


async def _past(history: History, at: str) -> FileSystem:
    """The file system as it was at a time, or as a snapshot shows it."""
    time_us = parse_time_name(at)
    if time_us is None:
        snapshots = await history.snapshots(ROOT)
        time_us = next((each.time_us for each in snapshots if each.name == at.encode()), None)
    if time_us is None:
        raise UsageError(
            f"mount option at={at}: neither a time, such as 2026-11-21T10:02, nor a snapshot; "
            "`bftfs snapshot list` shows these"
        )
    try:
        await history.found_at(history.present.root, time_us, ROOT)
    except FileSystemError:
        raise UsageError(
            f"mount option at={at}: the file system did not exist then, or that time is yet to come"
        ) from None
    return history.at(time_us)


@contextmanager
def open_log(path: Path, **facts: object) -> Iterator[FilteringBoundLogger]:
    """A logger that writes `facts` into every line of `path`; libraries' warnings go there, too."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write the mount's log ({error.strerror}); make this file writable",
            exit_code=1,
        ) from None
    with file:
        log: FilteringBoundLogger = structlog.wrap_logger(
            structlog.WriteLogger(log_file(file.fileno())),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=repr),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        ).bind(**facts)
        libraries = _Libraries(log)
        root = logging.getLogger()
        root.addHandler(libraries)
        try:
            yield log
        finally:
            root.removeHandler(libraries)


class _Libraries(logging.Handler):
    """Passes on the warnings of pyfuse3 and trio."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(
            record.levelno,
            record.getMessage(),
            library=record.name,
            exc_info=record.exc_info or None,
        )
