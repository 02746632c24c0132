"""What each client's versions use of a node, and the most that they may. [design §8, §9, G7]

The account is a row per client, written in the batch that stores the version, and lowered in the
one that collects it. While the history pool is short, those clients are slowed and then refused
whose versions use more than the average client's: who fills the pool hurts himself first, and the
others have the rest of it.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.identifiers import CLIENT_ID_BYTES, BlockId, ClientId
from bftfs.server.history_pool import SHORT, SLOW, TIGHT, HistoryPool
from bftfs.server.reserve_shares import ReserveShares
from bftfs.server.step import Ready, Sender, Server
from bftfs.storage import StorageView, Table, Write

_BEYOND = b"\xff" * (CLIENT_ID_BYTES + 1)
# The same words at all nodes: a client believes what more than b of them say alike.
_GREEDY = "the nodes' history pools are full, and this client's versions use most of them"
_OVERDRAFT = 1 / 16  # of the pool, as long as it is short, for what is owed and for removals
_TURNS_MOST = 8  # of which a slowed client has one, just before it is refused


class ClientQuota:
    """Accounts for the versions of every client; refuses what there is no room for."""

    def __init__(self, client_bytes: int | None, pool: HistoryPool | None = None) -> None:
        """At most `client_bytes` of one client, if given, and all together what the pool takes."""
        self._client_bytes = client_bytes
        self._pool = pool
        self._turns: Counter[ClientId] = Counter()  # of clients that are slowed
        self._metadata: Counter[ClientId] = Counter()  # bytes, since the pool is short
        self._overdraft = ReserveShares()

    def charge(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> Refused | list[Write]:
        """The writes that account for a new version of `volume` bytes, or why it is refused."""
        used = volume + _used(view, client)
        if self._client_bytes is not None and used > self._client_bytes:
            return Refused(
                errno.EDQUOT, f"this client's versions may use {self._client_bytes} bytes of a node"
            )
        if self._pool is not None:
            share = self._pool.charged()
            if share >= SLOW:
                refusal = self._short(view, client, used, share)
                if refusal is not None:
                    return refusal
            self._pool.took(volume)
        return [Write(Table.ADMISSION, client, used.to_bytes(8, "big"))]

    def _short(
        self, view: StorageView, client: ClientId, used: int, share: float
    ) -> Refused | None:
        """Why a version is refused while the pool is short; None if it is not."""
        if share >= 1:
            return Refused(
                errno.ENOSPC,
                "the node's history pool is full, and all in it is younger than the detection "
                "window or pinned by snapshots",
            )
        if not self._is_greedy(view, client, used):
            return None
        if share >= TIGHT:
            return Refused(errno.EDQUOT, _GREEDY)
        self._turns[client] += 1
        turns = 2 + int((_TURNS_MOST - 2) * (share - SLOW) / (TIGHT - SLOW))
        if self._turns[client] % turns:
            # The writer takes it for silence, and sends it again after a while.
            return Refused(errno.EAGAIN, "slowed: the node's history pool is nearly full")
        return None

    def _is_greedy(self, view: StorageView, client: ClientId, used: int) -> bool:
        """Whether a client that uses so much uses as much as the average client, or more."""
        accounts = Counter(
            {
                ClientId(name): int.from_bytes(row, "big")
                for name, row in view.scan(Table.ADMISSION, b"", _BEYOND)
            }
        )
        accounts.update(self._metadata)
        return (used + self._metadata[client]) * max(len(accounts), 1) >= accounts.total()

    def charge_metadata(
        self,
        view: StorageView,
        client: ClientId,
        writes: Sequence[Write],
        *,
        uses_reserve: bool = False,
    ) -> Refused | None:
        """Why an update of objects is refused; None if it is not.

        What `uses_reserve` is not before the client has had its share of an overdraft. (Who could
        not remove anything would never have room again.)

        Metadata are counted only while the pool is short, and not kept in accounts: an update of an
        object costs nothing more for it while there is room.
        """
        assert self._pool is not None
        share = self._pool.charged()
        if share < SHORT:
            self._metadata.clear()
            self._overdraft.end()
            return None
        volume = sum(len(write.value) for write in writes if write.value is not None)
        self._pool.took(volume)
        self._metadata[client] += volume
        if share < TIGHT or not self._is_greedy(view, client, _used(view, client)):
            return None
        # However full it is: a pool without a budget shrinks while others fill the disk.
        self._overdraft.left = int(_OVERDRAFT * self._pool.limit_bytes) - self._overdraft.lent
        if uses_reserve and self._overdraft.lends(client, writes):
            return None
        return Refused(errno.ENOSPC if share >= 1 else errno.EDQUOT, _GREEDY)

    def charge_anyway(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> list[Write]:
        """Account for a version that the cluster has accepted before, whatever it comes to."""
        used = volume + _used(view, client)
        return [Write(Table.ADMISSION, client, used.to_bytes(8, "big"))]

    def release(self, view: StorageView, freed: Mapping[ClientId, int]) -> list[Write]:
        """Give back what collected versions of these clients used."""
        return [
            Write(
                Table.ADMISSION,
                client,
                max(_used(view, client) - volume, 0).to_bytes(8, "big"),
            )
            for client, volume in freed.items()
        ]


class MeteredObjects:
    """The server of objects, for nodes whose pool may get short. [design §8]

    New operations are refused: what repairs and finishes others' work is owed to them, within
    bounds; and so are removals, from which room comes.
    """

    def __init__(self, server: Server, quota: ClientQuota) -> None:
        self._server = server
        self._quota = quota

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """Serve one `Update`."""
        ready = self._server.step(view, sender, message, body, now_us)
        if ready.writes and not ready.wants:
            rejected = self._quota.charge_metadata(
                view, sender.client, ready.writes, uses_reserve=ready.uses_reserve
            )
            if rejected is not None:
                return Ready(rejected)
        return ready


def _used(view: StorageView, client: ClientId) -> int:
    stored = view.get(Table.ADMISSION, client)
    return 0 if stored is None else int.from_bytes(stored, "big")
