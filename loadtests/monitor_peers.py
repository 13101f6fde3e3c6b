"""One library's way to look for drift, timed in an environment of its own: `python monitor_peers.py NAME FOLDER`.

FOLDER holds reference.npy and current.npy, float32 (rows, features). Printed is JSON: the values looked at, the seconds
of the best of several runs, and the version. Nothing of Headgate is imported, so this runs where only the library is.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = NDArray[np.float32]
Run = Callable[[], object]


def evidently(reference: Arrays, current: Arrays) -> tuple[int, Run]:
    """The preset that a report of drift is made with, at its defaults."""
    pandas, presets = import_module("pandas"), import_module("evidently.presets")
    report = import_module("evidently").Report
    frames = [_frame(pandas, each) for each in (current, reference)]
    return current.size, lambda: report([presets.DataDriftPreset()]).run(*frames).dict()


def nannyml(method: str) -> Callable[[Arrays, Arrays], tuple[int, Run]]:
    """One univariate method, fitted to the reference before the clock starts; chunks of a tenth of the rows."""

    def make(reference: Arrays, current: Arrays) -> tuple[int, Run]:
        pandas = import_module("pandas")
        frames = [_frame(pandas, each) for each in (current, reference)]
        calculator = import_module("nannyml").UnivariateDriftCalculator(
            column_names=list(frames[0].columns), continuous_methods=[method], chunk_size=len(current) // 10
        )
        calculator.fit(frames[1])
        return current.size, lambda: calculator.calculate(frames[0])

    return make


def kll(reference: Arrays, current: Arrays) -> tuple[int, Run]:
    """A KLL sketch per column (k = 200)."""
    sketch_of = import_module("datasketches").kll_floats_sketch
    columns = [np.ascontiguousarray(column) for column in current.T]

    def run() -> object:
        sketches = [sketch_of(200) for _ in columns]
        for sketch, column in zip(sketches, columns, strict=True):
            sketch.update(column)
        return sketches

    return current.size, run


def tdigest(reference: Arrays, current: Arrays) -> tuple[int, Run]:
    """A t-digest per column (k = 200)."""
    digest_of = import_module("datasketches").tdigest_double
    columns = [np.ascontiguousarray(column, dtype=np.float64) for column in current.T]

    def run() -> object:
        digests = [digest_of(200) for _ in columns]
        for digest, column in zip(digests, columns, strict=True):
            digest.update(column)
        return digests

    return current.size, run


def river(detector: str, most: int) -> Callable[[Arrays, Arrays], tuple[int, Run]]:
    """One detector of a stream, on the first values of the first column."""

    def make(reference: Arrays, current: Arrays) -> tuple[int, Run]:
        drift = import_module("river.drift")
        values = current[:most, 0].astype(float).tolist()

        def run() -> object:
            one: Any = getattr(drift, detector)(**({"seed": 1} if detector == "KSWIN" else {}))
            for value in values:
                one.update(value)
            return one

        return len(values), run

    return make


def scipy_ks(reference: Arrays, current: Arrays) -> tuple[int, Run]:
    """The two-sample Kolmogorov-Smirnov test per column."""
    stats = import_module("scipy.stats")
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(reference.T, current.T, strict=True)]
    return current.size, lambda: [stats.ks_2samp(one, other, method="asymp") for one, other in pairs]


PEERS: Mapping[str, tuple[str, Callable[[Arrays, Arrays], tuple[int, Run]]]] = {
    "evidently": ("evidently", evidently),
    "nannyml-jensen_shannon": ("nannyml", nannyml("jensen_shannon")),
    "nannyml-hellinger": ("nannyml", nannyml("hellinger")),
    "nannyml-kolmogorov_smirnov": ("nannyml", nannyml("kolmogorov_smirnov")),
    "nannyml-wasserstein": ("nannyml", nannyml("wasserstein")),
    "kll": ("datasketches", kll),
    "tdigest": ("datasketches", tdigest),
    "adwin": ("river", river("ADWIN", 100_000)),
    "page-hinkley": ("river", river("PageHinkley", 100_000)),
    "kswin": ("river", river("KSWIN", 2_000)),
    "scipy-ks": ("scipy", scipy_ks),
}


def best(run: Run, rounds: int) -> float:
    """Seconds of the fastest of `rounds` runs, after one that does not count."""
    run()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def _frame(pandas: Any, rows: Arrays) -> Any:
    return pandas.DataFrame(rows, columns=[f"f{place}" for place in range(rows.shape[1])])


def main(name: str, folder: str, rounds: int = 3) -> None:
    """Time one and print what it took."""
    warnings.simplefilter("ignore")
    package, make = PEERS[name]
    parts = ("reference", "current")
    reference, current = (np.load(Path(folder) / f"{part}.npy", allow_pickle=False) for part in parts)
    values, run = make(reference, current)
    print(json.dumps({"values": values, "seconds": best(run, rounds), "version": version(package)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
