"""The principals that may connect to a running node, as the cluster description says at present.

The administrator may change the description's clients while nodes run: a new client can connect at
once, and one that was removed is cut off. Everything else in it is fixed while a node runs.

The files are looked at when a greeting arrives, at most once a second while there are requests to
serve, and on SIGHUP. A description is ignored unless it is signed by the administrator with whom
the node has started, and names the same nodes and thresholds.

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import structlog

from bftfs import cluster
from bftfs.cluster import ClusterDescription, signature_path
from bftfs.errors import UsageError
from bftfs.server.step import Sender

_Seen: TypeAlias = tuple[tuple[int, int, int], ...]  # of each file: inode, size, change time


class LiveMembership:
    """The description with which the node has started, with the clients that it names by now."""

    def __init__(self, path: Path, description: ClusterDescription) -> None:
        self._path = path
        self._files = (path, signature_path(path))
        self._description = description
        self._seen: _Seen | None = None
        self._logger = structlog.get_logger()

    @property
    def cluster_id(self) -> bytes:
        """16 bytes that no other cluster has."""
        return self._description.cluster_id

    @property
    def view(self) -> int:
        """The number of the membership's epoch."""
        return self._description.view

    def principal(self, public_key: bytes) -> Sender | None:
        """The holder of `public_key`, if the cluster knows it by now."""
        self.refresh()
        return self._description.principal(public_key)

    def admits(self, sender: Sender) -> bool:
        """True if `sender` may still connect, with the same rights."""
        if sender.node is not None:
            return True
        entry = self._description.client(sender.client)
        return entry is not None and entry.grant == sender.grant

    def refresh(self) -> None:
        """Read the description again if its files have changed."""
        try:
            seen = tuple(
                (status.st_ino, status.st_size, status.st_mtime_ns)
                for status in (path.stat() for path in self._files)
            )
        except OSError:
            return  # it is being replaced, or was taken away: the description read before holds
        if seen == self._seen:
            return
        self._seen = seen
        before = self._description
        try:
            described = cluster.load(self._path, administrator=before.administrator)
        except UsageError as mistake:
            self._logger.warning("cluster description not taken over", reason=str(mistake))
            return
        if replace(described, clients=before.clients) != before:
            self._logger.warning(
                "cluster description not taken over",
                reason="more than its clients has changed; restart the node to use it",
            )
            return
        if described.clients != before.clients:
            self._description = described
            self._logger.info("clients changed", clients=[each.name for each in described.clients])
