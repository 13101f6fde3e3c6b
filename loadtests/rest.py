"""What a server costs that nobody asks anything: to start and end it, its memory, and its share of a core.

Memory is the sum of the proportional shares (Pss) of all its processes: a page that four of them share counts once.
Linux only. There is no number to hold; the exit code is 1 where it could not be measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from loadtests.lineup import serve_command, serve_flags, wait_ready
from loadtests.models import write
from loadtests.processes import ROOT, Server

SETTLE_S = 15.0
"""After which the processes that tried the versions have gone."""

MODELS = {"tiny": 1, "flights": 2}
"""What is served, and in how many versions."""

_PAGE_UNIT = 1024


class Cost(NamedTuple):
    """CPU seconds from start to end and seconds until ready; mebibytes and the share of a core at rest."""

    cpu_s: float
    ready_s: float
    mebibytes: float
    share: float


def measure(models: Path, scratch: Path, workers: int, seconds: float) -> Cost:
    """Start a server, leave it alone for so long, and end it."""
    command = serve_command(serve_flags(), models, scratch / "data", workers)
    before = _children_s()
    began = time.perf_counter()
    with Server("headgate", command, (), scratch / "log") as server:
        wait_ready(server, list(MODELS))
        ready_s = time.perf_counter() - began
        time.sleep(SETTLE_S)
        pids = server.processes()
        idle_s, since = sum(map(_cpu_s, pids)), time.perf_counter()
        time.sleep(seconds)
        idle_s, waited_s = sum(map(_cpu_s, pids)) - idle_s, time.perf_counter() - since
        mebibytes = sum(map(_pss, pids)) / 2**20
    resting_s = idle_s / waited_s * (SETTLE_S + seconds)
    return Cost(_children_s() - before - resting_s, ready_s, mebibytes, idle_s / waited_s)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.rest", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="numbers of workers (1 and 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a server is left alone (20)")
    options = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("rest: /proc/self/smaps_rollup is missing: memory cannot be measured here", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="headgate-rest.") as folder:
        models = Path(folder) / "models"
        write(models, ROOT / "examples", list(MODELS))
        for workers in options.workers:
            found = []
            for round_ in range(options.rounds):
                scratch = Path(folder) / f"{workers}-{round_}"
                scratch.mkdir()
                found.append(measure(models, scratch, workers, options.seconds))
            middle = Cost(*map(statistics.median, zip(*found, strict=True)))
            print(
                f"{sum(MODELS.values())} versions, workers: {workers}: ready after {middle.ready_s:.2f} s; "
                f"{middle.cpu_s:.2f} CPU s to start and end; at rest {middle.mebibytes:.0f} MiB, "
                f"{middle.share:.1%} of a core"
            )
    return 0


def _children_s() -> float:
    """CPU seconds of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond: a few ticks of the clock would be too coarse for one that rests."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def _pss(pid: int) -> int:
    """Bytes of a process in main memory; shared ones in proportion."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * _PAGE_UNIT
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
