"""What `.history` lists: all moments of change, or that it does not list all."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.filesystem import file_history
from bftfs.filesystem.time_names import format_time_name
from bftfs.simulation.deployment import CREDENTIALS
from mount import kernel_numbers
from mount.kernel_numbers import Entrance
from tests.unit.restoration.conftest import ROOT


def listed(stage: Any) -> list[str]:
    entrance = Entrance(stage.view().history)
    entries = stage.honest.run(entrance.open_directory(ROOT, CREDENTIALS))
    return [entry.name.decode() for entry in entries]


def changed(stage: Any) -> list[int]:
    moments = stage.honest.run(stage.view().history.change_times(ROOT, CREDENTIALS))
    times: list[int] = moments.times
    return times


def test_few_moments_are_all_listed(stage: Any) -> None:
    assert listed(stage) == sorted(map(format_time_name, changed(stage)))


def test_that_a_file_was_read_is_no_change(stage: Any) -> None:
    before = changed(stage)
    stage.honest.touch("a")
    assert changed(stage) == before


def test_of_many_it_says_since_when_all_are_listed(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_numbers, "TIMES_LISTED", 3)
    latest = changed(stage)[:3]
    marker = f"before-{format_time_name(latest[-1])}"
    assert listed(stage) == [*sorted(map(format_time_name, latest)), marker]
    entrance = Entrance(stage.view().history)
    found = stage.honest.run(entrance.lookup(ROOT, marker.encode(), CREDENTIALS))
    assert found.identifier == kernel_numbers.key_of(ROOT, latest[-1] - 1)


@pytest.mark.parametrize("bound", ["VERSIONS_SEARCHED", "OBJECTS_SEARCHED"])
def test_a_search_that_was_cut_short_is_said_to_be(
    stage: Any, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(file_history, bound, 2)
    assert sum(name.startswith("before-") for name in listed(stage)) == 1
