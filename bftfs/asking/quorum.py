"""Quorum systems: which sets of servers are enough for what. [Q/U §4.3.3]

The code asks a `QuorumSystem` only; thresholds are one instance, and recursive thresholds, grids or
partitions are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Protocol

from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

_bit = (1).__lshift__  # of a node


class Nodes:
    """A set of nodes. It is immutable; in messages it is `bits`, an integer: bit i for node i."""

    __slots__ = ("bits",)

    def __init__(self, bits: int) -> None:
        self.bits = bits

    @staticmethod
    def of(nodes: Iterable[int]) -> Nodes:
        """The set of `nodes`."""
        return _KNOWN[reduce(or_, map(_bit, nodes), 0)]

    @staticmethod
    def listed(nodes: bytes) -> Nodes | None:
        """The set that a message lists, a byte for each node; None if they are not in order."""
        known = _LISTED.get(nodes)
        return _read_list(nodes) if known is None else known

    @staticmethod
    def known(bits: int) -> Nodes:
        """The set whose integer is `bits`."""
        return _KNOWN[bits]

    def plus(self, node: int) -> Nodes:
        """This set with `node`."""
        return _KNOWN[self.bits | 1 << node]

    def minus(self, node: int) -> Nodes:
        """This set without `node`."""
        return _KNOWN[self.bits & ~(1 << node)]

    def __contains__(self, node: int) -> bool:
        return self.bits >> node & 1 == 1

    def __iter__(self) -> Iterator[NodeId]:
        return (NodeId(node) for node in range(self.bits.bit_length()) if node in self)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __or__(self, other: Nodes) -> Nodes:
        return _KNOWN[self.bits | other.bits]

    def __and__(self, other: Nodes) -> Nodes:
        return _KNOWN[self.bits & other.bits]

    def __sub__(self, other: Nodes) -> Nodes:
        return _KNOWN[self.bits & ~other.bits]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nodes) and self.bits == other.bits

    def __hash__(self) -> int:
        return self.bits

    def __repr__(self) -> str:
        return f"Nodes({set(self) or '{}'})"


class _Known(dict[int, Nodes]):
    """Sets by their integers. In a small cluster each set is made once and kept."""

    def __missing__(self, bits: int) -> Nodes:
        nodes = Nodes(bits)
        if bits < _FEW:
            self[bits] = nodes
        return nodes


_FEW = 1 << 12  # only sets below this are kept, so that messages cannot fill the memory
_KNOWN = _Known()
_LISTED: dict[bytes, Nodes] = {}  # those of the sets above that messages have listed
NOBODY = _KNOWN[0]


def _read_list(listed: bytes) -> Nodes | None:
    if any(node >= following for node, following in pairwise(listed)):
        return None
    nodes = Nodes.of(listed)
    if nodes.bits < _FEW:
        _LISTED[listed] = nodes
    return nodes


class QuorumSystem(Protocol):
    """Which sets of servers are quorums or repairable sets, and which cannot all be lying."""

    @property
    def n(self) -> int:
        """How many servers there are."""

    @property
    def everyone(self) -> Nodes:
        """All servers."""

    def is_quorum(self, nodes: Nodes) -> bool:
        """Whether some quorum Q ⊆ `nodes`: a candidate that they share is complete. (4.1)"""

    def may_be_quorum(self, nodes: Nodes) -> bool:
        """Whether `nodes`, with malevolent servers added, may contain a quorum."""

    def is_repairable(self, nodes: Nodes) -> bool:
        """Whether some repairable set R ⊆ `nodes`. (4.1)"""

    def may_be_repairable(self, nodes: Nodes) -> bool:
        """Whether `nodes`, with malevolent servers added, may contain a repairable set."""

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

    __slots__ = ("_preferences", "b", "everyone", "n", "q", "r")

    def __init__(self, thresholds: QueryUpdateThresholds) -> None:
        self.n = thresholds.n
        self.everyone = Nodes.of(range(thresholds.n))
        self.q = thresholds.q
        self.r = thresholds.r
        self.b = thresholds.b
        self._preferences = tuple(
            tuple(NodeId((start + step) % self.n) for step in range(self.n))
            for start in range(self.n)
        )

    def is_quorum(self, nodes: Nodes) -> bool:
        """At least q servers."""
        return nodes.bits.bit_count() >= self.q

    def may_be_quorum(self, nodes: Nodes) -> bool:
        """At least q - b servers."""
        return nodes.bits.bit_count() + self.b >= self.q

    def is_repairable(self, nodes: Nodes) -> bool:
        """At least r servers."""
        return nodes.bits.bit_count() >= self.r

    def may_be_repairable(self, nodes: Nodes) -> bool:
        """At least r - b servers."""
        return nodes.bits.bit_count() + self.b >= self.r

    def includes_benign(self, nodes: Nodes) -> bool:
        """More than b servers."""
        return nodes.bits.bit_count() > self.b

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        """The servers from `placement mod n` on, around the ring."""
        return self._preferences[placement % self.n]

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        """The first q."""
        return min(self.q, len(order))
