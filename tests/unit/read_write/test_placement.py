from __future__ import annotations

from collections import Counter

import pytest

from bftfs.identifiers import NodeId, ObjectKind, block_id, object_id
from bftfs.read_write.placement import fragment_index, nodes_by_fragment, rotation_of
from tests.unit.read_write.harness import INODE


@pytest.mark.parametrize("N", range(1, 12))
def test_every_node_holds_one_fragment_of_every_block(N: int) -> None:
    for number in range(2 * N):
        block = block_id(INODE, incarnation=0, number=number)
        indices = [fragment_index(block, NodeId(node), N) for node in range(N)]
        assert sorted(indices) == list(range(N))
        order = nodes_by_fragment(N)[rotation_of(block, N)]
        assert [indices[node] for node in order] == list(range(N))


def test_stripes_move_around_all_nodes() -> None:
    blocks = [block_id(INODE, incarnation=3, number=number) for number in range(600)]
    assert set(Counter(rotation_of(block, 6) for block in blocks).values()) == {100}


def test_first_blocks_of_files_start_at_different_nodes() -> None:
    inodes = [
        object_id(ObjectKind.INODE, placement=0, unique=bytes(13) + bytes([number]))
        for number in range(6)
    ]
    assert {rotation_of(block_id(i, incarnation=0, number=0), 6) for i in inodes} == set(range(6))
