"""A client's knowledge of servers' lives: whose statements of this round count together.

A server that may have forgotten what it accepted begins a new life (`bftfs.server.recovery`). What
it said before counts, as long as nobody who counts with it knows better. So every reply tells the
life in which the server itself replies, and the latest lives of the others that it knows of; and a
round in which one of those that were heard knows that another one has begun a later life than it
replied in does not count. [docs/protocols-query-update.md, A server that lost its store]

A liar may claim that others have begun new lives. The claim holds one round up: in the next one the
server in question answers for itself. If it does not confirm the claim, then either it lies or who
claimed it does, and the claimant is not listened to about this server any more.

**Concurrency.** One thread; rounds overlap. A claim that was heard when a round had begun already
is not refuted by what that round hears.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from bftfs.identifiers import NodeId

Told = tuple[int, ...]  # the latest life of each server that one of them knows of


class Lives:
    """What servers claim of each other's lives, and whose claims have turned out to be false."""

    __slots__ = ("_claims", "_false", "_moments")

    def __init__(self) -> None:
        self._moments = count()
        # By who claims it and of whom: which life, and when that was heard first.
        self._claims: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}
        self._false: set[tuple[NodeId, NodeId]] = set()

    def begin(self) -> int:
        """A round begins now: its moment."""
        return next(self._moments)

    def believes(self, claimant: NodeId, maker: NodeId) -> bool:
        """True if `claimant` may know a life of `maker` that this client does not."""
        return (claimant, maker) not in self._false

    def agree(self, heard: Mapping[NodeId, Told], began: int) -> bool:
        """True if none of these servers knows that another one of them replied in an earlier life.

        `began` is the moment of the round in which they were heard.
        """
        if len(set(heard.values())) <= 1:
            return True
        agree = True
        for claimant, lives in heard.items():
            for maker, told in heard.items():
                pair, claimed, own = (claimant, maker), lives[maker], told[maker]
                if claimed <= own or pair in self._false:
                    continue
                before, moment = self._claims.get(pair, (own, began))
                if before > own and moment < began:
                    self._false.add(pair)
                    continue
                self._claims[pair] = claimed, next(self._moments)
                agree = False
        return agree
