"""`bftfs heal` and `bftfs scrub`: how long somebody waits who has said start."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import pytest

from bftfs.cli import upkeep
from bftfs.cli.upkeep import Report
from bftfs.envelope import REPLIES, HealthFigure, HealthReply, UpkeepReply, WorkStatus
from bftfs.errors import MalformedMessage
from bftfs.wire.codec import encode


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


SPITEFUL = "[red]all is well[/red] [/no such tag] :smile:"


def test_a_nodes_words_are_printed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    liar = msgspec.structs.replace(standing("idle", 1), figures={SPITEFUL: 1})
    assert upkeep._tell({1: liar, 2: SPITEFUL}, "", as_json=False) == 1
    printed = capsys.readouterr()
    assert SPITEFUL in printed.out
    assert SPITEFUL in printed.err
    upkeep._watch(lambda _: {2: SPITEFUL}, "scrub", quiet=False, since=None)
    assert SPITEFUL in capsys.readouterr().err


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300])
def test_a_nodes_figures_are_finite(number: float) -> None:
    """Otherwise the sum of what nodes say is none, and the command ends without an answer."""
    health = HealthReply(1, 1, True, (), 1, 1, 1, 1, 1, 1, (HealthFigure("x", number),))
    replies: list[HealthReply | UpkeepReply] = [health]
    for field in ("progress", "bytes_per_second", "remaining_s", "ended_s"):
        status = msgspec.structs.replace(standing("idle", 1), **{field: number})
        replies.append(UpkeepReply(status=status))
    for reply in replies:
        with pytest.raises(MalformedMessage):
            REPLIES.decode(encode(reply))
