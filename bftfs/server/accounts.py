"""The bytes that each client's versions of blocks use at a node: a row for each client.

An account is what is stored, no more and no less: the fragments and cross-checksums of the versions
whose timestamps name the client, whoever has brought them here. Every write that adds or removes
some of that is made by `bftfs.read_write.version_row`, with the account in the same batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bftfs.identifiers import CLIENT_ID_BYTES, ClientId
from bftfs.storage import StorageView, Table, Write, after_keys

_END = after_keys(CLIENT_ID_BYTES)


def used(view: StorageView, client: ClientId) -> int:
    """The bytes that the versions of one client use."""
    stored = view.get(Table.ADMISSION, client)
    return 0 if stored is None else int.from_bytes(stored, "big")


def accounts(view: StorageView) -> Counter[ClientId]:
    """The bytes that the versions of each client use."""
    return Counter(
        {
            ClientId(name): int.from_bytes(row, "big")
            for name, row in view.scan(Table.ADMISSION, b"", _END)
        }
    )


def moved(view: StorageView, moves: Iterable[tuple[ClientId, int]]) -> list[Write]:
    """The writes that move these clients' accounts by so many bytes, all that a step moves."""
    by_client: dict[ClientId, int] = {}
    for client, volume in moves:
        by_client[client] = by_client.get(client, 0) + volume
    return [
        Write(Table.ADMISSION, client, max(used(view, client) + volume, 0).to_bytes(8, "big"))
        for client, volume in by_client.items()
        if volume
    ]
