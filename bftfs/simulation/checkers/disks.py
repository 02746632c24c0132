"""What correct nodes have on their disks when an operation has ended, and when all has settled.

Acknowledged writes are on the disks of enough correct nodes, and stay there. [PASIS §3.4.4] (3.1):
a write is complete once QC benign nodes host it; its N - t acknowledgements, of which b may be
lies, come from at least as many. What correct nodes host of one version is what its timestamp
binds.

When faults have stopped and a client has read everything, correct nodes agree. [Q/U §4.3.8] All
benign servers have one chain of each object. So servers that stand at the same version must have
the same contents, key by key, whether they got there by executing, by object sync, or by moving
back and forth between candidates. And a quorum of them stands at the version that was established
last by a client that was alone.

A node that has lost its disk and has healed hosts what the others hosted when it compared itself
with them [design §1 G8]. (What became complete since it gets with the next comparison: Byzantine
nodes go on, and others repair what these leave behind.) It has every version of a block that was
complete at the others and is not poisonous, with a fragment that its timestamp binds. It stands at
every version of an object at which a quorum of others stood, unless it has accepted a barrier
since: then it may accept nothing earlier, and the copy brings it the version. [Q/U §4.3.2]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.replica import Replica
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import BlockTimestamp, timestamp_of, version_key
from bftfs.read_write.validation import item_of, regenerate
from bftfs.read_write.version_row import checksum_of, is_sound
from bftfs.storage import StorageView, Table
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

_NUMBER_BYTES = 8  # of the version that wrote a value, before the value
_BEYOND = b"\xff" * 400  # above every key of a store


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
        for key, row in disk.scan(Table.BLOCK, b"", _BEYOND):
            block, timestamp = BlockId(key[:32]), timestamp_of(key)
            checksum = checksum_of(row)
            fragment = disk.get(Table.FRAGMENT, key) or b""
            index = fragment_index(block, node, N)
            is_bound = cross_checksum.verifier(checksum) == timestamp.verifier
            if not is_bound or not cross_checksum.matches(checksum, index, fragment):
                findings.append(
                    f"durability: node {node} hosts something else of block {block.hex()[-4:]} "
                    f"than what was written at {timestamp.time}"
                )
    return findings


def check_convergence(
    disks: Mapping[NodeId, StorageView],
    *,
    settled: Mapping[ObjectId, LogicalTimestamp],
    needed: int,
) -> list[str]:
    """Findings against the objects on the correct nodes' `disks`.

    `settled` are the versions that were established last, when nothing went wrong any more: at
    least `needed` of the nodes stand at them.
    """
    findings: list[str] = []
    objects = dict.fromkeys(
        ObjectId(key) for disk in disks.values() for key in disk.keys(Table.OBJECT, b"", _BEYOND)
    )
    for identifier in objects:
        heads = {node: Replica(disk, identifier).head for node, disk in disks.items()}
        contents: dict[LogicalTimestamp, tuple[NodeId, dict[bytes, bytes]]] = {}
        for node, head in heads.items():
            state = _contents(disks[node], identifier)
            other, known = contents.setdefault(head, (node, state))
            if known != state:
                findings.append(
                    f"convergence: nodes {other} and {node} stand at the version of "
                    f"{time_of(head)} of {identifier.hex()[-6:]}, with different contents"
                )
        if identifier in settled:
            there = Counter(heads.values())[settled[identifier]]
            if there < needed:
                findings.append(
                    f"convergence: only {there} nodes stand at the last version of "
                    f"{identifier.hex()[-6:]}, where {needed} are needed"
                )
    return findings


def _contents(disk: StorageView, identifier: ObjectId) -> dict[bytes, bytes]:
    """The content of an object, without the numbers of the versions that wrote its values."""
    return {
        key: value[_NUMBER_BYTES:]
        for key, value in disk.scan(Table.STATE, identifier, identifier + _BEYOND)
    }


class Complete(NamedTuple):
    """What enough of some nodes have at one moment, so that another one has to get it."""

    blocks: frozenset[bytes]  # keys of versions of blocks that QC of them host
    objects: Mapping[ObjectId, LogicalTimestamp]  # at which a quorum of them stands


def complete_at(
    disks: Iterable[StorageView],
    *,
    objects: QueryUpdateThresholds,
    blocks: ReadWriteThresholds,
) -> Complete:
    """What is complete on these `disks` now."""
    disks = tuple(disks)
    standing: dict[ObjectId, LogicalTimestamp] = {}
    for name in _all_keys(disks, Table.OBJECT):
        identifier = ObjectId(name)
        heads = Counter(Replica(disk, identifier).head for disk in disks)
        ((head, count),) = heads.most_common(1)
        if count >= objects.q:
            standing[identifier] = head
    hosts = _all_keys(disks, Table.BLOCK)
    return Complete(frozenset(key for key in hosts if hosts[key] >= blocks.QC), standing)


def check_redundancy(
    healed: NodeId,
    disks: Mapping[NodeId, StorageView],
    complete: Complete,
    *,
    blocks: ReadWriteThresholds,
    is_required: Callable[[bytes], bool] = lambda _key: True,
) -> list[str]:
    """Findings against the disk of node `healed`, beside those of the other correct nodes.

    `complete` is what the others had when it compared itself with them. `is_required` is true of
    the keys of blocks' versions that still have to be hosted.
    """
    own = disks[healed]
    others = {node: disk for node, disk in disks.items() if node != healed}
    hosts = _all_keys(others.values(), Table.BLOCK)
    findings = []
    for key in sorted(complete.blocks):
        if hosts[key] < blocks.QC or _is_hosted(own, healed, key, blocks.N):
            continue
        if is_required(key) and not _is_poison(others, key, blocks):
            findings.append(
                f"redundancy: node {healed} lacks version {timestamp_of(key).time} of block "
                f"{key[:BLOCK_ID_BYTES].hex()[-6:]}, which {hosts[key]} others host"
            )
    for name, head in sorted(complete.objects.items()):
        if Replica(own, name).history.latest < head:
            findings.append(
                f"redundancy: node {healed} stands before version {time_of(head)} of object "
                f"{name.hex()[-6:]}, at which a quorum of others stood when it compared itself"
            )
    return findings


def _all_keys(disks: Iterable[StorageView], table: Table) -> Counter[bytes]:
    """The keys of a table on these disks, and on how many each is."""
    return Counter(key for disk in disks for key in disk.keys(table, b"", _BEYOND))


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
    checksum = cross_checksum.CrossChecksum(b"")
    fragments: dict[int, bytes] = {}
    for node, disk in disks.items():
        if _is_hosted(disk, node, key, thresholds.N):
            index = fragment_index(block, node, thresholds.N)
            checksum = checksum_of(disk.get(Table.BLOCK, key) or b"\0")
            fragments[index] = disk.get(Table.FRAGMENT, key) or b""
    code = ErasureCode(thresholds.m, thresholds.N)
    generated = regenerate(code, checksum, fragments)
    if generated is None:
        return True
    return item_of(code, dict(enumerate(generated[: thresholds.m]))) is None
