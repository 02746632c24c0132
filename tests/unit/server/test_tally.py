"""Counters carry their help texts, and figures are made from them."""

from __future__ import annotations

from dataclasses import dataclass

from bftfs.query_update.admission import IncompleteTally
from bftfs.server.tally import Figure, counter, figure, figures
from bftfs.server.worker import HealingTally


@dataclass(slots=True)
class Tally:
    done: int = counter("{what} done.")
    volume: int = counter("Bytes.", name="bytes", default=3)
    began_us: int = 0  # no figure

    @figure("Half of it.", name="share")
    def half(self) -> float:
        return self.done / 2


def test_figures_are_named_and_explained() -> None:
    assert list(figures(Tally(done=4), "bftfs_", what="Blocks")) == [
        Figure("bftfs_done", "Blocks done.", 4.0),
        Figure("bftfs_bytes", "Bytes.", 3.0),
        Figure("bftfs_share", "Half of it.", 2.0),
    ]


def test_a_figure_is_a_property_like_others() -> None:
    assert Tally(done=4).half == 2


def test_the_names_of_metrics_stay() -> None:
    healing = [each.name for each in figures(HealingTally(), "bftfs_heal_objects_", what="objects")]
    assert healing == [
        f"bftfs_heal_objects_{name}"
        for name in ("passes", "progress", "compared", "rebuilt", "bytes", "lacking", "failed")
    ]
    incomplete = [each.name for each in figures(IncompleteTally(), "bftfs_")]
    assert incomplete == [
        "bftfs_settled_objects",
        "bftfs_repaired_objects",
        "bftfs_repairs_failed",
        "bftfs_repair_demands",
    ]
