"""Line charts as SVG, written by hand: text that a diff can show, and no library to install."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 40, 84
_TICKS = 5
_POINTS = 10  # of a line, up to which each of them is marked
# Told apart by those who do not see all colours, too: each line has its own marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")
_MARKS = ("●", "■", "▲", "◆", "✚")


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the same axis; `levels` are figures that do not depend on it."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Mapping[float, float]]
    levels: Mapping[str, float]
    logarithmic: bool = False  # the x axis


def svg(charts: Sequence[Chart]) -> str:
    """One picture of all charts, side by side."""
    width = _WIDTH * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}"'
        f' viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for at, chart in enumerate(charts):
        parts.append(f'<g transform="translate({at * _WIDTH} 0)">')
        parts += _Drawing(chart).parts()
        parts.append("</g>")
    return "\n".join((*parts, "</svg>", ""))


class _Drawing:
    """One chart."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._xs = sorted({x for line in chart.lines.values() for x in line}) or [0.0]
        values = [y for line in chart.lines.values() for y in line.values()]
        self._most = _ceiling(max([*values, *chart.levels.values()], default=1.0))

    def parts(self) -> list[str]:
        chart = self._chart
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = [
            _text(_WIDTH / 2, 20, chart.title, "middle", ' font-size="13"'),
            _text((_LEFT + right) / 2, bottom + 34, chart.x, "middle"),
            _text(_LEFT, _TOP - 6, chart.y, "middle"),
        ]
        for step in range(_TICKS + 1):
            value = self._most * step / _TICKS
            y = self._y(value)
            parts.append(_line(_LEFT, y, right, y, "#dddddd"))
            parts.append(_text(_LEFT - 6, y + 4, f"{value:,.4g}", "end"))
        parts += [_text(self._x(x), bottom + 16, f"{x:.4g}", "middle") for x in self._labelled()]
        parts.append(_line(_LEFT, bottom, right, bottom, "black"))
        names = [*chart.lines, *chart.levels]
        for number, name in enumerate(names):
            colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
            if name in chart.lines:
                parts += self._curve(chart.lines[name], colour, mark)
            else:
                y = self._y(chart.levels[name])
                parts.append(_line(_LEFT, y, right, y, colour, ' stroke-dasharray="6 4"'))
            column, row = number % 2, number // 2
            x, y = _LEFT + column * (right - _LEFT) / 2, bottom + 50 + 14 * row
            symbol = mark if name in chart.lines else "╌"
            parts.append(_text(x, y, f"{symbol} {name}", "start", f' fill="{colour}"'))
        return parts

    def _labelled(self) -> Sequence[float]:
        """Where the x axis has figures: at all values, or at a few places if there are many."""
        if len(self._xs) <= _POINTS:
            return self._xs
        low, high = self._xs[0], self._xs[-1]
        return [low + (high - low) * step / _TICKS for step in range(_TICKS + 1)]

    def _curve(self, line: Mapping[float, float], colour: str, mark: str) -> list[str]:
        points = [(self._x(x), self._y(y)) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        fill = f' fill="{colour}"'
        return [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            *(_text(x, y + 4, mark, "middle", fill) for x, y in points if len(points) <= _POINTS),
        ]

    def _x(self, x: float) -> float:
        scale = math.log if self._chart.logarithmic else float
        low, high = scale(self._xs[0]), scale(self._xs[-1])
        share = (scale(x) - low) / (high - low) if high > low else 0.5
        margin = 20
        return _LEFT + margin + share * (_WIDTH - _LEFT - _RIGHT - 2 * margin)

    def _y(self, y: float) -> float:
        return _HEIGHT - _BOTTOM - y / self._most * (_HEIGHT - _TOP - _BOTTOM)


def _ceiling(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    unit: float = 10.0 ** math.floor(math.log10(value))
    return next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= value)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'
    )
