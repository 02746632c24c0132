"""PostMark's phases are told apart, and what it reports is not believed unseen."""

from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest

from benchmarks import postmark_program
from benchmarks.errors import WorkloadError

REPORT = """\
Done
Time:
\t4 seconds total
\t1 seconds of transactions (40 per second)

Files:
\t25 created (6 per second)
\t\tCreation alone: 10 files (2 per second)
\t\tMixed with transactions: 15 files (3 per second)
\t19 read (4 per second)
\t21 appended (5 per second)
\t25 deleted (6 per second)
\t\tDeletion alone: 2 files (0 per second)
\t\tMixed with transactions: 23 files (5 per second)
"""
PHASES = """\
printf 'pm>pm>Creating files...'
printf 'Done\\nPerforming transactions.....'
printf '.....Done\\nDeleting files...'
"""
Programs = Callable[[str], None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Makes this shell script the only `postmark` there is."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(script: str) -> None:
        program = tmp_path / "postmark"
        program.write_text(f"#!/bin/sh\n{script}")
        program.chmod(0o755)

    return write


def reported(directory: Path) -> str:
    """What the program reports after all of its phases."""
    with postmark_program.running(directory, files=10, transactions=40) as postmark:
        postmark.await_phase(postmark_program.CREATING)
        postmark.await_phase(postmark_program.TRANSACTING)
        postmark.await_phase(postmark_program.DELETING)
        return postmark.report()


def test_orders_and_report(tmp_path: Path, programs: Programs) -> None:
    programs(f"cat >orders\n{PHASES}cat <<'END'\n{REPORT}END\n")
    assert reported(tmp_path) == REPORT
    orders = (tmp_path / "orders").read_text()
    assert orders == "set number 10\nset transactions 40\nrun\nquit\n"
    postmark_program.verify(REPORT, files=10)


def test_a_complaint_is_a_failure(tmp_path: Path, programs: Programs) -> None:
    programs(f"{PHASES}echo \"Error: Cannot delete '7'\" >&2\n")
    with pytest.raises(WorkloadError, match="Cannot delete '7'"):
        reported(tmp_path)


def test_a_status_is_a_failure(tmp_path: Path, programs: Programs) -> None:
    programs(f"{PHASES}exit 3\n")
    with pytest.raises(WorkloadError, match="status 3"):
        reported(tmp_path)


def test_an_early_end_is_a_failure(tmp_path: Path, programs: Programs) -> None:
    programs("printf 'Creating files...'\n")
    with pytest.raises(WorkloadError, match="ended before 'Performing transactions'"):
        reported(tmp_path)


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        (REPORT.replace("\t25 deleted", "\t24 deleted"), "created 25 files and deleted 24"),
        (REPORT.replace("alone: 10 files", "alone: 9 files"), "created 9 files for 10"),
        (REPORT.partition("\t19 read")[0], "no counts of files"),
    ],
)
def test_false_counts_are_a_failure(report: str, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        postmark_program.verify(report, files=10)


def test_without_the_program(
    benchmark: Callable[..., click.testing.Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.scenarios.postmark.require_mounts", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = benchmark("postmark", "--faults", "0")
    assert done.exit_code == 1
    assert "apt-get install postmark" in done.output
