"""One mount from start to end: connect, mount, serve, unmount, write everything.

A mount ends in one of two ways. Somebody unmounts it: the kernel has then written its pages, and
the loop of pyfuse3 returns. Or the process is told to stop (Ctrl-C, SIGTERM): it unmounts itself,
or detaches a mount that is in use. Either way all writes reach the nodes before the process ends.

Concurrency: one thread runs everything, except for calls in which the kernel sends requests to this
process and waits for the answers: unmounting, and writing mapped pages.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from bftfs.cluster import ClusterDescription
from bftfs.credentials import Credentials, Grant
from bftfs.data_directory import DataDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import BftfsError, FileSystemError, OperationFailed, UsageError
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.time_names import parse_time_name
from bftfs.limits import MIB, SECOND_US
from bftfs.printable import as_word
from bftfs.runtime import supervisor
from bftfs.runtime.log import Log
from bftfs.runtime.network import Network
from bftfs.runtime.process import collect_rarely, keep_freed_memory
from mount import mountpoint as mountpoints
from mount.access import credentials_of, file_system, grant_of, who_mounts
from mount.callers import Callers
from mount.operations import Operations
from mount.options import MountOptions
from mount.requests import WAIT_WORTH_SAYING_S, Requests

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

    async def session(log: Log) -> None:
        description, identity = credentials_of(directory, options)
        async with Network.connected(description, identity, decode=REPLIES.decode) as network:
            files, history = file_system(directory, description, identity, options)
            who = who_mounts(description, identity)
            await _reach(directory, network, description, files, options, who)
            if options.at is not None:
                files = await network.perform(_past(history, options.at, who))
            mount = Mount(
                network,
                files,
                history if options.at is None else None,
                options,
                log,
                grant=grant_of(description, identity),
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
    who: Credentials,
) -> None:
    """Make sure that the cluster answers, and that there is a file system on it."""
    with trio.move_on_after(CONNECT_PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_say_who_is_waited_for, network, directory)
            try:
                await network.perform(_require_root_directory(files, options, who))
            except OperationFailed as failure:
                raise UsageError(f"{as_word(directory.path)}: {failure}", exit_code=1) from None
            nursery.cancel_scope.cancel()
        return
    silent = "; ".join(f"node {node}: {why}" for node, why in network.links.unreachable())
    raise UsageError(
        f"{as_word(directory.path)}: the cluster does not answer: {network.links.open} of "
        f"{description.n} nodes are connected ({silent or 'but too slow'}); "
        f"start the others, and see `bftfs status --data {as_word(directory.path)}`",
        exit_code=1,
    )


async def _say_who_is_waited_for(network: Network, directory: DataDirectory) -> None:
    """Print it on the terminal of the user who mounts, once it takes a while."""
    said = ""
    await trio.sleep(WAIT_WORTH_SAYING_S)
    while True:
        waiting = str(network.links.waiting_for() or "")
        if waiting not in ("", said):
            print(f"bftfs: {as_word(directory.path)}: {waiting}", file=sys.stderr, flush=True)
            said = waiting
        await trio.sleep(1.0)


async def _require_root_directory(
    files: FileSystem, options: MountOptions, who: Credentials
) -> None:
    """Make the file system, if this is the first mount of the cluster: it belongs to `who`."""
    try:
        await files.attributes(files.root, who)
    except FileSystemError as error:
        if error.code != errno.ESTALE:
            raise
        if options.read_only:
            raise UsageError(
                "there is no file system on this cluster yet: mount it without ro, once",
                exit_code=1,
            ) from None
        await files.format(who)


async def _past(history: History, at: str, who: Credentials) -> FileSystem:
    """The file system as it was at a time, or as a snapshot shows it."""
    time_us = parse_time_name(at)
    if time_us is None:
        snapshots = await history.snapshots(who)
        time_us = next((each.time_us for each in snapshots if each.name == at.encode()), None)
    if time_us is None:
        raise UsageError(
            f"mount option at={at}: neither a time, such as 2026-11-21T10:02, nor a snapshot; "
            "`bftfs snapshot list` shows these"
        )
    try:
        await history.found_at(history.present.root, time_us, who)
    except FileSystemError:
        raise UsageError(
            f"mount option at={at}: the file system did not exist then, or that time is yet to come"
        ) from None
    return history.at(time_us)


@contextmanager
def open_log(path: Path, **facts: object) -> Iterator[Log]:
    """A logger that writes `facts` into every line of `path`; libraries' warnings go there, too."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(
            f"{as_word(path)}: cannot write the mount's log ({error.strerror}); make this "
            "file writable",
            exit_code=1,
        ) from None
    with file:
        log = Log(file.fileno())
        log.configure("info", **facts)
        libraries = _Libraries(log)
        root = logging.getLogger()
        root.addHandler(libraries)
        try:
            yield log
        finally:
            root.removeHandler(libraries)


