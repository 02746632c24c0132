"""Which node holds which fragment of a block, and which nodes a reader prefers.

Fragment i of a block belongs to node (i + r) mod N, with a rotation r that depends on the block. So
the stripes, which readers prefer (decoding them is a concatenation), and with them the load of
reading, move around all nodes from block to block and from file to file.
"""

from __future__ import annotations

from bftfs.identifiers import OBJECT_ID_BYTES, BlockId, FragmentIndex, NodeId


def rotation_of(block: BlockId, N: int) -> int:
    """The node that holds the first stripe."""
    return (block[OBJECT_ID_BYTES - 1] + int.from_bytes(block[-8:], "big")) % N


def fragment_index(block: BlockId, node: NodeId, N: int) -> FragmentIndex:
    """The fragment of `block` that belongs to `node`."""
    return FragmentIndex((node - rotation_of(block, N)) % N)


def nodes_by_fragment(N: int) -> tuple[tuple[NodeId, ...], ...]:
    """For each rotation: the nodes in the order of their fragments, stripes first."""
    return tuple(
        tuple(NodeId((index + rotation) % N) for index in range(N)) for rotation in range(N)
    )
