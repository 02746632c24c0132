"""The checker of candidates accepts one chain, and finds what is not."""

from __future__ import annotations

from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    history_of,
    logical_timestamp,
)
from bftfs.query_update.replica import ObjectRow, Version
from bftfs.simulation.checkers.candidates import CandidateRecord, check_chain
from bftfs.storage import Table, Write
from bftfs.wire.codec import encode

ALL = {NodeId(node) for node in range(5)}
FEW = {NodeId(0), NodeId(1)}
OBJECT = ObjectId(bytes(16))


def at(time: int, *, barrier: bool = False, by: int = 0) -> LogicalTimestamp:
    return logical_timestamp(
        time_us=time, barrier=barrier, client=ClientId(bytes(16)), digest=bytes([by]) * 32
    )


def findings(accepted: dict[Candidate, set[NodeId]], *acknowledged: LogicalTimestamp) -> list[str]:
    return check_chain(accepted, established=5, acknowledged=acknowledged)


def test_a_chain_with_a_dead_branch_and_a_copy_passes() -> None:
    accepted = {
        Candidate(at(1), ZERO): ALL,
        Candidate(at(2), at(1)): FEW,
        Candidate(at(3, by=1), at(1)): FEW,
        Candidate(at(4, barrier=True), at(2)): ALL,
        Candidate(at(5), at(2), copy=True): ALL,
    }
    assert findings(accepted, at(1), at(2), at(5)) == []
    assert findings({}) == []


def test_two_established_versions_of_one_are_found() -> None:
    accepted = {
        Candidate(at(1), ZERO): ALL,
        Candidate(at(2), at(1)): ALL,
        Candidate(at(3), at(1)): ALL,
    }
    assert any("was established, and is not on the chain" in each for each in findings(accepted))


def test_an_acknowledged_update_that_was_left_behind_is_found() -> None:
    accepted = {
        Candidate(at(1), ZERO): ALL,
        Candidate(at(2), at(1)): FEW,
        Candidate(at(3), at(1)): ALL,
    }
    assert findings(accepted, at(1), at(3)) == []
    assert any("was acknowledged" in finding for finding in findings(accepted, at(2)))


def test_two_candidates_of_one_timestamp_are_found() -> None:
    accepted = {Candidate(at(2), ZERO): ALL, Candidate(at(2), at(1)): FEW}
    assert any("two candidates" in finding for finding in findings(accepted))


def test_a_chain_that_leads_nowhere_is_found() -> None:
    assert any("breaks off" in each for each in findings({Candidate(at(2), at(1)): ALL}))


def _row(*candidates: Candidate) -> bytes:
    return encode(ObjectRow(1, ZERO, ZERO, history_of(candidates, initial=True), b""))


def test_the_record_remembers_what_histories_have_pruned() -> None:
    record = CandidateRecord()
    one, two = Candidate(at(1), ZERO), Candidate(at(2), at(1))
    record.take_down(NodeId(0), [Write(Table.OBJECT, OBJECT, _row(one))])
    record.take_down(NodeId(0), [Write(Table.OBJECT, OBJECT, _row(two))])
    record.take_down(NodeId(1), [Write(Table.OBJECT, OBJECT, _row(one, two))])
    assert record.accepted[OBJECT] == {one: {0, 1}, two: {0, 1}}


def test_two_contents_of_one_version_are_found() -> None:
    def committed(value: bytes, *, gap: bool = False) -> list[Write]:
        version = Version(1, ZERO, (), False, ((b"key", value),), gap=gap)
        return [Write(Table.VERSION, OBJECT + at(1), encode(version))]

    record = CandidateRecord()
    record.take_down(NodeId(0), committed(b"one"))
    record.take_down(NodeId(1), committed(b"one"))
    record.take_down(NodeId(2), committed(b"whole state", gap=True))
    assert record.findings == []
    record.take_down(NodeId(3), committed(b"two"))
    assert any("another version" in finding for finding in record.findings)


def test_what_a_node_forgets_before_others_accept_it_establishes_nothing() -> None:
    record = CandidateRecord()
    one, two = Candidate(at(1), ZERO), Candidate(at(2), at(1))

    def accept(node: int, *candidates: Candidate) -> int:
        return len(record.take_down(NodeId(node), [Write(Table.OBJECT, OBJECT, _row(*candidates))]))

    accept(0, one, two)
    accept(1, one)
    record.forget(NodeId(0), established=2)
    accept(2, two)
    assert record.accepted[OBJECT] == {one: {0, 1}, two: {2}}  # one was established by then
    assert accept(0, one, two) == 0  # it has them again, and has accepted nothing
    assert record.accepted[OBJECT] == {one: {0, 1}, two: {0, 2}}
