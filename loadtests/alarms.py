"""What the alarms do: false alarms on streams without a change, delays on streams with one, and real data sets.

    python -m loadtests.alarms [--only null|dependence|delay|data] [--quick] [--record]

`--record` writes the tables between their markers in docs/monitoring-results.md. All seeds are fixed. The data
sets are looked for in HEADGATE_TEST_DATA or ../shared/data; without them their table is left as it was.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.stats import norm

from loadtests.alarm_data import data_tables
from loadtests.alarm_nulls import DECILES, null_rows, other_rows, tallied
from monitors.baseline.freeze import QUANTILES
from monitors.evidence.calibration import clumping, hour_classes, hours_of_week, strayed
from monitors.evidence.detector import Detector
from monitors.evidence.reference import Reference
from monitors.types import Counts, Floats

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "monitoring-results.md"
YEAR_OF_MINUTES = 525_960.0
WEEK = 10_080
BLOCK = 64
HOUR_NS = 3_600_000_000_000


def table(header: str, lines: list[str]) -> str:
    """A Markdown table; `header` and each line hold cells between bars."""
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *(f"| {line} |" for line in lines)])


# --- no change ---


def null_table(quick: bool) -> str:
    """False alarms on streams of independent rows without a change."""
    years = "model-years | budget | years with an alarm | mean of M / t"
    header = f"features | baseline rows | blocks a year | {years}"
    header += " | years with an alarm, were the baseline taken as exact"
    parts = [(header, null_rows(quick)), (f"watch, and what holds | blocks a year | {years}", other_rows(quick))]
    return "\n\n".join(table(header, [" | ".join(map(str, row)) for row in rows]) for header, rows in parts)


def autoregressive(phi: float, rng: np.random.Generator, rows: int, features: int) -> Floats:
    """Standard normal features (F, n), each row remembering the one before by phi."""
    steps = rng.standard_normal((features, rows)) * np.sqrt(1 - phi**2)
    start = rng.standard_normal((features, 1)) * phi
    return np.asarray(lfilter([1], [1, -phi], steps, axis=1, zi=start)[0])


def seasonal(rng: np.random.Generator, blocks: int, features: int) -> Floats:
    """Normal features (F, n), a block a minute, whose mean follows the hour of the day by half a standard deviation."""
    hour = np.repeat(np.arange(blocks) / 60, BLOCK)
    return rng.standard_normal((features, blocks * BLOCK)) + 0.5 * np.sin(2 * np.pi * hour / 24)


def binned(values: Floats, edges: Floats) -> Counts:
    """Blocks of counts (T, F, B) of values (F, n)."""
    blocks = values.shape[1] // BLOCK
    width = edges.shape[1] + 1
    counts = np.zeros((blocks, len(values), width), dtype=np.int64)
    for f, (x, e) in enumerate(zip(values, edges, strict=True)):
        place = np.searchsorted(e, x[: blocks * BLOCK], side="right") + np.repeat(np.arange(blocks), BLOCK) * width
        counts[:, f] = np.bincount(place, minlength=blocks * width).reshape(blocks, width)
    return counts


def alarms_in(detector: Detector, blocks: Counts, classes: npt.NDArray[np.int64] | None = None) -> int:
    """How many alarms a stream of blocks raises at one a year of minutes; the evidence starts anew after each."""
    found = 0
    for index, block in enumerate(blocks):
        detector.update(block, kind_of_time=0 if classes is None else int(classes[index]))
        if detector.log_m >= np.log(YEAR_OF_MINUTES):
            found += 1
            detector.restart()
    return found


def dependence_table(quick: bool) -> str:
    """False alarms on streams without a change whose rows depend on one another."""
    lines, weeks = [], 1 if quick else 2
    for phi in (0.0, 0.5, 0.9, 0.99):
        rng = np.random.default_rng(72)
        past = autoregressive(phi, rng, WEEK * BLOCK, 4)
        edges = np.quantile(past, DECILES, axis=1).T
        known, stream = binned(past, edges), binned(autoregressive(phi, rng, weeks * WEEK * BLOCK, 4), edges)
        whole = known.sum(axis=0)
        copies = clumping(known)
        coarse = known.reshape(WEEK // 10, 10, *known.shape[1:]).sum(axis=1)
        tolerance = np.maximum(strayed(coarse, ordered=True, copies=copies), 0.01)
        cells = []
        for reference in (
            Reference.build(whole, ordered=True),
            Reference.build(whole, ordered=True, tolerance=0.01),
            Reference.build(whole, ordered=True, tolerance=0.01, copies=copies),
            Reference.build(whole, ordered=True, tolerance=tolerance, copies=copies),
        ):
            cells.append(str(alarms_in(Detector([reference]), stream)))
        name = f"autoregressive, {phi}" if phi else "independent"
        lines.append(f"{name} | {weeks} | {' | '.join(cells)} | {copies.max():.1f} | {tolerance.max():.3f}")
    lines.append(seasonal_line(weeks))
    header = "rows | weeks | no tolerance | tolerance 0.01 | and copies | and tolerance from the past"
    return table(f"{header} | copies | that tolerance (PSI)", lines)


def seasonal_line(weeks: int) -> str:
    """The line about a daily season: one reference for all hours, and one for each class of hours."""
    rng = np.random.default_rng(73)
    past = seasonal(rng, 2 * WEEK, 4)
    edges = np.quantile(past, DECILES, axis=1).T
    known, stream = binned(past, edges), binned(seasonal(rng, weeks * WEEK, 4), edges)
    hours = np.asarray(hours_of_week(np.arange(len(known)) // 60 * HOUR_NS - 72 * HOUR_NS))
    by_hour = np.array([known[hours == hour].sum(axis=0) for hour in range(168)])
    classes = hour_classes(by_hour, most=8)
    when = classes[np.asarray(hours_of_week(np.arange(len(stream)) // 60 * HOUR_NS - 72 * HOUR_NS))]
    whole, number = known.sum(axis=0), int(classes.max()) + 1
    cells = []
    for tolerance in (0.0, 0.01):
        reference = Reference.build(whole, ordered=True, tolerance=tolerance)
        cells.append(f"{alarms_in(Detector([reference]), stream)}")
    for tolerance in (0.01, 0.05):
        references = [
            Reference.build(counts, ordered=True, tolerance=tolerance, delta=0.01 / number)
            for counts in (by_hour[classes == each].sum(axis=0) for each in range(number))
        ]
        found = alarms_in(Detector(references), stream, when)
        cells.append(f"{found} ({number} classes of hours, tolerance {tolerance})")
    return f"a daily season | {weeks} | {' | '.join(cells)} | | "


# --- delays ---


def shifted(edges: Floats, shift: float) -> Floats:
    """Shares of the bins of a normal feature that has moved by so many standard deviations."""
    return np.diff(norm.cdf(np.concatenate([[-np.inf], edges - shift, [np.inf]])))


def delays(
    quantiles: tuple[float, ...], psi: float, rows: int, tolerance: float, per_year: float, runs: int, seed: int
) -> list[int]:
    """Rows from a change in one of 20 features to the alarm, 30,000 where there was none by then.

    Blocks of 64 rows stand for minutes; the change follows 200 quiet blocks. The shift has this PSI on these bins.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(runs):
        values = rng.standard_normal((20, rows))
        edges = np.quantile(values, quantiles, axis=1).T
        counts, own = tallied(values, edges), len(quantiles) + 1
        # Four bins for missing, infinite and unseen values, as a real layout has them.
        counts = np.pad(counts, ((0, 0), (0, 4)))
        quiet = np.pad(np.array([shifted(e, 0.0) for e in edges]), ((0, 0), (0, 4)))
        ordered = np.arange(counts.shape[1]) < own

        def excess(shift: float, e: Floats = edges[0], p: Floats = quiet[0, :own]) -> float:
            moved = shifted(e, shift)
            return float(np.sum((moved - p) * np.log(moved / p))) - psi

        changed = quiet.copy()
        changed[0, :own] = shifted(edges[0], brentq(excess, 1e-6, 3))
        detector = Detector([Reference.build(counts, ordered=ordered, tolerance=tolerance)])
        for _ in range(200):
            detector.update(rng.multinomial(BLOCK, quiet))
        seen = 0
        while seen < 30_000 and detector.log_m < np.log(YEAR_OF_MINUTES / per_year):
            detector.update(rng.multinomial(BLOCK, changed))
            seen += BLOCK
        found.append(seen)
    return found


