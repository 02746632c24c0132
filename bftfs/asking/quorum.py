"""Quorum systems: which sets of servers are enough for what. [Q/U §4.3.3]

The code asks a `QuorumSystem` only; thresholds are one instance, and recursive thresholds, grids or
partitions are others.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

Nodes: TypeAlias = int  # a set of servers: bit i stands for server i


class QuorumSystem(Protocol):
    """Which sets of servers are quorums, repairable sets, and beyond what can all be lying."""

    @property
    def n(self) -> int:
        """How many servers there are."""

    def is_quorum(self, nodes: Nodes) -> bool:
        """Whether some quorum Q ⊆ `nodes`: a candidate that they share is complete. (4.1)"""

    def is_repairable(self, nodes: Nodes) -> bool:
        """Whether some repairable set R ⊆ `nodes`. (4.1)"""

    def includes_benign(self, nodes: Nodes) -> bool:
        """Whether `nodes` cannot all be malevolent: no B of the fail-prone system covers them."""

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        """All servers in the order in which to ask them for an object; the preferred quorum first.

        [Q/U §4.3.5]: a deterministic function of the object's id.
        """

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        """How many servers at the head of `order` make a quorum."""


class ThresholdQuorums:
    """Quorums of q, repairable sets of r, at most b malevolent, among n. [Q/U §4.3.3]"""

    __slots__ = ("_preferences", "b", "n", "q", "r")

    def __init__(self, thresholds: QueryUpdateThresholds) -> None:
        self.n = thresholds.n
        self.q = thresholds.q
        self.r = thresholds.r
        self.b = thresholds.b
        self._preferences = tuple(
            tuple(NodeId((start + step) % self.n) for step in range(self.n))
            for start in range(self.n)
        )

    def is_quorum(self, nodes: Nodes) -> bool:
        """At least q servers."""
        return nodes.bit_count() >= self.q

    def is_repairable(self, nodes: Nodes) -> bool:
        """At least r servers."""
        return nodes.bit_count() >= self.r

    def includes_benign(self, nodes: Nodes) -> bool:
        """More than b servers."""
        return nodes.bit_count() > self.b

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        """The servers from `placement mod n` on, around the ring."""
        return self._preferences[placement % self.n]

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        """The first q."""
        return min(self.q, len(order))
