"""A line of a log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bftfs.runtime.log import Log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    with path.open("ab", buffering=0) as file:
        yield Log(file.fileno())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_line_has_event_facts_level_and_time(log: Log, path: Path) -> None:
    log.configure("info", node=3)
    log.warning("something", reason="a\nb\udcff", where=Path("/x"))
    (line,) = lines(path)
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert abs(datetime.now(UTC) - at) < timedelta(hours=1)
    assert line == {
        "node": 3,
        "reason": "a\nb\udcff",
        "where": repr(Path("/x")),
        "event": "something",
        "level": "warning",
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_lower_levels_are_left_out(log: Log, path: Path, level: str) -> None:
    log.configure(level)
    log.write(logging.DEBUG, "debug")
    log.info("info")
    log.warning("warning")
    log.error("error")
    events = [line["event"] for line in lines(path)]
    assert events == ["debug", "info", "warning", "error"][-len(events) :]
    assert events[0] == level


def test_an_error_in_the_program_has_its_traceback(log: Log, path: Path) -> None:
    try:
        raise ZeroDivisionError("here")
    except ZeroDivisionError as error:
        log.error("failed", error=error)
    (line,) = lines(path)
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: here")
