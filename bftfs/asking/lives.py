"""A client's knowledge of servers' lives: which replies of a round count together.

**Situation.** A server that may have forgotten what it accepted begins a new life
(`bftfs.server.recovery`). What it said in an earlier one must not be counted together with replies
of servers that know the new one. So it is in both protocols. [docs/protocols-query-update.md, A
server that lost its store; docs/protocols-read-write.md, What a node has forgotten]

**Rules.**

1. Each reply tells in which life its server replies, and the latest life that it knows of each
   other server.
2. A round counts only if none of the servers that were heard, in it or before it, knows a later
   life of one that was heard in it than that one replied in.
3. A liar may claim lives that nobody has begun. A claim holds one round up: in the next one the
   server in question answers for itself. If it does not confirm the claim, one of the two lies, and
   this client no longer counts what the claimant says of that server's lives. If the claimant culls
   what the other one signed, they quarrel (`Rounds.denied`): the other one may be the liar.

**Tests.** `tests/unit/asking/test_lives.py`.

**Concurrency.** One thread; rounds overlap. A claim that was heard when a round had begun already
is not refuted by what that round hears. If a client asks a server again in one round, the moment of
its first request counts, unless the client no longer takes replies to that request.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.identifiers import NodeId

Told = tuple[int, ...]  # the latest life of each server that one of them knows of


class Heard(NamedTuple):
    """The lives that one server has told, and when the client asked it."""

    lives: Told
    asked: int  # a moment of `Lives`


class Lives:
    """The servers' claims of each other's lives, and which of these have turned out to be false."""

    __slots__ = ("_claims", "_false", "_moments")

    def __init__(self) -> None:
        self._moments = count()
        # By the claimant and the server that it speaks of: which life, and when that was heard
        # first.
        self._claims: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}
        self._false: set[tuple[NodeId, NodeId]] = set()

    def begin(self) -> int:
        """Servers are asked now: the moment."""
        return next(self._moments)

    def believes(self, claimant: NodeId, maker: NodeId) -> bool:
        """True if `claimant` may know a life of `maker` that this client does not."""
        return (claimant, maker) not in self._false

    @property
    def refuted(self) -> int:
        """How many servers' words about how many others are not believed any more."""
        return len(self._false)

    def agree(
        self, heard: Mapping[NodeId, Told], began: int, told: Mapping[NodeId, Told] = {}
    ) -> bool:
        """True if no server knows that one of those that were heard replied in an earlier life.

        `began` is the moment of the round in which they were heard. `told` is what others have told
        before: one that answers only where its victim is not asked is refuted nevertheless.
        """
        claims = {**told, **heard}
        if len(set(claims.values())) <= 1:
            return True
        return not self.outlived(
            {node: Heard(lives, began) for node, lives in heard.items()}, claims
        )

    def outlived(
        self, heard: Mapping[NodeId, Heard], claims: Mapping[NodeId, Told] | None = None
    ) -> Nodes:
        """Those that others know to have begun a later life than they replied in.

        Others of them, or all that have made `claims`.
        """
        if claims is None:
            claims = {node: lives for node, (lives, _) in heard.items()}
        outlived = NOBODY
        for claimant, lives in claims.items():
            for maker, (told, asked) in heard.items():
                pair, claimed, own = (claimant, maker), lives[maker], told[maker]
                if claimed <= own or pair in self._false:
                    continue
                before, moment = self._claims.get(pair, (own, asked))
                if before <= own:
                    self._claims[pair] = claimed, next(self._moments)
                elif moment < asked:
                    self._false.add(pair)
                    continue
                outlived = outlived.plus(maker)
        return outlived
