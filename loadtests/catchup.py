"""How fast the monitors catch up: `make bench-monitors` runs it, or ``python -m loadtests.catchup [--rows N]``.

A journal as a server leaves it is written, segment by segment, with the rows of so many hours; then a service that was
away reads it with everything that it does in a server but labels: counts, joint drift, repeated rows, the evidence of
every block, and checkpoints. Measured is the time from its start until nothing waits any more, on one core, from files
that are in the memory of the machine; that of the core counts, so that what else the machine does does not. What is
held: ten million rows of 30 floats in less than a minute.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gateway.journal import schema
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment, boot_id
from gateway.progress import Progress
from loadtests.processes import choose_cores, pinned
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.rule import Rule
from monitors.service import Service, Subject

HOLD_S = 60.0
FEATURES = 30
"""As many floats as a row of the model `tiny` has."""

SEGMENT_BYTES = 32 << 20
ROW_BYTES = 190
WORKERS = 2


def prefix_at(opened_ns: int, number: int) -> str:
    """What the ids of a segment begin with that was opened then, the `number`-th of a journal."""
    stamp = f"{opened_ns // 1_000_000:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-8000-8000-{number:04x}"


def write(folder: Path, first_ns: int, rows: int, step_ns: int, *, number: int = 0, features: int = 1) -> Path:
    """One sealed segment of the model ``m``: normal inputs ``x``, an output ``y``, a request for each row, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = (
        *schema.meta_columns(),
        Column("input", "x", "<f4", (features,), 0),
        Column("output", "y", "<f4", (1,), 0),
    )
    spec = SegmentSpec(prefix_at(first_ns, number), "m", 1, "0" * 64, first_ns, boot_id(), rows, columns)
    segment = Segment(folder, spec)
    dice = np.random.default_rng(number)
    segment.inputs["x"][:] = dice.standard_normal((rows, features), np.float32)
    segment.outputs["y"][:, 0] = segment.inputs["x"][:, 0]
    segment.time_ns[:] = first_ns + np.arange(rows) * step_ns
    segment.latency_ns[:] = dice.integers(100_000, 900_000, rows)
    segment.span[:] = segment.batch[:] = 1
    segment.status[:] = 200
    segment._fill = rows
    segment.finish()
    return segment.path


def write_all(folder: Path, rows: int, span_s: float, ends_ns: int) -> int:
    """A journal of two workers over so many seconds; the number of its segments."""
    capacity = SEGMENT_BYTES // ROW_BYTES
    own = rows // WORKERS
    step_ns = int(span_s * 1e9 / own)
    number = 0
    with Progress(rows, "rows written", sys.stderr) as progress:
        for worker in range(WORKERS):
            for start in range(0, own, capacity):
                count = min(capacity, own - start)
                first_ns = ends_ns - (own - start) * step_ns + worker * step_ns // WORKERS
                write(folder, first_ns, count, step_ns, number=number, features=FEATURES)
                number += 1
                progress.advance(count)
    return number


def trained(rows: int = 10_000) -> Baseline:
    """A baseline of the same distribution."""
    x = np.random.default_rng(99).standard_normal((rows, FEATURES), np.float32)
    return build(Arrays({f"x[{place}]": x[:, place] for place in range(FEATURES)}, {"y": x[:, 0]}))


def catch_up(data: Path, rows: int, now_ns: int) -> tuple[float, float, Service]:
    """Seconds of the core, and of the clock, until a service has read all rows and looked at the evidence of all
    blocks; and the service.
    """
    subject = Subject(Rule(), trained())
    service = Service(data, lambda *_: subject, lambda alarm: None, lambda: now_ns)
    began, began_cpu = time.perf_counter(), time.process_time()
    with Progress(rows, "rows read", sys.stderr) as progress:
        done = 0
        while True:
            service.step()
            counted = sum(each.progress.rows for each in service.watchers.values())
            progress.advance(counted - done)
            done = counted
            if not service.lag:
                break
    service.checkpoint()
    return time.process_time() - began_cpu, time.perf_counter() - began, service


def main(arguments: list[str] | None = None) -> int:
    """Write, measure, print; 1 where it took too long."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.catchup", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many rows (default: 10 million)")
    parser.add_argument("--hours", type=float, default=24.0, help="over how long they came (default: 24)")
    parser.add_argument("--folder", type=Path, help="where the journal is made, about 190 bytes a row")
    args = parser.parse_args(arguments)
    now_ns = time.time_ns()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, pinned(choose_cores().server):
        data = Path(folder)
        segments = write_all(data / "journal", args.rows, args.hours * 3600, now_ns - 60_000_000_000)
        seconds, elapsed, service = catch_up(data, args.rows, now_ns)
        (watcher,) = service.watchers.values()
        counted = watcher.progress.rows
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    limit = HOLD_S * args.rows / 10_000_000
    verdict = "held" if seconds < limit and counted == args.rows // WORKERS * WORKERS else "NOT held"
    print(
        f"{counted:,} rows x {FEATURES} floats of {args.hours:g} hours, {segments} segments: {seconds:.1f} s "
        f"({elapsed:.1f} s by the clock), "
        f"{counted / seconds / 1e6:.2f} million rows/s (hold: {limit:g} s): {verdict}; "
        f"{watcher.late} late, {largest:,.0f} MiB at most, mapped files included"
    )
    return 0 if verdict == "held" else 1


if __name__ == "__main__":
    sys.exit(main())
