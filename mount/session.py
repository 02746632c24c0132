"""One mount from start to end: connect, mount, serve, write everything, unmount.

The end comes in one of two ways. Somebody unmounts: the kernel has then written what it held, and
the loop of pyfuse3 returns. Or the process is told to stop (Ctrl-C, SIGTERM): it unmounts itself,
or detaches what is still in use. Either way all that was written goes out before the process ends.

Concurrency: one thread runs everything, except what may wait for a request to ourselves, which then
has to be answered here: unmounting, and asking the kernel for the mapped pages that it holds.
"""

from __future__ import annotations

import ctypes
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
from bftfs.filesystem.operations import FileSystem
from structlog.typing import FilteringBoundLogger

from bftfs.cluster import ClusterDescription
from bftfs.data_directory import DataDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import BftfsError, OperationFailed, UsageError
from bftfs.runtime.network import Network
from mount import mountpoint as mountpoints
from mount.client import ROOT, credentials_of, file_system
from mount.logs import open_log
from mount.operations import Operations
from mount.options import MountOptions
from mount.requests import Requests

# Tasks that may wait for the cluster at once. Without a free one nothing is answered any more, not
# even from memory; one costs little.
WORKERS: Final = 512
WORKERS_IDLE: Final = 8
READ_AHEAD_KIB: Final = 4096  # eight requests of up to 1 MiB in flight; the kernel's default is 128
CONNECT_PATIENCE_S: Final = 20.0
WRITE_BACK_EVERY_S: Final = 1.0
WRITE_BACK_OLDER_US: Final = 5_000_000
GOODBYE_PATIENCE_S: Final = 45.0  # for what is unwritten at the end, if the cluster does not answer


def serve(
    directory: DataDirectory,
    mountpoint: Path,
    options: MountOptions,
    *,
    ready: Callable[[], None],
) -> None:
    """Mount, call `ready`, and serve until somebody unmounts or stops the process."""
    with open_log(directory.mount_log, mountpoint=str(mountpoint), process=os.getpid()) as log:
        session = _Session(directory, mountpoint, options, log)
        try:
            trio.run(session.run, ready)
        except BaseExceptionGroup as group:
            raise _alone(group) from None


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in nested groups, as nurseries make them; else the group."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner


class _Session:
    def __init__(
        self,
        directory: DataDirectory,
        mountpoint: Path,
        options: MountOptions,
        log: FilteringBoundLogger,
    ) -> None:
        self._directory = directory
        self._mountpoint = mountpoint
        self._options = options
        self._log = log

    async def run(self, ready: Callable[[], None]) -> None:
        description, identity = credentials_of(self._directory, self._options)
        async with Network(description, identity, decode=REPLIES.decode) as network:
            files = file_system(self._directory, description, identity, self._options)
            await self._reach(network, description, files)
            requests = Requests(network, self._log)
            operations = Operations(files, requests, self._options, self._log)
            self._mount(operations)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._announce, operations, requests, ready)
                    nursery.start_soon(self._stop_on_signal, requests)
                    nursery.start_soon(requests.watch)
                    nursery.start_soon(self._write_back, network, files)
                    await pyfuse3.main(min_tasks=WORKERS_IDLE, max_tasks=WORKERS)
                    nursery.cancel_scope.cancel()
            finally:
                self._unmount()
            await self._finish(network, files)

    # --- the beginning -----------------------------------------------------------------------

    async def _reach(
        self, network: Network, description: ClusterDescription, files: FileSystem
    ) -> None:
        """Make sure that the cluster answers, and that there is a file system on it."""
        with trio.move_on_after(CONNECT_PATIENCE_S):
            try:
                await network.perform(files.format(ROOT))
            except OperationFailed as failure:
                raise UsageError(f"{self._directory.path}: {failure}", exit_code=1) from None
            return
        silent = "; ".join(f"node {node}: {why}" for node, why in network.links.unreachable())
        raise UsageError(
            f"{self._directory.path}: the cluster does not answer: {network.links.open} of "
            f"{description.n} nodes are connected ({silent or 'but too slow'}); "
            f"start the others, and see `bftfs status --data {self._directory.path}`",
            exit_code=1,
        )

    def _mount(self, operations: Operations) -> None:
        options = {
            f"fsname={_escaped(str(self._directory.path))}",
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
                pyfuse3.init(operations, str(self._mountpoint), options)
            except RuntimeError as error:
                reason = said() or str(error)
                raise UsageError(
                    f"{self._mountpoint}: cannot be mounted: {reason}", exit_code=1
                ) from None
        self._log.info("mounted", options=sorted(options))

    async def _announce(
        self, operations: Operations, requests: Requests, ready: Callable[[], None]
    ) -> None:
        """Once the kernel and we have agreed: tell everybody."""
        await operations.greeted.wait()
        mounted = mountpoints.mounted_at(self._mountpoint)
        if mounted is not None:
            requests.device = mounted.device
            self._raise_read_ahead(mounted.device)
        ready()

    def _raise_read_ahead(self, device: str) -> None:
        """Only root may; without it readers get what the file system itself reads ahead."""
        try:
            Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        except OSError as error:
            self._log.info("read-ahead stays at the kernel's default", reason=error.strerror)

    # --- the middle --------------------------------------------------------------------------

    async def _write_back(self, network: Network, files: FileSystem) -> None:
        """What nobody asks to be durable goes out after a few seconds all the same."""
        while True:
            await trio.sleep(WRITE_BACK_EVERY_S)
            try:
                await network.perform(files.write_back(WRITE_BACK_OLDER_US))
            except BftfsError as failure:
                self._log.warning("writing behind failed", reason=str(failure))

    # --- the end -----------------------------------------------------------------------------

    async def _stop_on_signal(self, requests: Requests) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*signals) as received:
            async for number in received:
                self._log.info("stopping", signal=signal.Signals(number).name)
                break
        if await trio.to_thread.run_sync(mountpoints.unmount, self._mountpoint):
            return  # the kernel closes the connection, and the loop ends
        self._log.warning("in use: detached from the tree, and lost to those that use it")
        await trio.to_thread.run_sync(_push_mapped_pages, self._mountpoint)
        mountpoints.detach(self._mountpoint)
        requests.abandon()
        pyfuse3.terminate()

    def _unmount(self) -> None:
        """Leave nothing mounted that nobody serves, however the loop has ended."""
        mounted = mountpoints.mounted_at(self._mountpoint)
        if mounted is not None and mounted.kind == mountpoints.FILE_SYSTEM_TYPE:
            mountpoints.detach(self._mountpoint)
        pyfuse3.close(unmount=False)

    async def _finish(self, network: Network, files: FileSystem) -> None:
        """Write what is left."""
        with trio.move_on_after(GOODBYE_PATIENCE_S):
            await network.perform(files.synchronize_all())
            self._log.info("unmounted")
            return
        self._log.error("data that was never synced or closed is lost: the cluster does not answer")
        raise UsageError(
            f"{self._mountpoint}: unmounted, but the cluster did not take all data in "
            f"{GOODBYE_PATIENCE_S:.0f} s; what was neither synced nor closed is lost",
            exit_code=1,
        )


def _escaped(text: str) -> str:
    """`text` as part of a libfuse option."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


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
    """Have the kernel write what programs changed in memory."""
    with suppress(OSError):
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ctypes.CDLL(None).syncfs(descriptor)
        finally:
            os.close(descriptor)
