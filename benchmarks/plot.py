"""Charts of results, as SVG: text that a diff can show. Drawn by matplotlib (extra `plots`).

`benchmarks.charts` says what is to be seen; this module says how it looks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.charts import Bars, Chart, Lines

_CHART_INCHES = (5.0, 3.4)
_MARKED = 10  # points of a line, up to which each of them is marked
# Told apart by those who do not see all colours, too: each line has its own marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")
_MARKS = "os^DP"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bftfs",  # the same picture every time
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def svg(charts: Sequence[Chart]) -> str:
    """One picture of all charts, side by side."""
    width, height = _CHART_INCHES
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width * len(charts), height), layout="constrained")
        row = figure.subplots(1, len(charts), squeeze=False)[0]
        for axes, chart in zip(row, charts, strict=True):
            axes.set_title(chart.title)
            axes.set_ylabel(chart.y)
            if isinstance(chart, Lines):
                _draw_lines(axes, chart)
            else:
                _draw_bars(axes, chart)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return picture.getvalue()


def _draw_lines(axes: Axes, chart: Lines) -> None:
    axes.set_xlabel(chart.x)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    if chart.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    places = sorted({x for line in chart.lines.values() for x in line})
    if len(places) <= _MARKED:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    styles = cycle(zip(_COLOURS, _MARKS, strict=True))
    for (name, line), (colour, mark) in zip(chart.lines.items(), styles, strict=False):
        xs, ys = zip(*sorted(line.items()), strict=True)
        axes.plot(xs, ys, color=colour, marker=mark if len(xs) <= _MARKED else "", label=name)
    for (name, level), (colour, _) in zip(chart.levels.items(), styles, strict=False):
        axes.axhline(level, color=colour, linestyle="--", label=name)
    axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, chart: Bars) -> None:
    names = list(dict.fromkeys(name for side in chart.sides.values() for name in side))
    width = 0.8 / len(chart.sides)
    for number, (label, side) in enumerate(chart.sides.items()):
        places = [at + (number + 0.5) * width - 0.4 for at in range(len(names))]
        heights = [side.get(name, 0.0) for name in names]
        axes.bar(places, heights, width, color=_COLOURS[number % len(_COLOURS)], label=label)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.yaxis.set_minor_locator(NullLocator())
