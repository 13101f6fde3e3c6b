"""The journal's own numbers: reading, exporting, replaying it, starting on it. Each beside its reference, in one run.

``python -m loadtests.journal [--rows N] [--rounds N] [--left MIB] [--quick]`` makes journals of models of the
benchmark, their answers computed in batches of 1 to 64 rows, and prints a table:

read     a pass over the inputs of a segment as numpy against a pass over an array in memory; bytes each second
export   30 floats a row (tiny), every tenth with a label; rows each second
archive  the same as Parquet files, compared with their segments; rows each second
replay   bit for bit, in the recorded batches, against onnxruntime alone in the same batches; rows each second. A run of
         tiny takes five microseconds, of trees (100 floats) and mlp (512 floats) as long as runs of real models do.
start    a server on a journal of 1 GiB whose writer was killed, until it answers, against the same on none; seconds.
         "sealed" is when all of it has been verified and sealed besides

Times are those of a clock on the wall, and what is judged is what is printed: medians over the rounds. A journal is in
memory when it is read.
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

import numpy as np
from numpy.typing import NDArray

from gateway.feedback.rules import FeedbackRule
from gateway.journal import archive, export, shelves
from gateway.journal.export import LabelColumn, Wish
from gateway.journal.reader import Segment, segments
from gateway.ledger.reading import ResolvedLabel
from gateway.progress import Progress
from gateway.replay import report as reports
from gateway.replay import version
from gateway.replay.replay import Replayer
from gateway.settings import Settings
from loadtests import restart
from loadtests.made import TINY, Made, make
from loadtests.models import write
from loadtests.processes import ROOT, choose_cores

REPLAYED = {"trees": 200_000, "mlp": 20_000}
"""Other models that are replayed, and how many rows of them."""

LABELLED = 10
"""One row in so many has a label."""


class Measured(NamedTuple):
    """One number beside its reference and what is to be held: of the ratio, or of the value, at least or at most."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    hold_ratio: float | None = None
    hold: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value over reference."""
        return None if self.reference is None else self.value / self.reference

    @property
    def held(self) -> bool:
        """Whether what is to be held is."""
        ratio = self.ratio if self.ratio is not None else 0.0
        return (
            (self.hold is None or self.value >= self.hold)
            and (self.most is None or self.value <= self.most)
            and (self.hold_ratio is None or ratio >= self.hold_ratio)
        )

    @property
    def verdict(self) -> str:
        """held or BELOW, or nothing where nothing is to be held."""
        if self.hold is None and self.most is None and self.hold_ratio is None:
            return ""
        return "held" if self.held else "BELOW"


def timed(work: Callable[[], Any]) -> float:
    """Seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def reading(made: Made) -> Measured:
    """Sum the inputs of every segment, opened anew; the reference sums as much memory."""
    opened = [Segment.open(path) for path in segments(made.data / "journal")]
    views = [each.inputs["x"][: each.rows()] for each in opened]
    copies = [view.copy() for view in views]
    size = sum(view.nbytes for view in views)

    def through(arrays: Sequence[NDArray[np.float32]]) -> None:
        for array in arrays:
            array.sum(dtype=np.float32)

    def again() -> None:
        paths = segments(made.data / "journal")
        through([each.inputs["x"][: each.rows()] for each in map(Segment.open, paths)])

    through(views)
    return Measured("read as numpy", size / timed(again), "B/s", size / timed(lambda: through(copies)), hold=2e9)


def labels(made: Made) -> Iterator[ResolvedLabel]:
    """Labels of every tenth prediction, as the ledger gives them."""
    for path in segments(made.data / "journal"):
        segment = Segment.open(path)
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
    opened = [Segment.open(path) for path in segments(made.data / "journal")]
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
        archiving(made, tiny / shelves.FOLDER),
    ]
    for model, count in REPLAYED.items():
        other = make(scratch / model, models, model, min(count, rows))
        found.append(replaying(other, models, "segments"))
        archiving(other, scratch / model / shelves.FOLDER)
        for path in segments(scratch / model / "journal"):
            path.unlink()
        found.append(replaying(other, models, "archive"))
    found.append(replaying(made, models, "segments"))
    for path in segments(tiny / "journal"):
        path.unlink()
    found.append(replaying(made, models, "archive"))
    return found


def starting(scratch: Path, models: Path, left: int) -> list[Measured]:
    """Start a server on a journal of so many bytes that nobody has sealed."""
    cores = choose_cores()
    size = restart.leave(models, scratch / "left", left)
    empty = restart.start(models, scratch / "empty", scratch / "log", cores)
    found = restart.start(models, scratch / "left", scratch / "log", cores)
    name = f"start, {size >> 20} MiB left"
    return [
        Measured(name, found.ready_s, "s", empty.ready_s, most=5.0),
        Measured(f"{name}, sealed", found.sealed_s, "s"),
    ]


def middle(rounds: Sequence[Sequence[Measured]]) -> list[Measured]:
    """Each row with its median over all rounds, and a reference that gives the median of its ratios."""
    found = []
    for each in zip(*rounds, strict=True):
        value = median(one.value for one in each)
        ratios = [one.ratio for one in each if one.ratio is not None]
        reference = value / median(ratios) if ratios else None
        found.append(each[0]._replace(value=value, reference=reference))
    return found


def table(rows: Sequence[Measured]) -> list[str]:
    """The rows for people."""
    found = [f"{'':<28}{'value':>16} {'reference':>16} {'ratio':>7}  held"]
    for each in rows:
        digits = 2 if each.unit == "s" else 0
        reference = "" if each.reference is None else f"{each.reference:,.{digits}f}"
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        value = f"{each.value:,.{digits}f}"
        found.append(f"{each.name:<28}{value:>16} {reference:>16} {ratio:>7}  {each.verdict} ({each.unit})")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where something is below what is to be held."""
    parser = argparse.ArgumentParser(description="Numbers of the journal: read, export, archive, replay, start.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--left", type=int, default=1024, metavar="MIB", help="size of the journal to start on")
    parser.add_argument("--quick", action="store_true", help="one small round: whether it works, not how fast it is")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples", help="a folder with the model tiny")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.rounds, args.left = 50_000, 1, 64
    rounds = []
    for _ in range(args.rounds):
        scratch = Path(tempfile.mkdtemp(prefix="journal-"))
        try:
            write(scratch / "models", args.examples, (TINY, *REPLAYED))
            write(scratch / "tiny-models", args.examples, (TINY,))
            found = measure(scratch, args.rows)
            rounds.append(found + starting(scratch, scratch / "tiny-models", args.left << 20))
        finally:
            shutil.rmtree(scratch)
    rows = middle(rounds)
    if args.json:
        print(json.dumps([[each._asdict() for each in one] for one in rounds]))
    else:
        print("\n".join(table(rows)))
    return 0 if all(each.held for each in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
