"""What a client concludes about servers that cannot all be correct. [Q/U §4.3.5, Malevolent]

A server that reports another's authenticator as invalid quarrels with it: one of the two is
malevolent, for correct servers never quarrel (over an insane time they may, while it lies between
their clocks). A server accused by a set that includes a benign one has corrupted more than it can
deny, and is convicted. Otherwise the client shuns as few servers as
explain all quarrels: it asks them last, and leaves their histories out of its history sets.

It also shuns servers whose histories time and again show something of their own, which only a
repair gets rid of. Under contention, correct servers do so now and then: it counts how often, and
what they have in common with others counts in their favour. At no time does it shun servers that
cannot all be malevolent.
"""

from __future__ import annotations

from itertools import combinations

from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.identifiers import NodeId
from bftfs.limits import SECOND_US

MEMORY_US = 300 * SECOND_US  # after this long without news, everybody gets another chance
DIVERGENCES = 4  # in a row, before a server is shunned for them
_CONFORMITIES = 4  # that make up for one divergence
_SHUNNED = DIVERGENCES * _CONFORMITIES


class Suspicion:
    """One client's memory of misbehaviour; bounded by the number of pairs of servers."""

    __slots__ = (
        "_convicted",
        "_divergences",
        "_forget_us",
        "_quarrels",
        "_quorums",
        "_trusted",
        "_watched",
        "shunned",
    )

    def __init__(self, quorums: QuorumSystem, *, trusted: Nodes = 0) -> None:
        """`trusted` are never suspect: a server that repairs what it has itself accepted alone."""
        self._quorums = quorums
        self._trusted = trusted
        self._quarrels: set[tuple[NodeId, NodeId]] = set()  # accuser and accused
        self._convicted: Nodes = 0
        self._divergences = [0] * quorums.n
        self._watched: Nodes = 0  # those with divergences
        self._forget_us = 0
        self.shunned: Nodes = 0

    def shuns(self, node: NodeId) -> bool:
        """Whether `node` is shunned at present."""
        return bool(self.shunned >> node & 1)

    def accuse(self, accuser: NodeId, forged: Nodes, now_us: int) -> None:
        """`accuser` says that it culled the histories of the servers `forged`."""
        self._forget_us = now_us + MEMORY_US
        for accused in range(self._quorums.n):
            if forged >> accused & 1 and accused != accuser:
                self._quarrels.add((accuser, NodeId(accused)))
        self._conclude()

    def convict(self, nodes: Nodes, now_us: int) -> None:
        """`nodes` said what no correct server says."""
        if nodes & ~self._convicted:
            self._forget_us = now_us + MEMORY_US
            self._convicted |= nodes
            self._conclude()

    def diverged(self, nodes: Nodes, now_us: int) -> None:
        """Each of `nodes` reports something that hardly anybody else has."""
        self._watched |= nodes
        for node in range(self._quorums.n):
            if nodes >> node & 1:
                before = self._divergences[node]
                self._divergences[node] = min(before + _CONFORMITIES, 2 * _SHUNNED)
                if before < _SHUNNED <= before + _CONFORMITIES:
                    self._forget_us = now_us + MEMORY_US
                    self._conclude()

    def conformed(self, nodes: Nodes) -> None:
        """`nodes` report what others report."""
        nodes &= self._watched
        if not nodes:
            return
        for node in range(self._quorums.n):
            if nodes >> node & 1:
                self._divergences[node] -= 1
                if not self._divergences[node]:
                    self._watched &= ~(1 << node)
                elif self._divergences[node] == _SHUNNED - 1:
                    self._conclude()

    def forget(self, now_us: int) -> None:
        """Give everybody another chance, if it is time."""
        if self.shunned and now_us >= self._forget_us:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._convicted = 0
        self.relent()

    def relent(self) -> None:
        """Forget what is no proof: it may be what stands in the way."""
        self._quarrels.clear()
        self._divergences = [0] * self._quorums.n
        self._watched = 0
        self._conclude()

    def _conclude(self) -> None:
        convicted = self._convicted
        for accused in range(self._quorums.n):
            accusers = 0
            for one, other in self._quarrels:
                if other == accused:
                    accusers |= 1 << one
            if self._quorums.includes_benign(accusers):
                convicted |= 1 << accused
        shunned = convicted | self._least_cover(
            {
                (one, other)
                for one, other in self._quarrels
                if not (convicted >> one | convicted >> other) & 1
            }
        )
        shunned &= ~self._trusted
        for node, times in enumerate(self._divergences):
            if self._trusted >> node & 1:
                continue
            if times >= _SHUNNED and not self._quorums.includes_benign(shunned | 1 << node):
                shunned |= 1 << node
        self.shunned = 0 if self._quorums.includes_benign(shunned) else shunned

    def _least_cover(self, quarrels: set[tuple[NodeId, NodeId]]) -> Nodes:
        """The fewest servers of which each of `quarrels` has one; the accused rather."""
        accused = sorted({other for _, other in quarrels})
        accusers = sorted({one for one, _ in quarrels}.difference(accused))
        involved = accused + accusers
        for size in range(len(involved) + 1):
            for chosen in combinations(involved, size):
                if all(one in chosen or other in chosen for one, other in quarrels):
                    return sum(1 << node for node in chosen)
        raise AssertionError("all the involved are a cover")
