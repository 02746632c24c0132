"""The checker of shared files finds what is lost, doubled, torn, or nobody's."""

from __future__ import annotations

import pytest

from bftfs.simulation.checkers.shared_files import RECORD_BYTES, SharedFiles, check_shared_files


def written() -> SharedFiles:
    """Two records and two lines, of which the first ones were closed, and all are there."""
    shared = SharedFiles()
    records = [shared.new_record("a")[1] for _ in range(2)]
    lines = [shared.new_line("a", size) for size in (10, 9_000)]
    shared.closed |= {records[0], lines[0]}
    shared.table, shared.log = b"".join(records), b"".join(lines)
    return shared


def test_all_is_well() -> None:
    shared = written()
    assert check_shared_files(shared) == []
    first, _ = shared.records
    shared.table, shared.log = first, shared.lines[0]  # the others were not closed
    assert check_shared_files(shared) == []
    shared.table = first + bytes(RECORD_BYTES)
    assert check_shared_files(shared) == []
    assert check_shared_files(SharedFiles()) == []


@pytest.mark.parametrize("way", ["lost", "torn", "other's"])
def test_a_record_that_was_closed_has_to_be_there(way: str) -> None:
    shared = written()
    first, second = shared.records
    shared.table = {
        "lost": bytes(RECORD_BYTES),
        "torn": first[:30] + bytes(RECORD_BYTES - 30),
        "other's": second,
    }[way] + second
    (finding,) = check_shared_files(shared)
    assert finding.startswith("shared: b'a 0 ' was closed")


def test_a_record_that_was_not_closed_is_there_as_a_whole() -> None:
    shared = written()
    assert shared.table is not None
    shared.table = shared.table[:-20]
    (finding,) = check_shared_files(shared)
    assert finding.startswith("shared: b'a 1 ' was written")


@pytest.mark.parametrize(
    ("log", "what"), [(b"{1}", "is lost"), (b"{0}{1}{0}", "2 times"), (b"{0}{1}x\n", "nobody")]
)
def test_a_line_is_there_once(log: bytes, what: str) -> None:
    shared = written()
    one, other = shared.lines
    shared.log = log.replace(b"{0}", one).replace(b"{1}", other)
    (finding,) = check_shared_files(shared)
    assert what in finding


def test_a_torn_line_is_nobodys() -> None:
    shared = written()
    one, other = shared.lines
    shared.log = other[:5_000] + one + other[5_000:]
    assert len(check_shared_files(shared)) >= 2
