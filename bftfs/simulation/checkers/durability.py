"""Acknowledged writes are on the disks of enough correct nodes, and stay there.

[PASIS §3.4.4] (3.1): a write is complete once QC benign nodes host it; its N - t acknowledgements,
of which b may be lies, come from at least as many. What correct nodes host of one version is what
its timestamp binds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bftfs.coding import cross_checksum
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import BlockTimestamp, timestamp_of, version_key
from bftfs.read_write.version_row import checksum_of
from bftfs.storage import StorageView, Table


def check_hosted(
    disks: Mapping[NodeId, StorageView],
    acknowledged: Iterable[tuple[BlockId, BlockTimestamp]],
    *,
    needed: int,
) -> list[str]:
    """Findings against acknowledged writes that too few of the correct nodes' `disks` have."""
    findings: list[str] = []
    for block, timestamp in acknowledged:
        key = version_key(block, timestamp)
        hosts = [node for node, disk in disks.items() if disk.get(Table.BLOCK, key) is not None]
        if len(hosts) < needed:
            findings.append(
                f"durability: the write of block {block.hex()[-4:]} at {timestamp.time} was "
                f"acknowledged, and only nodes {hosts} host it, where {needed} are needed"
            )
    return findings


def check_bound(disks: Mapping[NodeId, StorageView], *, N: int) -> list[str]:
    """Findings against versions on the correct nodes' `disks` that their timestamps do not bind."""
    findings: list[str] = []
    for node, disk in disks.items():
        for key, row in disk.scan(Table.BLOCK, b"", b"\xff" * 200):
            block, timestamp = BlockId(key[:32]), timestamp_of(key)
            checksum = checksum_of(row)
            fragment = disk.get(Table.FRAGMENT, key) or b""
            if cross_checksum.verifier(
                checksum
            ) != timestamp.verifier or not cross_checksum.matches(
                checksum, fragment_index(block, node, N), fragment
            ):
                findings.append(
                    f"durability: node {node} hosts something else of block {block.hex()[-4:]} "
                    f"than what was written at {timestamp.time}"
                )
    return findings
