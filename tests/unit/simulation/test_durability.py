"""The checker of disks accepts what was written, and finds what is missing or damaged."""

from __future__ import annotations

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.simulation.checkers.disks import check_bound, check_hosted, check_redundancy, complete_at
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.disk import Disk
from bftfs.storage import Table, Write

N = 6
BLOCK = BlockId(bytes(32))


def written() -> tuple[dict[NodeId, Disk], BlockTimestamp]:
    """Disks that host one version."""
    fragments = ErasureCode(3, N).encode(b"an item that was written")
    checksum = cross_checksum.make(fragments)
    timestamp = BlockTimestamp(7, ClientId(bytes(16)), cross_checksum.verifier(checksum))
    key = version_key(BLOCK, timestamp)
    disks = {NodeId(node): Disk() for node in range(N)}
    for node, disk in disks.items():
        fragment = bytes(fragments[fragment_index(BLOCK, node, N)])
        disk.apply(
            [Write(Table.BLOCK, key, b"\0" + checksum), Write(Table.FRAGMENT, key, fragment)]
        )
        disk.commit()
    return disks, timestamp


def test_what_was_written_is_accepted() -> None:
    disks, timestamp = written()
    assert check_hosted(disks, [(BLOCK, timestamp)], needed=N) == []
    assert check_bound(disks, N=N) == []


def test_an_acknowledged_write_on_too_few_disks_is_found() -> None:
    disks, timestamp = written()
    for node in (NodeId(0), NodeId(1)):
        disks[node].lose(Table.BLOCK, version_key(BLOCK, timestamp))
    assert check_hosted(disks, [(BLOCK, timestamp)], needed=4) == []
    assert check_hosted(disks, [(BLOCK, timestamp)], needed=5)


def test_a_fragment_that_rots_is_found() -> None:
    disks, timestamp = written()
    disks[NodeId(3)].rot(Table.FRAGMENT, version_key(BLOCK, timestamp), 2)
    assert len(check_bound(disks, N=N)) == 1


def test_a_cross_checksum_that_rots_is_found() -> None:
    disks, timestamp = written()
    disks[NodeId(3)].rot(Table.BLOCK, version_key(BLOCK, timestamp), 40)
    assert len(check_bound(disks, N=N)) == 1


def test_what_became_complete_after_a_node_has_healed_it_need_not_host() -> None:
    sizes = Sizes.smallest(t=1, b=1)
    disks, timestamp = written()
    own = disks[NodeId(0)]
    own.lose(Table.BLOCK, version_key(BLOCK, timestamp))
    for others, found in (
        ([Disk()] * (N - 1), 0),
        ([disks[NodeId(node)] for node in range(1, N)], 1),
    ):
        complete = complete_at(others, objects=sizes.query_update, blocks=sizes.read_write)
        assert len(check_redundancy(NodeId(0), disks, complete, blocks=sizes.read_write)) == found
