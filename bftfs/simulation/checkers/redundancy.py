"""A node that has lost its disk and has healed hosts what the others do. [design §1 G8]

Taken once every operation has ended and the node has compared itself with its peers since: every
version of a block that is complete at the others, and no poison, is at it, with a fragment that its
timestamp binds; and it stands at every version of an object that a quorum of others stands at,
unless it has accepted a barrier since: then it may accept nothing earlier, and the copy brings it
the version. [Q/U §4.3.2]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.replica import Replica
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import timestamp_of
from bftfs.read_write.validation import item_of, regenerate
from bftfs.read_write.version_row import checksum_of, is_sound
from bftfs.storage import StorageView, Table
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

_BEYOND = b"\xff" * 400


def check_redundancy(
    healed: NodeId,
    disks: Mapping[NodeId, StorageView],
    *,
    objects: QueryUpdateThresholds,
    blocks: ReadWriteThresholds,
    is_required: Callable[[bytes], bool] = lambda _key: True,
) -> list[str]:
    """Findings against the disk of node `healed`, beside those of the other correct nodes.

    `is_required` is true of the keys of blocks' versions that still have to be hosted.
    """
    own = disks[healed]
    others = {node: disk for node, disk in disks.items() if node != healed}
    hosts = Counter(key for disk in others.values() for key in disk.keys(Table.BLOCK, b"", _BEYOND))
    findings = []
    for key, count in hosts.items():
        if count < blocks.QC or _is_hosted(own, healed, key, blocks.N):
            continue
        if is_required(key) and not _is_poison(others, key, blocks):
            findings.append(
                f"redundancy: node {healed} lacks version {timestamp_of(key).time} of block "
                f"{key[:BLOCK_ID_BYTES].hex()[-6:]}, which {count} others host"
            )
    names = {
        ObjectId(key) for disk in others.values() for key in disk.keys(Table.OBJECT, b"", _BEYOND)
    }
    for name in sorted(names):
        heads: Counter[LogicalTimestamp] = Counter(
            Replica(disk, name).head for disk in others.values()
        )
        for head, count in heads.items():
            if count >= objects.q and Replica(own, name).history.latest < head:
                findings.append(
                    f"redundancy: node {healed} stands before version {time_of(head)} of object "
                    f"{name.hex()[-6:]}, at which {count} others stand"
                )
    return findings


def _is_hosted(disk: StorageView, node: NodeId, key: bytes, n: int) -> bool:
    row = disk.get(Table.BLOCK, key)
    index = fragment_index(BlockId(key[:BLOCK_ID_BYTES]), node, n)
    return row is not None and is_sound(
        row, disk.get(Table.FRAGMENT, key), timestamp_of(key), index
    )


def _is_poison(
    disks: Mapping[NodeId, StorageView], key: bytes, thresholds: ReadWriteThresholds
) -> bool:
    """True if the fragments of a version do not encode one value. [PASIS §3.4.2.3]"""
    block = BlockId(key[:BLOCK_ID_BYTES])
    checksum, fragments = CrossChecksum(b""), {}
    for node, disk in disks.items():
        if _is_hosted(disk, node, key, thresholds.N):
            checksum = checksum_of(disk.get(Table.BLOCK, key) or b"\0")
            fragments[fragment_index(block, node, thresholds.N)] = disk.get(Table.FRAGMENT, key)
    code = ErasureCode(thresholds.m, thresholds.N)
    whole = {int(index): fragment or b"" for index, fragment in fragments.items()}
    generated = regenerate(code, checksum, whole)
    first = thresholds.m
    return generated is None or item_of(code, dict(enumerate(generated[:first]))) is None
