"""`bftfs heal` and `bftfs scrub`: how long somebody waits who has said start."""

from __future__ import annotations

from typing import Literal

import pytest

from bftfs.cli import upkeep
from bftfs.cli.upkeep import Report
from bftfs.envelope import WorkStatus


def standing(state: Literal["running", "paused", "idle"], passes: int) -> WorkStatus:
    return WorkStatus(
        work="scrub",
        state=state,
        progress=1.0,
        bytes_per_second=0.0,
        limit_bytes_per_second=1,
        remaining_s=0.0,
        ended_s=None,
        figures={"passes": passes},
    )


def watched(
    monkeypatch: pytest.MonkeyPatch, *reports: Report, since: Report | None
) -> tuple[Report, int]:
    """What is told in the end, and how many of the reports were asked for."""
    left = list(reports)
    monkeypatch.setattr(upkeep.time, "sleep", lambda _: None)
    told = upkeep._watch(lambda _: dict(left.pop(0)), "scrub", quiet=True, since=since)
    return told, len(reports) - len(left)


def test_who_has_yet_to_begin_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has just come up takes a moment to begin what it was told to."""
    idle, running, done = standing("idle", 0), standing("running", 0), standing("idle", 1)
    told = watched(
        monkeypatch, {3: idle}, {3: running}, {3: done}, {3: done}, since={3: standing("idle", 0)}
    )
    assert told == ({3: done}, 3)


def test_nobody_waits_for_what_is_paused_or_away(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = standing("paused", 0)
    report: Report = {2: paused, 3: "does not run"}
    assert watched(monkeypatch, report, since=report) == (report, 1)


def test_who_only_looks_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, running = standing("idle", 0), standing("running", 0)
    assert watched(monkeypatch, {3: running}, {3: idle}, since=None) == ({3: idle}, 2)
