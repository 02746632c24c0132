"""A set of nodes.

It is immutable, and travels as an integer whose bit i stands for node i. The sets of small clusters
are made once: counting and uniting them is as cheap as it is with integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from bftfs.identifiers import NodeId

_MADE_ONCE = 1 << 8


class NodeSet:
    """Some of the nodes; `bits` is the integer that stands for them."""

    __slots__ = ("bits", "size")

    bits: Final[int]
    size: Final[int]

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.size = bits.bit_count()

    @staticmethod
    def of(*nodes: NodeId) -> NodeSet:
        """The set of these."""
        return NodeSet.union(nodes)

    @staticmethod
    def union(nodes: Iterable[NodeId]) -> NodeSet:
        """The set of all of these."""
        bits = 0
        for node in nodes:
            bits |= 1 << node
        return node_set(bits)

    def plus(self, node: NodeId) -> NodeSet:
        """These and `node`."""
        return node_set(self.bits | 1 << node)

    def minus(self, node: NodeId) -> NodeSet:
        """These without `node`."""
        return node_set(self.bits & ~(1 << node))

    def __contains__(self, node: NodeId) -> bool:
        return self.bits >> node & 1 == 1

    def __iter__(self) -> Iterator[NodeId]:
        bits = self.bits
        while bits:
            lowest = bits & -bits
            yield NodeId(lowest.bit_length() - 1)
            bits ^= lowest

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return self.bits != 0

    def __or__(self, other: NodeSet) -> NodeSet:
        return node_set(self.bits | other.bits)

    def __and__(self, other: NodeSet) -> NodeSet:
        return node_set(self.bits & other.bits)

    def __sub__(self, other: NodeSet) -> NodeSet:
        return node_set(self.bits & ~other.bits)

    def __le__(self, other: NodeSet) -> bool:
        return not self.bits & ~other.bits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeSet) and self.bits == other.bits

    def __hash__(self) -> int:
        return self.bits

    def __repr__(self) -> str:
        return f"{{{', '.join(map(str, self))}}}"


_SMALL = tuple(map(NodeSet, range(_MADE_ONCE)))
NOBODY: Final = _SMALL[0]


def node_set(bits: int) -> NodeSet:
    """The set that `bits` stands for."""
    return _SMALL[bits] if bits < _MADE_ONCE else NodeSet(bits)


def everyone(n: int) -> NodeSet:
    """All of the nodes 0 to n - 1."""
    return node_set((1 << n) - 1)
