"""One mount from start to end: mount, serve, unmount, write everything.

A mount ends in one of two ways. Somebody unmounts it: the kernel has then written its pages, and
the loop of pyfuse3 returns. Or the process is told to stop (Ctrl-C, SIGTERM): it unmounts itself,
or detaches a mount that is in use. Either way all writes reach the nodes before the process ends.

Concurrency: one thread runs everything, except for calls that may wait for a request to ourselves:
unmounting, and having the kernel write the mapped pages that it holds.
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
from structlog.typing import FilteringBoundLogger

from bftfs.errors import BftfsError, UsageError
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.runtime.network import Network
from mount import mountpoint as mountpoints
from mount.operations import Operations
from mount.options import MountOptions
from mount.requests import Requests

# Tasks that may wait for the cluster at once. Without a free one no request is answered, not even
# from memory; a task costs little.
WORKERS: Final = 512
WORKERS_IDLE: Final = 8
READ_AHEAD_KIB: Final = 4096  # eight requests of up to 1 MiB in flight; the kernel's default is 128
WRITE_BACK_EVERY_S: Final = 1.0
WRITE_BACK_OLDER_US: Final = 5_000_000
GOODBYE_PATIENCE_S: Final = 45.0  # for what is unwritten at the end, if the cluster does not answer


class Mount:
    """A file system, mounted."""

    def __init__(
        self,
        network: Network,
        files: FileSystem,
        history: History | None,
        options: MountOptions,
        log: FilteringBoundLogger,
        *,
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
        self._operations = Operations(files, history, self._requests, options, log)

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, call `ready`, serve until the end, and write everything."""
        self._mount()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, ready)
                nursery.start_soon(self._stop_on_signal)
                nursery.start_soon(self._requests.watch)
                nursery.start_soon(self._write_back)
                await pyfuse3.main(min_tasks=WORKERS_IDLE, max_tasks=WORKERS)
                nursery.cancel_scope.cancel()
        finally:
            self._unmount()
        await self._finish()

    # --- the beginning -----------------------------------------------------------------------

    def _mount(self) -> None:
        options = {
            f"fsname={_escaped(self._source)}",
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
                    f"{self._mountpoint}: cannot be mounted: {reason}", exit_code=1
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

    # --- the end -----------------------------------------------------------------------------

    async def _stop_on_signal(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*signals) as received:
            async for number in received:
                self._log.info("stopping", signal=signal.Signals(number).name)
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
            self._log.info("unmounted")
            return
        self._log.error("unsynced data is lost: the cluster does not answer")
        raise UsageError(
            f"{self._mountpoint}: unmounted, but the cluster did not take all data in "
            f"{GOODBYE_PATIENCE_S:.0f} s; writes that were neither synced nor closed are lost",
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
    """Have the kernel write what programs changed in memory.

    Newer kernels only begin to write then, and do not wait; but what they have sent comes to us
    before what is asked next.
    """
    with suppress(OSError):
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ctypes.CDLL(None).syncfs(descriptor)
            os.fstatvfs(descriptor)
        finally:
            os.close(descriptor)
