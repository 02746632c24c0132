"""When faults have stopped and a client has gone over everything, correct nodes agree.

[Q/U §4.3.8] all benign servers have one chain of each object; those that stand at the same version
must therefore have the same contents, key by key, however they came there: by executing, by object
sync, by moving back and forth between candidates. And what a client alone has established last is
what a quorum of them stands at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.replica import Replica
from bftfs.storage import StorageView, Table

_NUMBER_BYTES = 8
_BEYOND = b"\xff" * 400


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
        heads: dict[NodeId, LogicalTimestamp] = {
            node: Replica(disk, identifier).head for node, disk in disks.items()
        }
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
