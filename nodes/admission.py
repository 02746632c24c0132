"""Who may connect to a node, and how much of it one principal may use.

A principal has limits, however many connections it has. [design §9]

A principal over a limit is delayed (its connections are not read), then cut off; others do not
notice. Principals take turns: one that has had its share of a turn, in requests or in time spent on
them, waits until the others have had theirs.

The administrator may change the clients in the cluster description while nodes run: a new client
can connect at once, and one that was removed is cut off. Everything else in it is fixed while a
node runs. Its files are looked at when a greeting arrives, at most once a second while there are
requests to serve, and on SIGHUP. A description is ignored unless it is signed by the administrator
with whom the node has started, and names the same nodes and thresholds.

Concurrency: one thread, the node's loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import structlog

from bftfs import cluster
from bftfs.cluster import ClusterDescription, signature_path
from bftfs.errors import UsageError
from bftfs.limits import KIB, MIB, SECOND_US
from bftfs.server.step import Sender

CONNECTIONS_PER_PRINCIPAL = 16  # one per mount and tool that uses the same key
UNAUTHENTICATED_MAX = 64  # connections that sent no greeting yet; the oldest gives way
GREETING_PATIENCE_US = 10 * SECOND_US  # for a new connection to send its greeting
REQUESTS_PER_TURN = 128  # of one principal, before the others have their turn…
TIME_PER_TURN_US = 4_000  # …or its share of this time, of which all that wait have the same
RECEIVES_PER_TURN = 8  # reads from one connection, before the others have their turn
UNSENT_BYTES = 1 * MIB  # answers that a connection does not take, beyond which it is not served
HELD_BYTES = 64 * MIB  # of requests and answers over all connections; the greediest is cut off
UNCOUNTED_BYTES = 64 * KIB  # that a connection may hold without being counted
OFFENCES = 16  # broken connections, before a principal has to wait
OFFENCE_FORGIVEN_US = SECOND_US


@dataclass(slots=True, eq=False)
class Account:
    """A principal's connections, offences and use of the current turn."""

    connections: int = 0
    offences: int = 0
    forgiven_us: int = 0  # when offences were forgiven last
    turn: int = 0  # to which the next two refer
    stepped: int = 0  # requests
    spent_us: int = 0  # on them

    def offend(self, now_us: int) -> None:
        """The principal has broken the rules of the channel."""
        self._forgive(now_us)
        self.offences += 1

    def barred(self, now_us: int) -> bool:
        """True if the principal has to wait before it may connect again."""
        self._forgive(now_us)
        return self.offences >= OFFENCES

    def _forgive(self, now_us: int) -> None:
        forgiven = (now_us - self.forgiven_us) // OFFENCE_FORGIVEN_US
        if forgiven > 0:
            self.offences = max(0, self.offences - forgiven)
            self.forgiven_us = now_us


class Turn:
    """One turn of the loop, of which each principal has a share."""

    __slots__ = ("_last_us", "_number", "_share_us", "volume")

    def __init__(self, number: int, waiting: Iterable[Account], now_us: int) -> None:
        """Requires: each turn has another number."""
        self._number = number
        self._last_us = now_us  # when the last request had been stepped
        self.volume = 0  # bytes of the bodies of requests and replies
        principals = len(set(map(id, waiting)))
        self._share_us = TIME_PER_TURN_US // principals if principals > 1 else None

    def goes_on(self, account: Account) -> bool:
        """True if another request of the principal belongs to this turn."""
        if account.turn != self._number:
            account.turn = self._number
            account.stepped = account.spent_us = 0
        return account.stepped < REQUESTS_PER_TURN and (
            self._share_us is None or account.spent_us < self._share_us
        )

    def charge(self, account: Account, now_us: int) -> None:
        """A request of the principal has been stepped, since the last one."""
        account.stepped += 1
        account.spent_us += now_us - self._last_us
        self._last_us = now_us


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
