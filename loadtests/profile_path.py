"""Where each microsecond goes: the stages of an inference, in this process and without sockets.

``python -m loadtests.profile_path`` prints microseconds a request for decoding, the share of the run, and encoding,
over the bodies of the benchmark and for batches of 1 and 64, and then the candidates for decoding JSON by width. What
the benchmark's CPU time has beyond their sum is HTTP, the event loop and the kernel.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.errors import HeadgateError
from gateway.inference.batcher import Batch, Batcher
from gateway.inference.call import Call
from gateway.inference.engine import Engine, Outcome
from gateway.models.config import ModelConfig
from gateway.models.manifest import Lineage
from gateway.models.options import SessionOptions
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.oip.limits import Limits
from gateway.telemetry.counters import VersionCounters
from loadtests import bodies, decoders, models
from loadtests.bodies import Body
from loadtests.clock import seconds_per_call
from loadtests.processes import ROOT, choose_cores, pinned

STAGES = ("decode", "run", "encode")
LOADS = (
    ("tiny", "json", 1),
    ("tiny", "named", 1),
    ("tiny", "binary", 1),
    ("trees", "json", 1),
    ("trees", "binary", 1),
    ("trees", "binary", 16),
    ("mlp", "json", 1),
    ("mlp", "binary", 1),
    ("flights", "json", 1),
    ("identity", "json", 1),
    ("conv", "json", 1),
    ("conv", "binary", 1),
)
BATCHES = {"conv": (1, 4)}
USUAL_BATCHES = (1, 64)


class Line(NamedTuple):
    """Microseconds a request of each stage; `bytes` is the size of a body."""

    model: str
    form: str
    rows: int
    batch: int
    bytes: int
    stages: tuple[float, ...]


class _NoDoor:
    """Nobody waits for these calls."""

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """See Door."""

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """See Door."""
        raise error


class FastPath:
    """The path of the pipeline: requests read into the rows of a block, one run, replies written from forms.

    Each stage is a method without arguments that treats all requests of a batch, in the order of STAGES.
    """

    def __init__(self, model: str, session: Session, batch: Sequence[Body]) -> None:
        contract = msgspec.structs.replace(session.contract, batched=True)
        report = Report(contract, "", 0, False, "", {}, 0, 0.0, 1e-5, 2e-5, 0, (), (), 2)
        servable = Servable(model, 1, session, ModelConfig(), report, Lineage(), VersionCounters())
        self._engine = Engine(servable, Limits())
        self._servable = servable
        self._bodies = [(body.content, None if body.json_length is None else str(body.json_length)) for body in batch]
        self._calls: list[Call] = []
        self._batch: Batch | None = None
        self._outcome: Outcome | None = None

    def decode(self) -> None:
        """Bodies to rows of a block."""
        engine, door = self._engine, _NoDoor()
        for call in self._calls:
            if call.block is not None:
                engine.reader.release(call.block)
        self._calls = []
        for body, header in self._bodies:
            call = Call(self._servable, door, 0, 0)
            engine.reader.read(call, body, header)
            call.plan = engine.writer.plan(call.outputs)
            call.prediction_id = b"0" * 36
            call.plain = call.rows == 1 and call.block is not None
            self._calls.append(call)
        batch, _ = self._queue()
        self._batch = batch

    def _queue(self) -> tuple[Batch | None, list[Call]]:
        batcher = Batcher()
        for call in self._calls:
            batcher.add(call)
        return batcher.take(len(self._calls) * self._calls[0].rows, join_loose=True)

    def run(self) -> None:
        """One run for all of them."""
        assert self._batch is not None
        self._outcome = self._engine.execute(self._batch)

    def encode(self) -> None:
        """Outputs to bodies."""
        assert self._outcome is not None
        for part in self._outcome.parts:
            self._engine.writer.write(part.calls, part.names, part.arrays, part.first_row, plain=part.plain)


def profile(folder: Path, loads: Sequence[tuple[str, str, int]] = LOADS) -> list[Line]:
    """Time every stage for every load, with models from the repository `folder`."""
    lines: list[Line] = []
    for model, form, rows in loads:
        version = max(path for path in (folder / model).iterdir() if path.name.isdigit())
        session = Session((version / "model.onnx").read_bytes(), SessionOptions())
        sizes = BATCHES.get(model, USUAL_BATCHES)
        made = bodies.make(model, form, rows, max(sizes))
        for size in sizes:
            path = FastPath(model, session, made[:size])
            # In order: each stage works on what the one before it left.
            taken = tuple(seconds_per_call(getattr(path, stage)) / size * 1e6 for stage in STAGES)
            lines.append(Line(model, form, rows, size, len(made[0].content), taken))
    return lines


def table(lines: Sequence[Line]) -> str:
    """Microseconds a request, one line for each load and batch."""
    heads = ["request", "bytes", "batch", *(f"{stage}, us" for stage in STAGES), "sum"]
    shown = [f"| {heads[0]:<26} |" + "".join(f" {head:>11} |" for head in heads[1:])]
    shown.append(f"|{'-' * 28}|" + "------------:|" * (len(heads) - 1))
    for line in lines:
        name = f"{line.model}, {line.form}{'' if line.rows == 1 else f', {line.rows} rows'}"
        cells = [f"{line.bytes:,}", str(line.batch), *(f"{each:,.2f}" for each in (*line.stages, sum(line.stages)))]
        shown.append(f"| {name:<26} |" + "".join(f" {cell:>11} |" for cell in cells))
    return "\n".join(shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.profile_path", description="Microseconds by stage.")
    parser.add_argument("--only", choices=("stages", "decoders"), help="one table instead of both")
    args = parser.parse_args(argv)
    with pinned(choose_cores().server), tempfile.TemporaryDirectory(prefix="headgate-profile-") as name:
        if args.only != "decoders":
            models.write(Path(name), ROOT / "examples", sorted({model for model, _, _ in LOADS}))
            print(table(profile(Path(name))))
        if args.only is None:
            print()
        if args.only != "stages":
            print(decoders.table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
