"""What one client may leave at a node, by life of the node: no less is allowed, and no more."""

from __future__ import annotations

from itertools import count

from bftfs import limits
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId
from bftfs.query_update.history import ZERO, Candidate
from bftfs.read_write.messages import Notice
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.version_row import unverified
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.checkers.bounds import IncompleteRecord, PossibleVersionsRecord
from bftfs.simulation.checkers.candidates import Acceptance, CandidateRecord
from bftfs.simulation.world import START_US
from bftfs.storage import Table, Write
from tests.unit.query_update.building import at

NODE = NodeId(0)
BLOCK = BlockId(b"\4" + bytes(31))
CLIENT = ClientId(b"c" * 16)


class Updating:
    """A client whose updates one node accepts and nobody else."""

    def __init__(self, most: int) -> None:
        self._candidates = CandidateRecord()
        self.record = IncompleteRecord(self._candidates, most, believed=2)
        self._numbers = count(1)

    def update(self, width: int, *, lives: int) -> None:
        """An update of so many new objects, in the last of so many lives of the node."""
        number = next(self._numbers)
        names = tuple(ObjectId(b"\3%15d" % (100 * number + each)) for each in range(width))
        candidate = Candidate(at(number), ZERO, names if width > 1 else ())
        for name in names:
            self._candidates.accepted[name] = {candidate: {NODE}}
        self.record.accepted(
            NODE, [Acceptance(name, candidate, (candidate,)) for name in names], lives=lives
        )


def test_the_last_update_let_in_may_be_wide() -> None:
    updating = Updating(most=1)
    updating.update(2, lives=1)
    updating.update(2, lives=2)  # the server has forgotten the first
    assert not updating.record.findings
    updating.update(2, lives=2)
    assert updating.record.findings


def test_a_client_has_no_more_than_the_limit_in_one_life() -> None:
    updating = Updating(most=2)
    updating.update(1, lives=1)
    updating.update(3, lives=1)
    assert not updating.record.findings
    updating.update(1, lives=1)
    assert updating.record.findings


def possible(record: PossibleVersionsRecord, ms: int, *, lives: int) -> None:
    """A version that nobody else hosts is taken so late."""
    clock_us = START_US + 1_000 * ms
    timestamp = BlockTimestamp(clock_us, CLIENT, bytes(32))
    write = Write(Table.BLOCK, version_key(BLOCK, timestamp), unverified(bytes(32)))
    record.committed(NODE, clock_us, [write], lives=lives)


def test_beyond_the_limit_one_version_is_taken_in_a_while() -> None:
    record = PossibleVersionsRecord(VerificationSettings(client=4, block=1), believed=2)
    while_ms = limits.VERIFY_EXCUSED_US // 1_000
    possible(record, 0, lives=1)
    possible(record, 100, lives=1)
    possible(record, 100 + while_ms, lives=1)
    assert not record.findings
    possible(record, 200 + while_ms, lives=2)  # the node has forgotten all that
    possible(record, 300 + while_ms, lives=2)
    assert not record.findings
    possible(record, 400 + while_ms, lives=2)
    assert record.findings


def test_versions_that_were_too_old_while_the_clock_was_ahead_are_possible_no_more() -> None:
    record = PossibleVersionsRecord(VerificationSettings(client=4, block=1), believed=2)
    for ms in (0, 10):
        possible(record, ms, lives=1)
    ahead_us = START_US + limits.ABANDONED_US + limits.SECOND_US
    record.committed(NODE, ahead_us, [], lives=1)
    possible(record, 20, lives=1)
    assert not record.findings
    for ms in (30, 40, 50):
        possible(record, ms, lives=2)  # it has forgotten how far its clock was
    assert record.findings


def test_what_a_correct_node_says_it_has_verified_is_settled_before_it_has_stored_that() -> None:
    record = PossibleVersionsRecord(VerificationSettings(client=4, block=1), believed=2)
    for ms in (0, 10):
        possible(record, ms, lives=1)
    record.noticed(Notice(BLOCK, BlockTimestamp(START_US + 15_000, CLIENT, bytes(32)), ()))
    possible(record, 20, lives=1)
    assert not record.findings


def test_a_notice_settles_nothing_that_is_later() -> None:
    record = PossibleVersionsRecord(VerificationSettings(client=4, block=1), believed=2)
    record.noticed(Notice(BLOCK, BlockTimestamp(START_US - 1, CLIENT, bytes(32)), ()))
    for ms in (0, 10, 20):
        possible(record, ms, lives=1)
    assert record.findings
