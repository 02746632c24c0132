from __future__ import annotations

import pytest

from bftfs.read_write.classification import CandidateClass, classify
from bftfs.thresholds import ReadWriteThresholds
from tests.unit.read_write.harness import DEFAULT

COMPLETE = CandidateClass.COMPLETE
REPAIRABLE = CandidateClass.REPAIRABLE
INCOMPLETE = CandidateClass.INCOMPLETE
UNDECIDED = CandidateClass.UNDECIDED


@pytest.mark.parametrize(
    ("heard", "by_hosting"),
    [
        (4, [UNDECIDED] * 5),
        (5, [INCOMPLETE] * 3 + [REPAIRABLE] * 2 + [COMPLETE]),
        (6, [INCOMPLETE] * 3 + [REPAIRABLE] * 2 + [COMPLETE] * 2),
    ],
)
def test_the_default_cluster(heard: int, by_hosting: list[CandidateClass]) -> None:
    assert [
        classify(DEFAULT, hosting=hosting, heard=heard) for hosting in range(heard + 1)
    ] == by_hosting


def test_the_smallest_cluster() -> None:
    sizes = ReadWriteThresholds.smallest(t=1, b=1)
    assert [classify(sizes, hosting=hosting, heard=4) for hosting in range(5)] == [
        INCOMPLETE,
        INCOMPLETE,
        REPAIRABLE,
        REPAIRABLE,
        COMPLETE,
    ]


def test_one_node_without_faults() -> None:
    sizes = ReadWriteThresholds(N=1, t=0, b=0, QC=1, m=1)
    assert classify(sizes, hosting=0, heard=0) is UNDECIDED
    assert classify(sizes, hosting=0, heard=1) is INCOMPLETE
    assert classify(sizes, hosting=1, heard=1) is COMPLETE


def test_complete_needs_every_complete_write_to_have_shown() -> None:
    sizes = ReadWriteThresholds(N=20, t=1, b=1, QC=3, m=1)
    assert classify(sizes, hosting=4, heard=4) is UNDECIDED
    assert classify(sizes, hosting=4, heard=18) is COMPLETE
