"""Nodes that stand at one version must hold the same, a quorum at the last one, and healed ones."""

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
from bftfs.simulation.checkers.disks import check_convergence, check_redundancy, complete_at
from bftfs.simulation.deployment import Sizes, client_named
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


# --- what a node that has healed has to have ------------------------------------------------------

HEALED = NodeId(0)
SIZES = Sizes.smallest(t=1, b=1)


def healed(own: int, *, compared_at: int, others_now: int) -> list[str]:
    """Findings against a node at one version, beside others that have gone on since it healed."""
    others = range(1, SIZES.n)
    complete = complete_at(
        [disk(at(compared_at), b"value") for _ in others],
        objects=SIZES.query_update,
        blocks=SIZES.read_write,
    )
    disks = {NodeId(node): disk(at(others_now), b"value") for node in others}
    disks[HEALED] = disk(at(own), b"value")
    return check_redundancy(HEALED, disks, complete, blocks=SIZES.read_write)


def test_a_healed_node_has_what_others_had_when_it_compared_itself() -> None:
    """Byzantine nodes go on to leave things behind, and others to repair these."""
    assert healed(2, compared_at=2, others_now=3) == []


def test_a_healed_node_that_lacks_what_others_had_is_found() -> None:
    (finding,) = healed(1, compared_at=2, others_now=3)
    assert "stands before version 2" in finding


def test_what_only_some_of_the_others_had_is_not_complete() -> None:
    some = [disk(at(2), b"new")] * (SIZES.query_update.q - 1) + [disk(at(1), b"old")]
    complete = complete_at(some, objects=SIZES.query_update, blocks=SIZES.read_write)
    assert not complete.objects
