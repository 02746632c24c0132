"""What correct nodes' accounts say, beside what their disks hold.

An account is the bytes of fragments and cross-checksums that a client's versions use at a node, at
every moment: whoever has brought a version, and whatever has become of it. [G7]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from bftfs.identifiers import ClientId, NodeId
from bftfs.read_write.timestamp import VERSION_KEY_BYTES, VERSIONS_END, timestamp_of
from bftfs.read_write.version_row import checksum_of
from bftfs.server.accounts import accounts
from bftfs.storage import StorageView, Table


def stored_bytes(disk: StorageView) -> Counter[ClientId]:
    """What each client's versions use, recomputed from the rows."""
    volumes: Counter[ClientId] = Counter()
    for key, row in disk.scan(Table.BLOCK, b"", VERSIONS_END):
        if len(key) == VERSION_KEY_BYTES:
            fragment = disk.get(Table.FRAGMENT, key) or b""
            volumes[timestamp_of(key).client] += len(checksum_of(row)) + len(fragment)
    return volumes


def check_accounts(disks: Mapping[NodeId, StorageView]) -> list[str]:
    """Findings against accounts of the correct nodes' `disks` that are not what is stored."""
    findings: list[str] = []
    for node, disk in disks.items():
        counted, there = accounts(disk), stored_bytes(disk)
        findings += [
            f"accounts: {counted[client]} bytes of one client are counted at node {node}, "
            f"and {there[client]} are stored"
            for client in sorted(counted.keys() | there.keys())
            if counted[client] != there[client]
        ]
    return findings
