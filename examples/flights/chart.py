"""Line charts as SVG, without any package: for pictures that a page of documentation shows as they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""

WIDTH, HEIGHT = 900, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 44, 40


@dataclass(frozen=True)
class Line:
    """One line: points (x, y) in the order of x, with gaps where y is not finite. `colour` is a place in COLOURS."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a label at each of `ticks` (value, text)."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1, and held there."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def nice(lines: Sequence[Line], *, zero: bool = False) -> Axis:
    """A vertical axis around all points, with about five round ticks."""
    values = [y for line in lines for _, y in line.points if math.isfinite(y)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(values)), max(values)
    # A flat line lies in the middle of an axis that can be told apart from it.
    room = max(1e-9, abs(high) * 1e-6) - (high - low)
    low, high = (low, high) if room <= 0 else (low - room, high + room)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [(place * step, f"{place * step:.{digits}f}") for place in range(first, last + 1)]
    return Axis(first * step, last * step, ticks)


def svg(title: str, lines: Sequence[Line], x: Axis, y: Axis, marks: Sequence[tuple[float, str]] = ()) -> str:
    """The picture as a document; `marks` are upright lines with a text."""
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return LEFT + plot_width * x.share(point[0]), TOP + plot_height * (1 - y.share(point[1]))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for value, text in y.ticks:
        _, at = place((x.low, value))
        parts.append(f'<path d="M{LEFT} {at:.1f}h{plot_width}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at, _ = place((value, y.low))
        parts.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}v5" stroke="#555"/>')
        parts.append(f'<text x="{at + 4:.1f}" y="{HEIGHT - BOTTOM + 20}">{escape(text)}</text>')
    for number, (value, text) in enumerate(marks):
        at, _ = place((value, y.low))
        parts.append(f'<path d="M{at:.1f} {TOP}v{plot_height}" stroke="#555" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{at + 4:.1f}" y="{TOP + 12 + 15 * (number % 4)}" font-size="11">{escape(text)}</text>')
    for number, line in enumerate(lines):
        colour = COLOURS[line.colour % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        style = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
        parts += [f'<path d="{path}" {style}/>' for path in _paths([(*place(each), each[1]) for each in line.points])]
        at = TOP + 8 + 20 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {at}h26" {style}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 46}" y="{at + 4}">{escape(line.name)}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}v{plot_height}h{plot_width}" fill="none" stroke="#555"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _paths(points: Sequence[tuple[float, float, float]]) -> list[str]:
    """A path for each stretch without a gap."""
    found: list[list[str]] = [[]]
    for left, top, value in points:
        if math.isfinite(value):
            found[-1].append(f"{left:.1f} {top:.1f}")
        elif found[-1]:
            found.append([])
    return ["M" + "L".join(each) for each in found if each]
