"""What correct nodes accept beyond a bound is found."""

from __future__ import annotations

from bftfs import limits
from bftfs.identifiers import ClientId, NodeId, ObjectId, ObjectKind, block_id
from bftfs.query_update.history import ZERO, Candidate, logical_timestamp
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.simulation.checkers.bounds import BoundsRecord
from bftfs.simulation.checkers.candidates import Acceptance
from bftfs.simulation.deployment import client_named
from bftfs.storage import Table, Write

NODE = NodeId(0)
OBJECT = ObjectId(bytes((ObjectKind.COUNTER,)) + bytes(15))
NOW_US = 10**15
CLIENT = client_named("a client")


def barrier(number: int, *, client: ClientId = CLIENT, ahead_us: int = 0) -> Candidate:
    return Candidate(
        logical_timestamp(
            time_us=NOW_US + ahead_us,
            barrier=True,
            client=client,
            digest=number.to_bytes(32, "big"),
        ),
        ZERO,
    )


def accept(
    record: BoundsRecord, *candidates: Candidate, history: int = 1, now_us: int = NOW_US
) -> None:
    record.accepted(
        NODE,
        now_us,
        [Acceptance(OBJECT, candidate, (candidate,) * history) for candidate in candidates],
    )


def test_times_up_to_the_bound_are_fine_and_no_others() -> None:
    record = BoundsRecord(repairable=3)
    accept(record, barrier(0, ahead_us=limits.CLOCK_SKEW_US))
    assert record.findings == []
    record = BoundsRecord(repairable=3)
    accept(record, barrier(1, ahead_us=limits.CLOCK_SKEW_US + 1))
    assert "ahead of its clock" in record.findings[0]


def test_times_may_follow_what_a_correct_node_has_accepted() -> None:
    record = BoundsRecord(repairable=3)
    next_us = limits.CLOCK_SKEW_US + limits.STEPS_AHEAD_US + 1
    accept(record, barrier(0, ahead_us=limits.CLOCK_SKEW_US))
    accept(record, barrier(1, ahead_us=next_us))
    assert record.findings == []
    accept(record, barrier(2, ahead_us=next_us + limits.STEPS_AHEAD_US + 2))
    assert "ahead of its clock" in record.findings[0]


def test_versions_of_blocks_are_not_of_the_future() -> None:
    for ahead_us, sound in ((limits.CLOCK_SKEW_US, True), (limits.CLOCK_SKEW_US + 1, False)):
        record = BoundsRecord(repairable=3)
        record.hosted(NODE, NOW_US, written(ahead_us))
        assert (record.findings == []) is sound


def test_versions_of_blocks_may_be_brought_from_other_nodes_and_follow_their_file() -> None:
    record = BoundsRecord(repairable=3)
    faster_us = limits.CLOCK_SKEW_US
    record.hosted(NODE, NOW_US + faster_us, written(2 * faster_us))
    record.hosted(NodeId(1), NOW_US, written(2 * faster_us))
    accept(record, barrier(0, ahead_us=2 * faster_us), now_us=NOW_US + faster_us)
    record.hosted(NodeId(1), NOW_US, written(2 * faster_us + limits.STEPS_AHEAD_US))
    assert record.findings == []
    record.hosted(NodeId(1), NOW_US, written(2 * faster_us + limits.STEPS_AHEAD_US + 1))
    assert "ahead of its clock" in record.findings[0]


def written(ahead_us: int) -> list[Write]:
    timestamp = BlockTimestamp(NOW_US + ahead_us, CLIENT, bytes(32))  # type: ignore[arg-type]
    key = version_key(block_id(OBJECT, incarnation=0, number=0), timestamp)
    return [Write(Table.BLOCK, key, bytes((VERIFIED,)))]


def test_repairs_beyond_a_clients_allowance() -> None:
    record = BoundsRecord(repairable=3)
    burst = [barrier(number) for number in range(limits.REPAIRS_BURST)]
    accept(record, *burst)
    others = [barrier(number, client=client_named("another")) for number in range(50)]
    accept(record, *others)
    later = [barrier(1_000 + number) for number in range(limits.REPAIRS_PER_SECOND)]
    accept(record, *later, now_us=NOW_US + limits.SECOND_US)
    assert record.findings == []
    accept(record, *(barrier(9_000 + number) for number in range(5)), now_us=NOW_US)
    assert "repairs too many of one client" in record.findings[0]


def test_one_clients_share_of_a_long_history() -> None:
    record = BoundsRecord(repairable=3)
    accept(record, barrier(0), history=limits.HISTORY_CANDIDATES)
    assert record.findings == []
    accept(record, barrier(1), history=limits.HISTORY_CANDIDATES + 1)
    assert "candidates of one client" in record.findings[0]


def test_what_others_finish_counts_for_nobodys_share() -> None:
    copy = Candidate(
        logical_timestamp(time_us=NOW_US, barrier=False, client=CLIENT, digest=bytes(32)),
        ZERO,
        copy=True,
    )
    for byzantine, elsewhere in ((0, 3), (1, 2)):
        record = BoundsRecord(repairable=3, byzantine=byzantine)
        for vouching in (elsewhere, elsewhere - 1):
            assert record.findings == []
            long = (copy,) * (limits.HISTORY_CANDIDATES + 1)
            record.accepted(NODE, NOW_US, [Acceptance(OBJECT, copy, long, vouching)])
        assert "candidates of one client" in record.findings[0]


def test_more_requests_wait_than_there_are_places() -> None:
    record = BoundsRecord(repairable=3)
    most_of_one = limits.PARKED_BYTES // 2
    sure = {ClientId(bytes([number]) * 16): limits.PARKED_BYTES_SURE for number in range(16)}
    record.parked(NODE, {CLIENT: most_of_one, **sure})
    assert record.findings == []
    record.parked(NODE, {CLIENT: most_of_one + 1})
    assert "of one principal" in record.findings[0]
    record.parked(NODE, dict.fromkeys(sure, most_of_one))
    assert len(record.findings) == 2
