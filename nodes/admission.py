"""The limits of one principal at a node, however many connections it has. [design §9]

A principal over a limit is delayed (its connections are not read), then cut off; others do not
notice. Principals take turns: one that has had its share of a turn, in requests or in time spent on
them, waits until the others have had theirs.

Concurrency: one thread, the node's loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from bftfs.identifiers import ClientId
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


class Account:
    """A principal's connections, offences and use of the current turn."""

    __slots__ = ("_forgiven_us", "connections", "offences", "spent_us", "stepped", "turn")

    def __init__(self) -> None:
        self.connections = 0
        self.offences = 0
        self._forgiven_us = 0
        self.turn = 0  # to which the next two refer
        self.stepped = 0  # requests
        self.spent_us = 0  # on them

    def offend(self, now_us: int) -> None:
        """The principal has broken the rules of the channel."""
        self._forgive(now_us)
        self.offences += 1

    def barred(self, now_us: int) -> bool:
        """True if the principal has to wait before it may connect again."""
        self._forgive(now_us)
        return self.offences >= OFFENCES

    def _forgive(self, now_us: int) -> None:
        forgiven = (now_us - self._forgiven_us) // OFFENCE_FORGIVEN_US
        if forgiven > 0:
            self.offences = max(0, self.offences - forgiven)
            self._forgiven_us = now_us


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


class Admission:
    """The accounts of all principals that have connected; the cluster lists no more of them."""

    def __init__(self) -> None:
        self._accounts: dict[ClientId, Account] = {}

    def account(self, sender: Sender) -> Account:
        """The account of a principal."""
        account = self._accounts.get(sender.client)
        if account is None:
            account = self._accounts[sender.client] = Account()
        return account
