"""The small plots of the report's first screen and of its claims, as SVG in the page's own colours.

SVG text rather than matplotlib's pictures: it follows the page's width, its dark mode and its print style, and twenty-odd
of them weigh a few kilobytes. The classes (here, paper, null, limit, band) get their colours from the page's style sheet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from markupsafe import Markup

from analysis.present.figures import COLOURS
from analysis.stats.formatting import number

WIDTH = 300  # of the view box; the plot is as wide as its panel
LABELS = 84  # of these for the names of the rows


@dataclass(frozen=True)
class Row:
    """A row of dots: the paper's values and ours, with the interval of ours where it has one."""

    name: str
    paper: Sequence[float] = ()
    here: Sequence[float] = ()
    low: float = math.nan
    high: float = math.nan


def dot_rows(
    rows: Sequence[Row], *, alt: str, digits: int, null: float, margin: float = 0.0
) -> Markup:
    """Rows of dots on one axis: hollow diamonds are the paper's, filled dots ours.

    null: where the vertical line is; margin: half the width of the band around it. The axis holds all dots; intervals
    that are longer are cut.
    """
    values = [v for row in rows for v in (*row.paper, *row.here) if not math.isnan(v)]
    scale = _Scale([null - margin, null + margin, *values], LABELS, WIDTH - 8)
    height = 17 * len(rows) + 20
    parts = []
    if margin:
        left, right = scale(null - margin), scale(null + margin)
        parts.append(f'<rect class="band" x="{left:.1f}" y="2" width="{right - left:.1f}" height="{height - 18}"/>')  # fmt: skip
    parts.append(_vertical("null", scale(null), 2, height - 16))
    for place, row in enumerate(rows):
        y = 17 * place + 11
        parts.append(f'<text x="{LABELS - 8}" y="{y + 3.5}" text-anchor="end">{escape(row.name)}</text>')  # fmt: skip
        if not (math.isnan(row.low) or math.isnan(row.high)):
            parts.append(_horizontal(scale(row.low), scale(row.high), y))
        parts += [_diamond(scale(v), y) for v in row.paper if not math.isnan(v)]
        parts += [f'<circle class="here" cx="{scale(v):.1f}" cy="{y}" r="3.6"/>' for v in row.here if not math.isnan(v)]  # fmt: skip
    parts += scale.axis(height, digits)
    return _svg(height, parts, alt)


def interval(
    estimate: float, low: float, high: float, *, null: float, limit: float, alt: str
) -> Markup:
    """One estimate with its interval, the value under the null hypothesis and the decision threshold; "" without an estimate."""
    if math.isnan(estimate):
        return Markup("")
    marks = [v for v in (null, limit) if not math.isnan(v)]
    near = [estimate, *marks]
    room = max(max(near) - min(near), abs(estimate) * 0.02, 1e-12)
    ends = [min(max(v, min(near) - room), max(near) + room) for v in (low, high) if not math.isnan(v)]  # fmt: skip
    scale = _Scale([*near, *ends], 8, 192)
    parts = [_vertical(name, scale(v), 2, 22) for name, v in (("null", null), ("limit", limit)) if not math.isnan(v)]  # fmt: skip
    if not (math.isnan(low) or math.isnan(high)):
        parts.append(_horizontal(scale(low), scale(high), 12))
    parts.append(f'<circle class="here" cx="{scale(estimate):.1f}" cy="12" r="4"/>')
    return _svg(24, parts, alt, width=200)


def heat_maps(maps: Sequence[Sequence[tuple[str, np.ndarray]]], *, limit: float, alt: str) -> Markup:  # fmt: skip
    """Rows of square maps, each with the words above it, in colours from 0 to `limit`; the diagonal is left grey."""
    columns = max(map(len, maps))
    side = (WIDTH - 8 * (columns - 1)) / columns
    parts = []
    for line, row in enumerate(maps):
        top = line * (side + 20) + 14
        for column, (title, matrix) in enumerate(row):
            left = column * (side + 8)
            parts.append(f'<text x="{left:.1f}" y="{top - 4:.1f}">{escape(title)}</text>')
            cell = side / len(matrix)
            for (y, x), value in np.ndenumerate(matrix):
                is_shown = x != y and not math.isnan(value)
                fill = f' fill="{_colour(value / limit)}"' if is_shown else ' class="diagonal"'
                parts.append(
                    f'<rect x="{left + x * cell:.2f}" y="{top + y * cell:.2f}" width="{cell + 0.3:.2f}" height="{cell + 0.3:.2f}"{fill}/>'
                )
    return _svg(len(maps) * (side + 20), parts, alt)


def _colour(share: float) -> str:
    return matplotlib.colors.to_hex(matplotlib.colormaps[COLOURS](min(max(share, 0.0), 1.0)))


class _Scale:
    """Places on a horizontal axis from `left` to `right` that holds all `values`; what lies outside is put at its ends."""

    def __init__(self, values: Sequence[float], left: float, right: float) -> None:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high, self.left, self.right = low - room, high + room, left, right

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    def axis(self, height: float, digits: int) -> list[str]:
        """Up to five round numbers below the plot, with `digits` decimals or the more that tell them apart."""
        step = 10 ** math.floor(math.log10(self.high - self.low))
        while (self.high - self.low) / step > 5:
            step *= 2 if f"{step:e}"[0] in "15" else 2.5
        while (self.high - self.low) / step < 2:
            step /= 2
        digits = max(digits, len(f"{step:.10f}".rstrip("0").partition(".")[2]))
        first = math.ceil(self.low / step)
        ticks = [step * n for n in range(first, math.floor(self.high / step) + 1)]
        return [
            f'<text class="tick" x="{self(tick):.1f}" y="{height - 4}" text-anchor="middle">{number(tick, digits)}</text>'
            for tick in ticks
        ]


def _vertical(name: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def _horizontal(left: float, right: float, y: float) -> str:
    return f'<line class="interval" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path class="paper" d="M{x - 4.5:.1f} {y}l4.5 -4.5l4.5 4.5l-4.5 4.5z"/>'


def _svg(height: float, parts: list[str], alt: str, width: float = WIDTH) -> Markup:
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(alt)}">'
        + "".join(parts)
        + "</svg>"
    )
