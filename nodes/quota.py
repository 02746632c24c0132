"""What each client's versions use of a node, and the most that they may. [design §9, G7]

The account is a row per client, written in the batch that stores the version. Versions are kept,
so it only grows.
"""

from __future__ import annotations

import errno

from bftfs.identifiers import BlockId, ClientId
from bftfs.read_write.messages import BlockRefused
from bftfs.storage import StorageView, Table, Write


class ClientQuota:
    """Accounts for the versions of every client; refuses those beyond `client_bytes`, if given."""

    def __init__(self, client_bytes: int | None) -> None:
        self._client_bytes = client_bytes

    def charge(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> BlockRefused | list[Write]:
        """The writes that account for a new version of `volume` bytes, or why it is refused."""
        used = volume + _used(view, client)
        if self._client_bytes is not None and used > self._client_bytes:
            return BlockRefused(
                errno.EDQUOT, f"this client's versions may use {self._client_bytes} bytes of a node"
            )
        return [Write(Table.ADMISSION, client, used.to_bytes(8, "big"))]

    def charge_anyway(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> list[Write]:
        """Account for a version that the cluster has accepted before, whatever it comes to."""
        used = volume + _used(view, client)
        return [Write(Table.ADMISSION, client, used.to_bytes(8, "big"))]


def _used(view: StorageView, client: ClientId) -> int:
    stored = view.get(Table.ADMISSION, client)
    return 0 if stored is None else int.from_bytes(stored, "big")
