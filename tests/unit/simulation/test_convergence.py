"""Nodes that stand at one version must hold the same, and a quorum at the last one."""

from __future__ import annotations

from bftfs.identifiers import NodeId, ObjectId, ObjectKind
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    history_of,
    logical_timestamp,
)
from bftfs.query_update.replica import INITIAL_ROW, ObjectRow
from bftfs.simulation.checkers.disks import check_convergence
from bftfs.simulation.deployment import client_named
from bftfs.storage import MemoryStorage, Table, Write
from bftfs.wire.codec import encode

OBJECT = ObjectId(bytes((ObjectKind.COUNTER,)) + bytes(15))


def at(time: int) -> LogicalTimestamp:
    return logical_timestamp(
        time_us=time, barrier=False, client=client_named("a client"), digest=bytes(32)
    )


def disk(head: LogicalTimestamp, value: bytes, *, number: int = 1) -> MemoryStorage:
    history = history_of((Candidate(head, ZERO),), initial=True)
    fields = {name: getattr(INITIAL_ROW, name) for name in ObjectRow.__struct_fields__}
    row = ObjectRow(**fields | {"history": history})
    store = MemoryStorage()
    store.apply(
        (
            Write(Table.OBJECT, OBJECT, encode(row)),
            Write(Table.STATE, OBJECT + b"key", number.to_bytes(8, "big") + value),
        )
    )
    return store


def test_nodes_that_agree_or_lag_behind() -> None:
    disks = {
        NodeId(0): disk(at(2), b"new"),
        NodeId(1): disk(at(2), b"new", number=7),
        NodeId(2): disk(at(1), b"old"),
    }
    assert check_convergence(disks, settled={OBJECT: at(2)}, needed=2) == []


def test_different_contents_at_one_version() -> None:
    disks = {NodeId(0): disk(at(2), b"this"), NodeId(1): disk(at(2), b"that")}
    (finding,) = check_convergence(disks, settled={}, needed=2)
    assert "with different contents" in finding


def test_too_few_at_the_last_version() -> None:
    disks = {NodeId(0): disk(at(2), b"new"), NodeId(1): disk(at(1), b"old")}
    (finding,) = check_convergence(disks, settled={OBJECT: at(2)}, needed=2)
    assert "only 1 nodes stand at the last version" in finding