class _Libraries(logging.Handler):
    """Passes on the warnings of pyfuse3 and trio."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.write(record.levelno, record.getMessage(), error=error, library=record.name)


# --- the mount ----------------------------------------------------------------------------------


# Tasks that may wait for the cluster at once. Without a free one no request is answered, not even
# from memory; a task costs little.
WORKERS: Final = 512
WORKERS_IDLE: Final = 8
READ_AHEAD_KIB: Final = 4096  # eight requests of up to 1 MiB in flight; the kernel's default is 128
WRITE_BACK_EVERY_S: Final = 1.0
FORGET_EVERY_S: Final = 1.0
WRITE_BACK_OLDER_US: Final = 5_000_000
GOODBYE_PATIENCE_S: Final = 45.0  # to write the rest at the end, if the cluster does not answer
ACCESSES_PATIENCE_S: Final = 3.0  # …and after that to record access times


class Mount:
    """A file system, mounted."""

    def __init__(
        self,
        network: Network,
        files: FileSystem,
        history: History | None,
        options: MountOptions,
        log: Log,
        *,
        grant: Grant,
        source: str,
        mountpoint: Path,
    ) -> None:
        self._network = network
        self._files = files
        self._options = options
        self._log = log
        self._source = source
        self._mountpoint = mountpoint
        self._requests = Requests(network, log)
        self._operations = Operations(files, history, self._requests, Callers(grant), options, log)

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, call `ready`, serve until the end, and write everything."""
        self._mount()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, ready)
                nursery.start_soon(self._stop_on_signal)
                nursery.start_soon(self._requests.watch)
                nursery.start_soon(self._write_back)
                nursery.start_soon(self._forget_files)
                nursery.start_soon(_tell_alive)
                await pyfuse3.main(min_tasks=WORKERS_IDLE, max_tasks=WORKERS)
                nursery.cancel_scope.cancel()
        finally:
            self._unmount()
        await self._finish()

    # --- the beginning -----------------------------------------------------------------------

    def _mount(self) -> None:
        source = self._source.replace("\\", "\\\\").replace(",", "\\,")  # as libfuse reads it
        options = {
            f"fsname={source}",
            "subtype=bftfs",
            "default_permissions",
            *self._options.kernel,
        }
        if self._options.allow_other:
            options.add("allow_other")
        if self._options.read_only:
            options.add("ro")
        with _errors_of_libfuse() as said:
            try:
                pyfuse3.init(self._operations, str(self._mountpoint), options)
            except RuntimeError as error:
                reason = said() or str(error)
                raise UsageError(
                    f"{as_word(self._mountpoint)}: cannot be mounted: {reason}", exit_code=1
                ) from None
        self._log.info("mounted", options=sorted(options))

    async def _announce(self, ready: Callable[[], None]) -> None:
        """Call `ready` once the kernel has accepted the mount."""
        await self._operations.greeted.wait()
        mounted = mountpoints.mounted_at(self._mountpoint)
        if mounted is not None:
            self._requests.device = mounted.device
            self._raise_read_ahead(mounted.device)
        ready()

    def _raise_read_ahead(self, device: str) -> None:
        """Raise the kernel's read-ahead. Only root may; others have the file system's own."""
        try:
            Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        except OSError as error:
            self._log.info("read-ahead stays at the kernel's default", reason=error.strerror)

    # --- the middle --------------------------------------------------------------------------

    async def _write_back(self) -> None:
        """Write unsynced bytes to the nodes after a few seconds."""
        while True:
            await trio.sleep(WRITE_BACK_EVERY_S)
            try:
                await self._network.perform(
                    self._files.write_back(older_than_us=WRITE_BACK_OLDER_US)
                )
            except BftfsError as failure:
                self._log.warning("writing behind failed", reason=str(failure))

    async def _forget_files(self) -> None:
        """Keep the kernel, and so this process, from knowing more and more files."""
        while True:
            await trio.sleep(FORGET_EVERY_S)
            self._operations.forget_files()

    # --- the end -----------------------------------------------------------------------------

    async def _stop_on_signal(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*signals) as received:
            async for number in received:
                self._log.info("stopping", signal=signal.Signals(number).name)
                supervisor.tell(supervisor.STOPPING)
                break
        if await trio.to_thread.run_sync(mountpoints.unmount, self._mountpoint):
            return  # the kernel closes the connection, and the loop ends
        self._log.warning("in use: detached, so that programs that use it get errors")
        with trio.move_on_after(GOODBYE_PATIENCE_S):
            # A request to ourselves: it waits like any other if the cluster does not answer.
            await trio.to_thread.run_sync(
                _push_mapped_pages, self._mountpoint, abandon_on_cancel=True
            )
        mountpoints.detach(self._mountpoint)
        self._requests.abandon()
        pyfuse3.terminate()

    def _unmount(self) -> None:
        """Remove the mount, however the loop has ended."""
        mounted = mountpoints.mounted_at(self._mountpoint)
        if mounted is not None and mounted.kind == mountpoints.FILE_SYSTEM_TYPE:
            mountpoints.detach(self._mountpoint)
        pyfuse3.close(unmount=False)

    async def _finish(self) -> None:
        """Write what is left in memory."""
        with trio.move_on_after(GOODBYE_PATIENCE_S):
            await self._network.perform(self._files.synchronize_all())
            await self._record_accesses()
            self._log.info("unmounted")
            return
        self._log.error("unsynced data is lost: the cluster does not answer")
        raise UsageError(
            f"{as_word(self._mountpoint)}: unmounted, but the cluster did not take all data in "
            f"{GOODBYE_PATIENCE_S:.0f} s; writes that were neither synced nor closed are lost",
            exit_code=1,
        )

    async def _record_accesses(self) -> None:
        reason = "the cluster does not answer"
        with trio.move_on_after(ACCESSES_PATIENCE_S):
            try:
                await self._network.perform(self._files.record_accesses())
                return
            except BftfsError as failure:
                reason = str(failure)
        self._log.warning("access times are not recorded", reason=reason)


async def _tell_alive() -> None:
    """Tell the service manager that the loop turns, if it wants to know.

    The loop turns also while requests wait for nodes: to start the mount again would not help them.
    """
    every_us = supervisor.alive_every_us()
    while every_us is not None:
        supervisor.tell(supervisor.ALIVE)
        await trio.sleep(every_us / SECOND_US)


@contextmanager
def _errors_of_libfuse() -> Iterator[Callable[[], str]]:
    """Catch what libfuse and fusermount3 print, which is where they say what is wrong."""
    sys.stderr.flush()
    usual = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            lines = file.read().decode(errors="replace").strip().splitlines()
            return "; ".join(lines)

        try:
            yield said
        finally:
            os.dup2(usual, 2)
            os.close(usual)


def _push_mapped_pages(mountpoint: Path) -> None:
    """Have the kernel write what programs changed in memory.

    Newer kernels only begin to write, and do not wait. But these writes reach this process before
    the request that follows here.
    """
    with suppress(OSError):
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ctypes.CDLL(None).syncfs(descriptor)
            os.fstatvfs(descriptor)
        finally:
            os.close(descriptor)
