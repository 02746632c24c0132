"""The values that the charts of a result show. `benchmarks.plot` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.measurement import Measure
from benchmarks.result import Result, summary


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over the same axis; `levels` are figures that do not depend on it."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Mapping[float, float]]
    levels: Mapping[str, float]
    logarithmic: bool = False  # the x axis


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars on a logarithmic axis: for each name on the x axis, one of each side."""

    title: str
    y: str
    sides: Mapping[str, Mapping[str, float]]


Chart: TypeAlias = Lines | Bars

TITLES = {"files": "Small files", "andrew": "Andrew benchmark"}


def phases(shown: Result) -> list[Bars]:
    """For each variant: how long each phase, or one operation of it, takes on each target."""
    kinds = [target.filesystem.kind.removeprefix("fuse.") for target in shown.targets]
    charts: dict[str, dict[str, dict[str, float]]] = {}
    rows = summary(shown.samples, (target.name for target in shown.targets))
    units = {row.measure for row in rows}
    per_phase = units == {Measure.SECONDS}
    for row in rows:
        if row.measure is Measure.MEGABYTES_PER_SECOND:
            continue
        sides = charts.setdefault(row.variant, {kind: {} for kind in kinds})
        for kind, spread in zip(kinds, row.spreads, strict=True):
            if spread is not None:
                sides[kind][row.phase] = spread.median if per_phase else 1 / spread.median
    what = f"{TITLES[shown.scenario]}: time per {'phase' if per_phase else 'operation'}"
    return [
        Bars(f"{what}, {variant}" if variant else what, "logarithmic", sides)
        for variant, sides in charts.items()
    ]
