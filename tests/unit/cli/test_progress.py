"""What a long command says of how far it is, and what an interrupted restore says."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from bftfs.cli.progress import Progress
from bftfs.cli.restore import unfinished


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def test_a_line_appears_after_a_second_and_goes_in_the_end(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("restored") as progress:
        progress(5, 100)
        assert terminal.getvalue() == ""
        now[0] += 2
        progress(10, 100)
        assert terminal.getvalue() == "\rrestored 10 of 100 (10%), 18 s left\033[K"
        progress(11, 100)  # at once: not worth a line
        now[0] += 1
        progress(12)
        assert terminal.getvalue().endswith("\rrestored 12\033[K")
    assert terminal.getvalue().endswith("\r\033[K")
    assert str(progress) == "restored 12"


def test_a_pipe_gets_none(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with Progress("restored") as progress:
        now[0] += 5
        progress(1, 2)
    assert pipe.getvalue() == ""


def test_an_unfinished_tree_has_a_name_of_its_own() -> None:
    assert unfinished(Path("/m/photos")) == Path("/m/.photos.undeleting")
    assert len(unfinished(Path("/m") / ("x" * 255)).name) == 255
