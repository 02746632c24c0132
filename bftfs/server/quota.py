"""Accounts of the bytes that each client's versions use at a node. [design §8, G7]

An account is a row per client, written in the batch that stores a version, and lowered in the one
that collects it. `bftfs.server.room` decides which versions a client may add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

from bftfs.asking.refusal import Refused
from bftfs.identifiers import CLIENT_ID_BYTES, BlockId, ClientId
from bftfs.server.room import Room
from bftfs.storage import StorageView, Table, Write, after_keys

_END = after_keys(CLIENT_ID_BYTES)


class ClientQuota:
    """Keeps the accounts; new versions are refused as the node's `Room` says."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def charge(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> Refused | list[Write]:
        """The writes that account for a new version of `volume` bytes, or why it is refused."""
        used = volume + _used(view, client)
        refusal = self._room.admits_version(client, volume, used, partial(accounts, view))
        return refusal or [_account(client, used)]

    def charge_anyway(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> list[Write]:
        """Account for a version that the cluster has accepted before; it is never refused."""
        return [_account(client, volume + _used(view, client))]

    def release(self, view: StorageView, freed: Mapping[ClientId, int]) -> list[Write]:
        """Lower the accounts of these clients by the bytes that collection has freed."""
        return [
            _account(client, max(_used(view, client) - volume, 0))
            for client, volume in freed.items()
        ]


def accounts(view: StorageView) -> Counter[ClientId]:
    """The bytes that the versions of each client use."""
    return Counter(
        {
            ClientId(name): int.from_bytes(row, "big")
            for name, row in view.scan(Table.ADMISSION, b"", _END)
        }
    )


def _account(client: ClientId, used: int) -> Write:
    return Write(Table.ADMISSION, client, used.to_bytes(8, "big"))


def _used(view: StorageView, client: ClientId) -> int:
    stored = view.get(Table.ADMISSION, client)
    return 0 if stored is None else int.from_bytes(stored, "big")