def delay_table(quick: bool) -> str:
    """Median and worst-tenth delays, by bins, size of the change, baseline, tolerance and budget."""
    runs, lines = (4 if quick else 12), []
    for name, quantiles in (("deciles", DECILES), ("17 quantiles with tails", QUANTILES)):
        for psi, rows, tolerance, per_year in cases():
            found = delays(quantiles, psi, rows, tolerance, per_year, runs, seed=74)
            late = sum(each >= 30_000 for each in found)
            middle, tenth = (f"{each:,.0f}" for each in np.percentile(found, [50, 90], method="higher"))
            cells = ("over 30,000" if late > runs / 2 else middle), ("over 30,000" if late > runs / 10 else tenth)
            lines.append(f"{name} | {psi} | {rows:,} | {tolerance} | {per_year:g} | {cells[0]} | {cells[1]}")
    header = "bins | PSI of the change | baseline rows | tolerance | budget a year"
    return table(f"{header} | median delay, rows | nine of ten within", lines)


def cases() -> Iterator[tuple[float, int, float, float]]:
    """(PSI, baseline rows, tolerance, budget a year) of the delay table."""
    for psi in (0.05, 0.1, 0.25):
        yield psi, 10_000, 0.01, 1.0
    for rows in (1_000, 100_000):
        yield 0.1, rows, 0.01, 1.0
    for tolerance in (0.0, 0.02, 0.05):
        yield 0.1, 10_000, tolerance, 1.0
    yield 0.1, 10_000, 0.01, 52.0


def record(name: str, text: str) -> None:
    """Put a table between its markers in the document."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    document = DOCUMENT.read_text(encoding="utf-8")
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"expected the markers {begin} and {end} in {DOCUMENT.name}")
    DOCUMENT.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def data_folder() -> Path:
    """Where the data sets are."""
    named = os.environ.get("HEADGATE_TEST_DATA")
    return Path(named) if named else DOCUMENT.parent.parent.parent / "shared" / "data"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, and record them where asked."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.alarms", description=__doc__)
    parser.add_argument("--only", choices=("null", "dependence", "delay", "data"))
    parser.add_argument("--quick", action="store_true", help="a twentieth of the years: shows that it works")
    parser.add_argument("--record", action="store_true", help="write the tables into docs/monitoring-results.md")
    options = parser.parse_args(arguments)
    makers: dict[str, Callable[[bool], str]] = {
        "null": null_table,
        "dependence": dependence_table,
        "delay": delay_table,
        "data": lambda quick: data_tables(data_folder(), quick),
    }
    for name, make in makers.items():
        if options.only in (None, name):
            began = time.monotonic()
            text = make(options.quick)
            print(f"## {name}: {time.monotonic() - began:.0f} s\n\n{text}\n", flush=True)
            if options.record and text:
                record(f"alarms-{name}", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
