"""Journals as a server would have written them, made without one: for benchmarks of what is done with journals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from gateway.journal import schema
from gateway.journal.ids import new_prefix
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment, boot_id
from gateway.oip.datatypes import DATATYPES
from gateway.replay import version
from gateway.settings import Settings

TINY = "tiny"
BATCHES = (1, 2, 4, 8, 16, 32, 48, 64)
SEGMENT_BYTES = 32 << 20


class Made(NamedTuple):
    """A journal that was made, and the sizes of its batches in order."""

    data: Path
    model: str
    batches: list[int]
    rows: int


def make(data: Path, models: Path, model: str, rows: int) -> Made:
    """Write `rows` predictions as a server would have: columns, times, batches, seals."""
    sizes: list[int] = []
    for segment, batches in segments_of(data, models, model, rows):
        segment.finish()
        sizes += batches
    return Made(data, model, sizes, rows)


def segments_of(data: Path, models: Path, model: str, rows: int) -> Iterator[tuple[Segment, list[int]]]:
    """Segments of `rows` predictions in all, none of them sealed yet, each with the sizes of its batches."""
    loaded = version.load(Settings(models=models, data=data), model, 1)
    folder = data / "journal"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    done, now = 0, time.time_ns()
    names = [spec.name for spec in loaded.session.contract.outputs]
    while done < rows:
        segment = Segment(folder, _spec(model, loaded, now))
        count = min(segment.capacity, rows - done)
        segment.inputs["x"][:count] = rng.standard_normal((count, segment.inputs["x"].shape[1]), np.float32)
        at, sizes = 0, []
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
        done += count
        yield segment, sizes


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
