"""The journal's own numbers: reading it, exporting it, replaying it. Each beside its reference, in one run.

``python -m loadtests.journal [--rows N] [--rounds N]`` makes journals of models of the benchmark, their answers
computed in batches of 1 to 64 rows, and prints a table:

read     a pass over the inputs of a segment as numpy against a pass over an array in memory; bytes each second
export   30 floats a row (tiny), every tenth with a label; rows each second
archive  the same as Parquet files, compared with their segments; rows each second
replay   bit for bit, in the recorded batches, against onnxruntime alone in the same batches; rows each second. A run of
         tiny takes five microseconds, of trees (100 floats) and mlp (512 floats) as long as runs of real models do.

Times are those of one core, so that what else the machine does does not count. A journal is in memory when it is read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.feedback.rules import FeedbackRule
from gateway.journal import archive, export, schema
from gateway.journal.export import LabelColumn, Wish
from gateway.journal.ids import new_prefix
from gateway.journal.reader import Segment as Reading
from gateway.journal.reader import segments
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment, boot_id
from gateway.ledger.reading import ResolvedLabel
from gateway.oip.datatypes import DATATYPES
from gateway.progress import Progress
from gateway.replay import report as reports
from gateway.replay import version
from gateway.replay.replay import Replayer
from gateway.settings import Settings
from loadtests.models import write

TINY = "tiny"
REPLAYED = {"trees": 200_000, "mlp": 20_000}
"""Other models that are replayed, and how many rows of them."""

BATCHES = (1, 2, 4, 8, 16, 32, 48, 64)
SEGMENT_BYTES = 32 << 20
LABELLED = 10
"""One row in so many has a label."""


class Measured(NamedTuple):
    """One number beside its reference and what is to be held: of the ratio, or of the value itself."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    hold_ratio: float | None = None
    hold: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value over reference."""
        return None if self.reference is None else self.value / self.reference

    @property
    def held(self) -> bool:
        """Whether what is to be held is."""
        ratio = self.ratio if self.ratio is not None else 0.0
        return (self.hold is None or self.value >= self.hold) and (self.hold_ratio is None or ratio >= self.hold_ratio)


class Made(NamedTuple):
    """A journal that was made, and the sizes of its batches in order."""

    data: Path
    model: str
    batches: list[int]
    rows: int


def make(data: Path, models: Path, model: str, rows: int) -> Made:
    """Write `rows` predictions as a server would have: columns, times, batches, seals."""
    loaded = version.load(Settings(models=models, data=data), model, 1)
    folder = data / "journal"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    done, sizes, now = 0, [], time.time_ns()
    names = [spec.name for spec in loaded.session.contract.outputs]
    while done < rows:
        segment = Segment(folder, _spec(model, loaded, now))
        count = min(segment.capacity, rows - done)
        segment.inputs["x"][:count] = rng.standard_normal((count, segment.inputs["x"].shape[1]), np.float32)
        at = 0
        while at < count:
            size = min(int(rng.choice(BATCHES)), count - at)
            results = loaded.session.run({"x": segment.inputs["x"][at : at + size]}, names)
            for name, array in zip(names, results, strict=True):
                segment.outputs[name][at : at + size] = array
            segment.batch[at : at + size] = size
            segment.run_ns[at : at + size] = int(rng.integers(20_000, 90_000))
            sizes.append(size)
            at += size
        segment.time_ns[:count] = now + np.arange(done, done + count) * 10_000
        segment.latency_ns[:count] = rng.integers(100_000, 900_000, count)
        segment.queue_ns[:count] = rng.integers(10_000, 90_000, count)
        segment.span[:count] = 1
        segment.status[:count] = 200
        segment._fill = count
        segment.finish()
        done += count
    return Made(data, model, sizes, rows)


def _spec(model: str, loaded: version.Version, now_ns: int) -> SegmentSpec:
    contract = loaded.session.contract
    columns = (
        *schema.meta_columns(),
        *(Column("input", spec.name, "<f4", tuple((spec.shape or ())[1:]), 0) for spec in contract.inputs),
        *(
            Column("output", spec.name, DATATYPES[spec.datatype].dtype.str, tuple((spec.shape or ())[1:]), 0)
            for spec in contract.outputs
        ),
    )
    spec = SegmentSpec(new_prefix().decode(), model, 1, loaded.sha256, now_ns, boot_id(), 1, columns)
    return msgspec.structs.replace(spec, capacity=SEGMENT_BYTES // spec.row_bytes)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one core that some work takes: what else the machine does meanwhile does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def reading(made: Made) -> Measured:
    """Sum the inputs of every segment, opened anew; the reference sums as much memory."""
    opened = [Reading.open(path) for path in segments(made.data / "journal")]
    views = [each.inputs["x"][: each.rows()] for each in opened]
    copies = [view.copy() for view in views]
    size = sum(view.nbytes for view in views)

    def through(arrays: Sequence[NDArray[np.float32]]) -> None:
        for array in arrays:
            array.sum(dtype=np.float32)

    def again() -> None:
        paths = segments(made.data / "journal")
        through([each.inputs["x"][: each.rows()] for each in map(Reading.open, paths)])

    through(views)
    return Measured("read as numpy", size / timed(again), "B/s", size / timed(lambda: through(copies)), hold=2e9)


def labels(made: Made) -> Iterator[ResolvedLabel]:
    """Labels of every tenth prediction, as the ledger gives them."""
    for path in segments(made.data / "journal"):
        segment = Reading.open(path)
        times = segment.column("time_ns")
        for row in range(0, segment.rows(), LABELLED):
            name = f"{segment.spec.prefix}{row:08x}"
            at = int(times[row])
            yield ResolvedLabel(
                *(name, 0, "sick", made.model, 1, at, bool(row & 1), "f", ("SYSTEM", "")), *(0, at + 1, at, 1, 1, 1)
            )


def exporting(made: Made, target: Path, **wish: Any) -> Measured:
    """Export everything with its labels."""
    found = list(labels(made))
    column = LabelColumn("sick", FeedbackRule(type="boolean"), iter(found))
    progress = Progress(0, "rows", sys.stderr)
    told: list[export.Exported] = []
    work = lambda: told.append(export.export(made.data, Wish(made.model, **wish), [column], target, progress))  # noqa: E731
    seconds = timed(work)
    assert told[0].rows == made.rows
    assert told[0].labelled == {"sick": len(found)}
    return Measured(f"export {target.suffix[1:]}{', flat' if wish else ''}", made.rows / seconds, "rows/s", hold=5e5)


def archiving(made: Made, folder: Path) -> Measured:
    """Archive every segment."""
    opened = [Reading.open(path) for path in segments(made.data / "journal")]
    seconds = timed(lambda: [archive.write(each, folder) for each in opened])
    return Measured("archive, compared", made.rows / seconds, "rows/s")


def replaying(made: Made, models: Path, where: str) -> Measured:
    """Replay bit for bit against the same session alone, on the same batches."""
    settings = Settings(models=models, data=made.data)
    loaded = version.load(settings, made.model, 1)
    wish = reports.Wish(made.model)
    found = reports.Report(wish)
    replayer = Replayer(made.data, lambda number: loaded, found, Progress(0, "rows", sys.stderr), None, lambda: None)
    names = [spec.name for spec in loaded.session.contract.outputs]
    width = (loaded.session.contract.inputs[0].shape or ())[1]
    blocks = np.random.default_rng(2).standard_normal(((8 << 20) // (4 * width), width), np.float32)
    spans = []
    at = 0
    for size in made.batches:
        at = 0 if at + size > len(blocks) else at
        spans.append((at, at + size))
        at += size

    def alone() -> None:
        run = loaded.session._session.run
        for start, stop in spans:
            run(names, {"x": blocks[start:stop]})

    ours = timed(replayer.run)
    theirs = timed(alone)
    assert found.reproduced
    assert sum(each.same for each in found.answers) == made.rows
    name = f"replay {made.model}, {where}"
    return Measured(name, made.rows / ours, "rows/s", made.rows / theirs, hold_ratio=0.8)


def measure(scratch: Path, rows: int) -> list[Measured]:
    """One round."""
    models, tiny = scratch / "models", scratch / TINY
    made = make(tiny, models, TINY, rows)
    exporting(made, tiny / "a.parquet")  # the first one imports what the others then have
    found = [
        reading(made),
        exporting(made, tiny / "a.parquet"),
        exporting(made, tiny / "a.parquet", flat=True),
        exporting(made, tiny / "a.csv", flat=True)._replace(hold=None),
        archiving(made, tiny / archive.FOLDER),
    ]
    for model, count in REPLAYED.items():
        other = make(scratch / model, models, model, min(count, rows))
        found.append(replaying(other, models, "segments"))
        archiving(other, scratch / model / archive.FOLDER)
        for path in segments(scratch / model / "journal"):
            path.unlink()
        found.append(replaying(other, models, "archive"))
    found.append(replaying(made, models, "segments"))
    for path in segments(tiny / "journal"):
        path.unlink()
    found.append(replaying(made, models, "archive"))
    return found


def table(rounds: Sequence[Sequence[Measured]]) -> list[str]:
    """The median of each row over all rounds."""
    found = [f"{'':<24}{'value':>16} {'reference':>16} {'ratio':>7}  held"]
    for each in zip(*rounds, strict=True):
        value = median(one.value for one in each)
        reference = f"{median(one.reference for one in each):,.0f}" if each[0].reference is not None else ""
        ratios = [one.ratio for one in each if one.ratio is not None]
        ratio = f"{median(ratios):.2f}" if ratios else ""
        whole = each[0]._replace(value=value)
        if ratios:
            whole = whole._replace(reference=value / median(ratios))
        no_hold = whole.hold is None and whole.hold_ratio is None
        verdict = "" if no_hold else "held" if whole.held else "BELOW"
        found.append(f"{whole.name:<24}{value:>16,.0f} {reference:>16} {ratio:>7}  {verdict} ({whole.unit})")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where something is below what is to be held."""
    parser = argparse.ArgumentParser(description="Numbers of the journal: read, export, archive, replay.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=Path, default=Path("examples"), help="a folder with the model tiny")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rounds = []
    for _ in range(args.rounds):
        scratch = Path(tempfile.mkdtemp(prefix="journal-"))
        try:
            write(scratch / "models", args.examples, (TINY, *REPLAYED))
            rounds.append(measure(scratch, args.rows))
        finally:
            shutil.rmtree(scratch)
    if args.json:
        print(json.dumps([[each._asdict() for each in one] for one in rounds]))
    else:
        print("\n".join(table(rounds)))
    return 0 if all(each.held for each in (rounds[0] if rounds else ())) else 1


if __name__ == "__main__":
    raise SystemExit(main())
