"""The speed of the monitors beside other libraries': `make bench-monitors`, or `python -m loadtests.monitors`.

All are measured on the same arrays in turns, on one core, each library in an environment of its own that is made on
demand. What is compared is the time per value: the fastest of all rounds, as other programs can only make it longer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.environments import EVIDENTLY, NANNYML, QUIET, SKETCHES, NotMade, ensure
from loadtests.processes import ROOT, choose_cores, pinned
from loadtests.scrapes import scrape
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.baseline.scan import Scan
from monitors.drift.divergence import hellinger
from monitors.drift.report import drift
from monitors.drift.statistic import Pair
from monitors.quality.report import quality
from monitors.types import Columns

BEGIN, END = "<!-- bench-monitors:begin -->", "<!-- bench-monitors:end -->"
PAGE = ROOT / "docs" / "monitoring.md"
WIDE, TALL = (200_000, 100), (100_000, 20)
REPORT = (10_000, 20)
NUMBERS = NDArray[np.float32]


@dataclass(slots=True)
class Case:
    """One way to look at values: the environment it needs, the data it gets, and seconds per value by round."""

    label: str
    data: str
    peer: str | None = None
    environment: tuple[str, tuple[str, ...]] | None = None
    samples: list[float] = field(default_factory=list)
    version: str = ""

    @property
    def ns(self) -> float:
        """Nanoseconds per value of the fastest round."""
        return min(self.samples) * 1e9


CASES: Mapping[str, Case] = {
    "sum": Case("numpy: float32 sum of the array (the memory read)", "wide"),
    "state": Case("Headgate: state, rows of a matrix as in the journal", "wide"),
    "columns": Case("Headgate: state, separate columns", "wide"),
    "exact": Case("Headgate: state, edges that fit no grid", "wide"),
    "report": Case("Headgate: state, 15 drift statistics and quality", "report"),
    "tall": Case("Headgate: state, 15 drift statistics and quality", "tall"),
    "same": Case("Headgate: state and Hellinger", "tall"),
    "scrape": Case("Headgate: a rendered scrape of 10 models, no counting", "wide"),
    "joint": Case("Headgate: joint drift, 64 frequencies", "wide"),
    "evidently": Case("Evidently: DataDriftPreset", "report", "evidently", EVIDENTLY),
    "nannyml-js": Case("NannyML: Jensen-Shannon", "tall", "nannyml-jensen_shannon", NANNYML),
    "nannyml-hellinger": Case("NannyML: Hellinger", "tall", "nannyml-hellinger", NANNYML),
    "nannyml-ks": Case("NannyML: Kolmogorov-Smirnov", "tall", "nannyml-kolmogorov_smirnov", NANNYML),
    "nannyml-w1": Case("NannyML: Wasserstein", "tall", "nannyml-wasserstein", NANNYML),
    "kll": Case("DataSketches: KLL, k = 200", "tall", "kll", SKETCHES),
    "tdigest": Case("DataSketches: t-digest, k = 200", "tall", "tdigest", SKETCHES),
    "adwin": Case("river: ADWIN", "tall", "adwin", SKETCHES),
    "page-hinkley": Case("river: Page-Hinkley", "tall", "page-hinkley", SKETCHES),
    "kswin": Case("river: KSWIN", "tall", "kswin", SKETCHES),
    "scipy": Case("scipy: ks_2samp", "tall", "scipy-ks", SKETCHES),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and put it into the documentation where asked; 1 where a number is not held."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.monitors", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds in which everything is measured once (default: 5)"
    )
    parser.add_argument("--own", action="store_true", help="measure Headgate and numpy alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/monitoring.md")
    args = parser.parse_args(arguments)
    cases = {key: each for key, each in CASES.items() if not (args.own and each.peer)}
    remarks: list[str] = []
    cores = choose_cores()
    with tempfile.TemporaryDirectory() as folder, pinned(cores.server):
        data = make_data(Path(folder))
        own = own_runs(data)
        for each in range(args.rounds):
            print(f"round {each + 1} of {args.rounds}", file=sys.stderr, flush=True)
            for key, case in list(cases.items()):
                if case.peer is None:
                    case.samples += [own[key]() for _ in range(5)]
                    continue
                try:
                    _measure_peer(case, Path(folder) / case.data)
                except (NotMade, PeerFailed) as error:
                    remarks.append(f"{case.label}: {error}")
                    del cases[key]
    text = table(cases, remarks, args.rounds)
    print(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0 if all([kept is not False for _, _, _, kept in holds(cases)]) else 1


def make_data(folder: Path) -> dict[str, tuple[NUMBERS, NUMBERS]]:
    """Reference and current rows by shape, normal, in memory and in files for the other libraries."""
    rng = np.random.default_rng(20260731)
    made = {}
    for name, (rows, features) in {"wide": WIDE, "tall": TALL, "report": REPORT}.items():
        pair = (
            rng.normal(size=(10_000, features)).astype(np.float32),
            rng.normal(size=(rows, features)).astype(np.float32),
        )
        made[name] = pair
        (folder / name).mkdir()
        for part, array in zip(("reference", "current"), pair, strict=True):
            np.save(folder / name / f"{part}.npy", array)
    return made


def own_runs(data: Mapping[str, tuple[NUMBERS, NUMBERS]]) -> dict[str, Callable[[], float]]:
    """Headgate's measurements and the sum: each call gives seconds per value, once."""
    runs: dict[str, Callable[[], float]] = {}
    baselines = {name: build(Arrays(columns(reference).features)) for name, (reference, _) in data.items()}
    wide = data["wide"][1]
    ungridded = build(Arrays(columns(data["wide"][0]).features), scan=Ungridded())
    apart = columns(np.asfortranarray(wide))

    def timed(run: Callable[[], Any], values: int) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) / values

        return once

    def counted(baseline: Baseline, rows: Columns) -> Callable[[], Any]:
        return lambda: baseline.new_state().update(rows)

    def reported(name: str) -> Callable[[], Any]:
        rows = columns(data[name][1])

        def run() -> Any:
            state = baselines[name].new_state()
            state.update(rows)
            return drift(baselines[name].state, state), quality(baselines[name].state, state)

        return run

    def joined() -> None:
        joint = baselines["wide"].new_joint()
        assert joint is not None
        joint.update(few)

    few = columns(wide[:20_000])
    runs["scrape"] = timed(scrape(), 1)
    runs["sum"] = timed(lambda: wide.sum(dtype=np.float32), wide.size)
    runs["state"] = timed(counted(baselines["wide"], columns(wide)), wide.size)
    runs["columns"] = timed(counted(baselines["wide"], apart), wide.size)
    runs["exact"] = timed(counted(ungridded, columns(wide)), wide.size)
    runs["joint"] = timed(joined, few.features["f0"].size * wide.shape[1])
    tall = columns(data["tall"][1])

    def same() -> Any:
        state = baselines["tall"].new_state()
        state.update(tall)
        return hellinger(Pair(state.layout, baselines["tall"].state.counts, state.counts))

    runs["same"] = timed(same, data["tall"][1].size)
    for name in ("report", "tall"):
        runs[name] = timed(reported(name), data[name][1].size)
    return runs


