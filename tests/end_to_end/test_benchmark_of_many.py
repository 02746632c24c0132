"""The benchmark of many files runs on nodes and a mount of its own, for some seconds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import result
from benchmarks.commands import main
from benchmarks.errors import WorkloadError
from benchmarks.scenarios import many
from tests.end_to_end.watchdog import Watchdog, mounts_below

PHASES = ["fill", "churn", "churn, a node killed", "catch up", "list", "rebuild", "remove"]


@pytest.mark.timeout(180)
def test_many(mounting: None, outside: Path, watchdog: Watchdog) -> None:
    written = outside / "many.json"
    words = ["--minutes", "0.1", "--size", "1000", "--below", outside, "--json", written]
    with watchdog.guard(160, "many"):
        done = CliRunner().invoke(main, ["many", *map(str, words)])
    assert done.exit_code == 0, done.output
    found = result.read(written)
    assert found.failures == ()
    assert [each.phase for each in found.samples] == PHASES
    assert all(float(each.details["mount_mib"]) > 0 for each in found.samples)
    rebuilt = next(each.details for each in found.samples if each.phase == "rebuild")
    assert float(rebuilt["objects_rebuilt"]) >= 1
    assert "ten million files" in done.output.replace("\n", " ")
    assert mounts_below(outside) == []
    assert list(outside.iterdir()) == [written]


@pytest.fixture
def files(tmp_path: Path) -> many._Files:
    files = many._Files(tmp_path, 100)
    for _ in range(3):
        files.make()
    return files


def test_must_fail_where_a_file_does_not_hold_what_was_written(files: many._Files) -> None:
    files.list_all()
    for number in range(3):
        path = files.path(number)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    files.list_all()
    with pytest.raises(WorkloadError, match="does not hold what was written"):
        files.read(random.Random(0))


@pytest.mark.parametrize("change", ["removed", "added", "cut"])
def test_must_fail_where_the_listing_is_not_as_it_should_be(
    files: many._Files, change: str
) -> None:
    if change == "removed":
        files.path(1).unlink()
    elif change == "added":
        files.path(7).write_bytes(bytes(100))
    else:
        files.path(2).write_bytes(b"")
    with pytest.raises(WorkloadError):
        files.list_all()
