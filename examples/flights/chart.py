"""Line charts as PNG, for pictures that a page of documentation shows as they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""

WIDTH, HEIGHT, DPI = 9.0, 2.6, 100
"""Inches of a picture and of each of its panels, and pixels of an inch."""


@dataclass(frozen=True)
class Line:
    """One line: points (x, y) in the order of x, with gaps where y is not finite. `colour` is a place in COLOURS."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False

    @property
    def stretches(self) -> list[list[tuple[float, float]]]:
        """The points between gaps."""
        parts = groupby(self.points, key=lambda point: math.isfinite(point[1]))
        return [list(part) for finite, part in parts if finite]


@dataclass(frozen=True)
class Panel:
    """Lines over one axis. `marks` are upright lines with a text; `low` and `high` bound what is drawn."""

    title: str
    lines: Sequence[Line]
    low: float | None = None
    high: float | None = None
    marks: Sequence[tuple[float, str]] = ()


def png(path: Path, panels: Sequence[Panel], ticks: Sequence[tuple[float, str]], end: float) -> None:
    """Write panels below one another, over an axis from 0 to `end` with a text at each of `ticks`."""
    figure = Figure(figsize=(WIDTH, HEIGHT * len(panels) + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for place, panel in zip(axes, panels, strict=True):
        _draw(place, panel)
        place.set_xlim(0, end)
        place.set_xticks([x for x, _ in ticks], [text for _, text in ticks], ha="left")
    # Without the version of the library; names may hold dollars, which are no formulas.
    with rc_context({"text.parse_math": False}):
        figure.savefig(path, format="png", metadata={"Software": None})


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    named = []
    for line in panel.lines:
        style = "--" if line.dashed else "-"
        colour = COLOURS[line.colour % len(COLOURS)]
        # In the legend also where there is nothing to draw.
        named += axes.plot([], [], style, color=colour)
        for stretch in line.stretches:
            marker = "." if len(stretch) == 1 else ""
            axes.plot(*zip(*stretch, strict=True), style, color=colour, linewidth=1.4, marker=marker)
    axes.set_ylim(panel.low, panel.high)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    for number, (x, text) in enumerate(panel.marks):
        axes.axvline(x, color="#555555", linestyle=":", linewidth=1)
        height = 0.97 - 0.09 * (number % 4)
        axes.annotate(text, (x, height), (4, 0), ("data", "axes fraction"), "offset points", va="top", fontsize=8)
    if panel.lines:
        names = [line.name for line in panel.lines]
        axes.legend(named, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