class Ungridded(Scan):
    """A scan that freezes the exact quantiles, for data that fits no grid."""

    def freeze(self, cells: int = 0) -> Any:
        return super().freeze(cells)


def columns(rows: NUMBERS) -> Columns:
    """A matrix as the journal gives it: one view per feature."""
    names = {f"f{place}": rows[:, place] for place in range(rows.shape[1])}
    return Columns(np.zeros(len(rows), dtype=np.int64), names)


class PeerFailed(Exception):
    """A library could not be measured; the text is one sentence."""


def _measure_peer(case: Case, folder: Path) -> None:
    assert case.environment is not None
    assert case.peer is not None
    python = ensure(*case.environment)
    command = [str(python), str(ROOT / "loadtests" / "monitor_peers.py"), case.peer, str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **QUIET}, cwd=folder
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerFailed(last[:200])
    found = json.loads(result.stdout.strip().splitlines()[-1])
    case.version = found["version"]
    case.samples.append(found["seconds"] / found["values"])


def holds(cases: Mapping[str, Case]) -> list[tuple[str, float, float, bool | None]]:
    """(what, ratio, hold, whether it is held) for every ratio whose two sides were measured."""
    found: list[tuple[str, float, float, bool | None]] = []
    if {"state", "sum"} <= cases.keys():
        ratio = cases["state"].ns / cases["sum"].ns
        found.append(("100 float32 features into state, over a float32 sum (at most)", ratio, 25.0, ratio <= 25))
    if {"evidently", "report"} <= cases.keys():
        ratio = cases["evidently"].ns / cases["report"].ns
        found.append(("Evidently's report, over all of Headgate's statistics (at least)", ratio, 200.0, ratio >= 200))
    if "scrape" in cases:
        took = cases["scrape"].ns / 1e6
        found.append(
            (
                "a rendered scrape of 10 models x 100 features with labels, milliseconds (at most)",
                took,
                50.0,
                took <= 50,
            )
        )
    fastest = min((cases[key].ns for key in cases if key.startswith("nannyml")), default=None)
    if fastest is not None:
        ratio = fastest / cases["same"].ns
        found.append(("NannyML's fastest method, over state and Hellinger (at least)", ratio, 6.0, ratio >= 6))
        ratio = fastest / cases["tall"].ns
        found.append(("the same, over state, 15 statistics and quality", ratio, math.nan, None))
    return found


def table(cases: Mapping[str, Case], remarks: list[str], rounds: int) -> str:
    """The table in Markdown, the ratios that are held or not, and what could not be measured."""
    shapes = {"wide": WIDE, "tall": TALL, "report": REPORT}
    lines = ["| way | rows x features | ns per value | values/s |", "|---|---|---|---|"]
    for key, case in cases.items():
        if key == "scrape":
            continue
        rows, features = shapes[case.data]
        shape = f"{rows:,} x {features}" if case.peer not in ("adwin", "page-hinkley", "kswin") else "one stream"
        label = f"{case.label} ({case.version})" if case.version else case.label
        lines.append(f"| {label} | {shape} | {_number(case.ns)} | {_number(1e3 / case.ns)} M |")
    lines += ["", "| number | measured | hold | |", "|---|---|---|---|"]
    for what, ratio, hold, kept in holds(cases):
        verdict = "" if kept is None else "held" if kept else "NOT held"
        lines.append(f"| {what} | {ratio:.1f} | {'' if kept is None else f'{hold:g}'} | {verdict} |")
    lines += [
        "",
        f"`make bench-monitors`: the fastest of {rounds} rounds in turns, one core, numpy {version('numpy')}.",
    ]
    return "\n".join([*lines, *(f"Not measured: {remark}." for remark in remarks)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
