"""bftfs.ui.health: samples of the nodes' health, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bftfs.errors import UsageError
from bftfs.ui.health import EVERY_S, SAMPLES_KEPT, HealthRecord, Sample, periods, picture
from tests.unit.ui import reports
from tests.unit.ui.conftest import Browser
from tests.unit.ui.test_pages import words

STEP_US = round(EVERY_S * 1e6)


class Past:
    """A cluster whose health changes from sample to sample."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000
        self.report: Callable[[], dict[str, Any]] = reports.status
        self.record = HealthRecord(self._report, lambda: self.now_us)

    def _report(self) -> dict[str, Any]:
        return self.report()

    def go_on(self, *, down: tuple[int, ...] = (), degraded: tuple[int, ...] = ()) -> None:
        self.report = partial(reports.status, down=down, degraded=degraded)
        self.record.take()
        self.now_us += STEP_US

    def fail(self) -> None:
        def failing() -> dict[str, Any]:
            raise UsageError("cluster.toml\x1b is gone")

        self.report = failing
        self.record.take()
        self.now_us += STEP_US


def test_a_sample_has_states_and_figures() -> None:
    past = Past()
    past.go_on(down=(2,), degraded=(4,))
    (sample,) = past.record.samples
    assert sample.states == ("ok", "ok", "down", "ok", "degraded", "ok")
    assert sample.counts == "4 ok, node 4 degraded, node 2 down"
    assert (sample.more_may_fail, sample.lacking, sample.unverified) == (0, 6, 7)


def test_samples_are_joined_while_nothing_changes() -> None:
    past = Past()
    past.go_on()
    past.go_on()
    past.go_on(down=(2,))
    past.fail()
    past.go_on()
    found = periods(past.record.samples)
    assert [each.last.counts for each in found] == [
        "6 ok",
        "5 ok, node 2 down",
        "not known",
        "6 ok",
    ]
    assert found[0].until_us - found[0].since_us == STEP_US
    assert found[2].last.failure == r"cluster.toml\x1b is gone"


def test_the_picture_has_a_bar_per_node_and_state() -> None:
    past = Past()
    past.go_on()
    past.go_on(down=(2,))
    past.fail()
    past.go_on(degraded=(2,))
    drawn = picture(past.record.samples)
    assert drawn is not None
    assert drawn.until_us - drawn.since_us == 4 * STEP_US
    quarter = (drawn.width - drawn.left) / 4
    of_node_2 = [bar for bar in drawn.bars if 2 * drawn.row <= bar.y < 3 * drawn.row]
    assert [(bar.x, bar.width, bar.state) for bar in of_node_2] == [
        (drawn.left, quarter, "ok"),
        (drawn.left + quarter, quarter, "down"),
        (drawn.left + 3 * quarter, quarter, "degraded"),
    ]
    assert len({bar.height for bar in of_node_2}) == 3, "colours are not needed"
    whole = [bar for bar in drawn.bars if bar.y < drawn.row]
    assert [bar.width for bar in whole] == [2 * quarter, quarter]


def test_without_samples_there_is_no_picture() -> None:
    assert picture([]) is None
    assert picture([Sample(1, failure="x")]) is None


def test_samples_are_bounded() -> None:
    past = Past()
    for _ in range(SAMPLES_KEPT + 5):
        past.go_on()
    assert len(past.record.samples) == SAMPLES_KEPT


def test_the_page_shows_the_latest_and_the_past(browser: Browser) -> None:
    assert "Not known yet" in words(browser.page("health"))
    browser.record.take()
    page = browser.page("health")
    said = words(page)
    assert "0 down" in said
    assert "0 ✓ ok on this machine" in said
    assert page.count('<rect class="ok"') == 6
    assert "6 ok 1 6 7 25.0%" in said
