"""The end of a mount: it comes, whatever the cluster does."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bftfs.runtime.log import PROCESS_LOG
from mount import serve
from mount.serve import Mount


class Nobody:
    """Stands for what the end of a mount uses of its other parts."""

    def __init__(self, ended: list[str]) -> None:
        self._ended = ended

    def abandon(self) -> None:
        self._ended.append("requests")


def test_a_silent_cluster_keeps_no_mount_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Having mapped pages written is a request to ourselves, which may wait for ever."""
    ended: list[str] = []
    answer = threading.Event()
    monkeypatch.setattr(serve, "GOODBYE_PATIENCE_S", 0.01)
    monkeypatch.setattr(serve, "_push_mapped_pages", lambda _: answer.wait())
    monkeypatch.setattr(serve.mountpoints, "unmount", lambda _: False)
    monkeypatch.setattr(serve.mountpoints, "detach", lambda _: ended.append("mountpoint"))
    monkeypatch.setattr(serve.pyfuse3, "terminate", lambda: ended.append("loop"))
    mount: Any = Mount.__new__(Mount)
    mount._log = PROCESS_LOG
    mount._mountpoint = Path("/nowhere")
    mount._requests = Nobody(ended)

    async def stop() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount._stop_on_signal)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        trio.run(stop)
    finally:
        answer.set()
    assert ended == ["mountpoint", "requests", "loop"]
