"""Who has made a file dates its blocks by a clock, and still loses nothing that is closed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bftfs.filesystem.contents import Contents
from bftfs.simulation.configuration import ClientPlan, Configuration
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt, ignore_bases

MIX = FileMix(names=1, contents=0.6, directories=0.0, private=0.0, made=0.3)
AHEAD_US = 2_000_000  # of the others' clocks


def contended() -> Iterator[Configuration]:
    """A file is made, found, and written by others whose clocks are ahead, before it is closed."""
    for seed in range(8):
        yield replace(
            attacked(seed, kind="files", node="block-forger", files=MIX, operations=100),
            clients=(
                ClientPlan(width=2),
                ClientPlan(width=2, skew_us=AHEAD_US),
                ClientPlan(width=2, skew_us=-AHEAD_US),
            ),
        )


def test_what_is_closed_is_read_whoever_writes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    written_again = []
    overtaken = Contents.overtaken

    def counted(contents: Contents) -> list[int]:
        found = overtaken(contents)
        uncovered = contents.uncovered
        written_again.extend(number for number in found if uncovered[number].pushed.is_unasked)
        return found

    monkeypatch.setattr(Contents, "overtaken", counted)
    for configuration in contended():
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
    assert len(written_again) > 3


def test_not_looking_who_has_been_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Must fail."""
    monkeypatch.setattr(Contents, "overtaken", lambda *_: [])
    ignore_bases(monkeypatch)
    found = hunt(contended(), lambda finding: finding.startswith("file "))
    assert found is not None
