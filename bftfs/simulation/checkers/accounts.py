"""Compares the accounts at correct nodes with what their disks hold.

An account is, at every moment, the bytes of fragments and cross-checksums that a client's versions
use at a node, also if others have sent them. [G7]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from bftfs.identifiers import ClientId, NodeId
from bftfs.read_write.timestamp import VERSION_KEY_BYTES, VERSIONS_END, timestamp_of
from bftfs.read_write.version_row import checksum_of
from bftfs.server.room import accounts, used_bytes
from bftfs.simulation.checkers.candidates import CommitRecord
from bftfs.storage import StorageView, Table, Write


def _bytes_of(disk: StorageView, key: bytes, row: bytes | None) -> int:
    """The bytes that a version uses: counted here, and not by the code that is checked."""
    if row is None:
        return 0
    return len(checksum_of(row)) + len(disk.get(Table.FRAGMENT, key) or b"")


def stored_bytes(disk: StorageView) -> Counter[ClientId]:
    """What each client's versions use, recomputed from the rows."""
    volumes: Counter[ClientId] = Counter()
    for key, row in disk.scan(Table.BLOCK, b"", VERSIONS_END):
        if len(key) == VERSION_KEY_BYTES:
            volumes[timestamp_of(key).client] += _bytes_of(disk, key, row)
    return volumes


@dataclass(slots=True)
class AccountsRecord(CommitRecord):
    """What correct nodes store of each client, commit by commit, beside its account."""

    sort: ClassVar[str] = "accounts"
    # By node: the bytes of each version, and of each client.
    _versions: dict[NodeId, dict[bytes, int]] = field(default_factory=dict)
    _clients: dict[NodeId, Counter[ClientId]] = field(default_factory=dict)

    def committed(self, node: NodeId, view: StorageView, writes: Iterable[Write]) -> None:
        """Judge what `node` commits; `view` shows the store with it."""
        versions = self._versions.setdefault(node, {})
        stored = self._clients.setdefault(node, Counter())
        touched = set()
        for write in writes:
            table, key = write.table, write.key
            if table is Table.ADMISSION:
                touched.add(ClientId(key))
            elif table in {Table.BLOCK, Table.FRAGMENT} and len(key) == VERSION_KEY_BYTES:
                client = timestamp_of(key).client
                volume = _bytes_of(view, key, view.get(Table.BLOCK, key))
                stored[client] += volume - versions.get(key, 0)
                versions[key] = volume
                touched.add(client)
        for client in sorted(touched):
            counted, there = used_bytes(view, client), stored[client]
            if counted != there:
                self.find(
                    f"{counted} bytes of one client are counted at node {node} at a commit, and "
                    f"{there} are stored"
                )

    def forget(self, node: NodeId, left: StorageView) -> None:
        """`node` has lost its disk, or all but what is `left`."""
        self._clients[node] = stored_bytes(left)
        self._versions[node] = {
            key: _bytes_of(left, key, row)
            for key, row in left.scan(Table.BLOCK, b"", VERSIONS_END)
            if len(key) == VERSION_KEY_BYTES
        }


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
