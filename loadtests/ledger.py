"""Does the ledger keep up? Predictions and labels are written first; then the time and memory of folding them is taken.

``python -m loadtests.ledger [--predictions N] [--labels N] [--quick]``. The labels are spread over all predictions at
random, which is the worst for the join; one in twenty says again what was said, one in twenty something else, one in a
hundred is about a prediction that nobody knows. It writes about 60 bytes for a prediction and 300 for a label.

Exit code 1: at the rates that are to be held it takes more than `SHARE` of a core, or its memory grows by more than
`GROWTH_MIB` between the first and the last tenth of the labels.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import numpy as np

from gateway.feedback.event import FOLDER, Event, Source, encode, keyed_id
from gateway.feedback.rules import FeedbackRule
from gateway.journal import ids, schema
from gateway.journal.frames import FrameFile
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment
from gateway.ledger import dialect
from gateway.ledger.reading import Ledger
from gateway.ledger.service import SystemClock, Writer

SEGMENT_ROWS = 500_000
NEEDED_LABELS = 2_000
NEEDED_PREDICTIONS = 20_000
SHARE = 1.0
GROWTH_MIB = 64.0
"""A ledger that kept every event in memory would grow by hundreds."""

PREDICTIONS, LABELS = 10_000_000, 1_000_000
MINUTE_NS = 60_000_000_000

_RULE = FeedbackRule(type="boolean")


class Declared:
    """One model with one feedback name."""

    def of(self, model: str) -> Mapping[str, FeedbackRule]:
        """See feedback.declarations."""
        return {"late": _RULE} if model == "flights" else {}

    def declaring(self, name: str) -> dict[str, FeedbackRule]:
        """See feedback.declarations."""
        return {"flights": _RULE} if name == "late" else {}


def predict(data: Path, predictions: int, now_ns: int) -> list[str]:
    """Write sealed segments over the last ten days; returns their prefixes."""
    folder = data / "journal"
    folder.mkdir(parents=True)
    prefixes: list[str] = []
    for start in range(0, predictions, SEGMENT_ROWS):
        rows = min(SEGMENT_ROWS, predictions - start)
        prefix = ids.new_prefix().decode()
        columns = (*schema.meta_columns(), Column("output", "p", "<f4", (1,), 0))
        segment = Segment(folder, SegmentSpec(prefix, "flights", 1, "", now_ns, "", rows, columns))
        segment.time_ns[:] = (
            now_ns - 14_400 * MINUTE_NS + np.linspace(start, start + rows, rows) * (14_000 * MINUTE_NS / predictions)
        )
        segment.span[:] = 1
        segment.status[:] = 200
        segment._fill = rows
        segment.finish()
        prefixes.append(prefix)
    return prefixes


def label(data: Path, prefixes: list[str], predictions: int, labels: int, now_ns: int) -> None:
    """Write feedback logs, 50,000 events in each."""
    random = Random(7)
    folder = data / FOLDER
    folder.mkdir()
    said: Iterator[bytes] = _events(random, prefixes, predictions, labels, now_ns)
    for number in range(0, labels, 50_000):
        file = FrameFile(folder / f"{ids.new_prefix().decode()}.feedback")
        for _ in range(number, min(number + 50_000, labels), 1000):
            file.append(*itertools.islice(said, 1000))
        file.close()


def _events(random: Random, prefixes: list[str], predictions: int, labels: int, now_ns: int) -> Iterator[bytes]:
    before, value = "", False
    for number in range(labels):
        kind = random.random()
        if kind >= 0.1 or not before:
            row = random.randrange(predictions)
            before, value = f"{prefixes[row // SEGMENT_ROWS]}{row % SEGMENT_ROWS:08x}", random.random() < 0.3
        elif kind < 0.05:
            value = not value
        yield encode(
            Event(
                feedback_id=keyed_id("load", str(number)),
                model="flights",
                name="late",
                value=value,
                received_ns=now_ns - (labels - number) * 1000,
                prediction_id=before if kind < 0.99 else str(ids.PredictionId(ids.new_prefix().decode(), 0)),
                source=Source("SYSTEM", "towers"),
                idempotency_key=f"flight-{number}",
            )
        )


def main(predictions: int, labels: int) -> int:
    """Print the rates and the memory; 0 where both are held."""
    scratch = Path(tempfile.mkdtemp(prefix="headgate-ledger-"))
    try:
        now_ns = SystemClock().now_ns()
        prefixes = predict(scratch, predictions, now_ns)
        label(scratch, prefixes, predictions, labels, now_ns)
        return _measure(scratch, predictions, labels)
    finally:
        shutil.rmtree(scratch)


def _measure(data: Path, predictions: int, labels: int) -> int:
    writer = Writer(dialect.location(data), data, Declared(), SystemClock())
    try:
        began = time.perf_counter()
        while writer.segments.fold(16):
            pass
        segments_s = time.perf_counter() - began
        early = middle = _rss_mib()
        done, began = 0, time.perf_counter()
        longest = 0.0
        folded = 1
        while folded:
            step = time.perf_counter()
            folded = writer.folder.fold(1000)
            done += folded
            longest = max(longest, time.perf_counter() - step)
            early = _rss_mib() if done <= labels // 10 else early
            middle = _rss_mib() if done <= labels // 2 else middle
        labels_s = time.perf_counter() - began
        late = _rss_mib()
        began = time.perf_counter()
        writer.folder.retry(500)
        retry_s = time.perf_counter() - began
    finally:
        writer.close()
    ledger = Ledger(dialect.location(data))
    tallies = ledger.tallies()
    assert sum(tallies.values()) == labels, "events were lost or taken twice"
    began = time.perf_counter()
    resolved = sum(1 for _ in ledger.labels("flights", "late"))
    read_s = time.perf_counter() - began
    began = time.perf_counter()
    ledger.maturity("flights", 1, "late", SystemClock().now_ns())
    curve_s = time.perf_counter() - began
    size = (data / dialect.FILE).stat().st_size
    # Both are done by one thread: at the rates that are to be held, the shares of a second that they take add up.
    share = labels_s / labels * NEEDED_LABELS + segments_s / predictions * NEEDED_PREDICTIONS
    print(f"{predictions:,} predictions in {segments_s:.2f} s: {predictions / segments_s:,.0f}/s")
    print(
        f"{labels:,} events in {labels_s:.2f} s: {labels / labels_s:,.0f}/s; longest transaction {longest * 1e3:.0f} ms"
    )
    rates = f"{NEEDED_LABELS:,} labels/s and {NEEDED_PREDICTIONS:,} predictions/s"
    print(f"of one core, at {rates}: {share:.0%}, hold {SHARE:.0%}")
    print(f"500 events looked for again in {retry_s * 1e3:.0f} ms")
    print(
        f"memory: {early:.0f} MiB after a tenth, {middle:.0f} after half, {late:.0f} after all, "
        f"hold {GROWTH_MIB:.0f} more at most"
    )
    print(f"file: {size / 2**20:.0f} MiB, {size / labels:.0f} bytes for an event")
    print(
        f"{resolved:,} labels read in {read_s:.2f} s: {resolved / read_s:,.0f}/s; maturity curve {curve_s * 1e3:.0f} ms"
    )
    print(", ".join(f"{state} {count:,}" for (_, _, state), count in sorted(tallies.items())))
    return verdict(share, late - early)


def verdict(share: float, growth_mib: float) -> int:
    """The exit code."""
    is_held = share <= SHARE and growth_mib <= GROWTH_MIB
    print("held" if is_held else "BELOW")
    return int(not is_held)


def _rss_mib() -> float:
    """Memory of this process without what it maps of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predictions", type=int, default=PREDICTIONS)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it: whether it works, not how fast it is")
    options = parser.parse_args()
    part = 100 if options.quick else 1
    sys.exit(main(options.predictions // part, options.labels // part))
