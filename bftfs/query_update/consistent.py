"""Statements that do not count together: some were made with knowledge of a later life of others.

**Situation.** A server S that lost its store begins a new life, and the servers that it asks tell
it what they have accepted. What these accept from then on must not be counted together with what S
signed before: S has not heard of it. Each of them culls S's old statements by itself. But t - 1
correct servers may not have heard of the new life, and take both from a client or server that shows
them.

**Rule.** A server's authenticator over a replica history tells which lives of others it knew of
(`replica.own_authenticator`). A server that is shown that one of the makers *claims* a later life
of another one than that signed in, and than it knows of itself, asks the other one. The request
waits. Either S answers in the later life, which the server knows from then on; or it *denies* it,
and then one of the two is malevolent: the claim holds nothing up any more. If S does not answer,
the request fails as if something had been culled.

So it is with vouchers that nodes host what a method rests on: a node that has begun a new life may
host it no more, and those that vouch with it and knew that when they did so tell it.

**Why a denial may be believed.** A benign S has stored a life before anybody hears of it, and says
that it does not remember until it signs in that. So of a benign S and a correct claimant no claim
is denied, and what a malevolent S has signed counts as a liar's word does at any time. A liar holds
requests up once with each of the others: what was denied to it once is not asked for again.

Where nobody has begun a second life, authenticators tell nothing, and nothing is compared.

**Tests.** `tests/unit/query_update/test_consistent.py`, `tests/seams/test_lost_disks.py`,
`tests/seams/test_lying_lives.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.conversation import Delivery, Now
from bftfs.crypto.digest import AuthenticatorKeys, lives_in_entry, tell_lives
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import ObjectHistorySet
from bftfs.query_update.messages import HistoryReply, HistoryRequest
from bftfs.server.step import Want
from bftfs.storage import StorageView, Write


class Claim(NamedTuple):
    """A server has signed something in the knowledge of a life of another one."""

    claimant: NodeId
    maker: NodeId
    life: int


def claims_in(
    history_sets: Sequence[ObjectHistorySet],
    entries: Sequence[bytes],
    keys: AuthenticatorKeys,
) -> set[Claim]:
    """The claims in these histories: lives of other makers that this server does not know.

    Requires: the sets are canonical, and the entries are this server's of their authenticators.
    """
    told: list[tuple[NodeId, bytes]] = []
    for history_set, of_set in zip(history_sets, entries, strict=True):
        makers = b"".join([group.nodes for group in history_set.groups])
        if tell_lives(of_set, len(makers)):
            told += each_makers(makers, of_set)
    shown = {
        NodeId(maker) for each in history_sets for group in each.groups for maker in group.nodes
    }
    return claims_of(told, shown, keys)


def each_makers(makers: bytes, entries: bytes) -> list[tuple[NodeId, bytes]]:
    """Concatenated entries of authenticators, all of one size, with the makers of these."""
    width = len(entries) // len(makers)
    return [
        (NodeId(maker), entries[at * width : (at + 1) * width]) for at, maker in enumerate(makers)
    ]


def claims_of(
    told: Iterable[tuple[NodeId, bytes]], shown: Iterable[NodeId], keys: AuthenticatorKeys
) -> set[Claim]:
    """The claims in entries, of lives of those that are `shown` which are not known here."""
    makers = tuple(shown)
    return {
        Claim(claimant, maker, lives[maker])
        for claimant, entry in told
        if (lives := lives_in_entry(entry))
        for maker in makers
        if maker not in (claimant, keys.node) and lives[maker] > keys.lives[maker]
    }


class Claims:
    """One server's memory of claims: those that were denied, and servers that did not answer."""

    def __init__(self, peers: Peers, keys: AuthenticatorKeys) -> None:
        self._peers = peers
        self._keys = keys
        self._denied: set[tuple[NodeId, NodeId]] = set()  # (claimant, the server it spoke of)
        self._silent_us: dict[NodeId, int] = {}  # when they did not answer

    def open(self, claims: Iterable[Claim]) -> set[Claim]:
        """Those that were not denied."""
        return {each for each in claims if (each.claimant, each.maker) not in self._denied}

    def want(self, claims: set[Claim], name: ObjectId, now_us: int) -> Want | None:
        """The wait of a request for the makers' answers. None if a maker has just been silent."""
        makers = sorted({each.maker for each in claims})
        for maker in makers:
            if (
                0
                <= now_us - self._silent_us.get(maker, -limits.CLAIM_AGAIN_US)
                < (limits.CLAIM_AGAIN_US)
            ):
                return None

        async def fetch(_view: StorageView) -> list[Write] | None:
            await self._ask(claims, name)
            return []

        return Want(b"claims" + bytes(makers), fetch)

    async def _ask(self, claims: set[Claim], name: ObjectId) -> None:
        """Ask the servers that something is claimed of."""
        n = self._peers.quorums.n

        def judge(delivery: Delivery, _now_us: int) -> HistoryReply | None:
            reply = delivery.message
            return reply if isinstance(reply, HistoryReply) and len(reply.lives) == n else None

        replies = await ask_all(
            self._peers,
            dict.fromkeys({each.maker for each in claims}, HistoryRequest(name, b"")),
            judge,
            patience_us=limits.CLAIM_PATIENCE_US,
        )
        now_us = await Now()
        for claimant, maker, life in claims:
            reply = replies.get(maker)
            if reply is not None and reply.lives[maker] >= life:
                self._keys.learn(maker, reply.lives[maker])
            elif reply is not None and reply.remembers:
                self._denied.add((claimant, maker))
            else:
                self._silent_us[maker] = now_us
