"""The baseline of a version: frozen bins, the counts of the training data on them, and how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monitors import features
from monitors.baseline.layout import FIRST, SPECIAL, Layout
from monitors.features import Joint
from monitors.state import State
from monitors.types import Columns, Counts

FORMAT = 1
FILE = "baseline.msgpack"
HOURS = 168


class Facts(msgspec.Struct, frozen=True):
    """Where a baseline comes from. `learned`: from the first live rows, for want of training data.

    `quantiles`: how they were found and their error. `left_out`: columns that are in no bin, with the reason.
    """

    rows: int
    quantiles: str
    source: str = ""
    learned: bool = False
    left_out: dict[str, str] = {}
    from_ns: int | None = None
    to_ns: int | None = None


class _Document(msgspec.Struct, frozen=True):
    format: int
    facts: Facts
    layout: Layout
    state: bytes
    hours: bytes
    slices: dict[str, dict[str, bytes]]
    joint: bytes
    parts: dict[str, bytes]


class Baseline:
    """What live rows are compared with.

    `layout`: the bins. `state`: the counts of all rows. `hours` int64 [168, F, B] or None: the counts by hour of the
    week (UTC, Monday 0 h first) where there was a time. `slices`: by declared column, a state for each of its values.
    `joint`: sums of random Fourier features, for the drift of whole rows. `parts`: reference states of further
    monitors, as their `to_bytes` gave them, by the monitor's name.
    """

    def __init__(
        self,
        layout: Layout,
        state: State,
        facts: Facts,
        hours: Counts | None = None,
        slices: dict[str, dict[str, State]] | None = None,
        joint: Joint | None = None,
        parts: dict[str, bytes] | None = None,
    ) -> None:
        self.layout = layout
        self.state = state
        self.facts = facts
        self.hours = hours
        self.slices = slices or {}
        self.joint = joint
        self.parts = parts or {}

    def __repr__(self) -> str:
        return f"<Baseline of {self.facts.rows} rows, {len(self.layout.features)} features>"

    def new_state(self) -> State:
        """An empty state on the bins of this baseline."""
        return State(self.layout)

    def new_joint(self) -> Joint | None:
        """Empty sums for joint drift beside those of this baseline, None where it has none."""
        return None if self.joint is None else Joint(self.layout, self.joint.map)

    def to_bytes(self) -> bytes:
        """The baseline as one document; equal baselines give equal bytes."""
        hours = b"" if self.hours is None else self.hours.astype("<i8", copy=False).tobytes()
        slices = {
            name: {value: state.to_bytes() for value, state in sorted(states.items())}
            for name, states in sorted(self.slices.items())
        }
        parts = dict(sorted(self.parts.items()))
        joint = b"" if self.joint is None else features.pack(self.joint)
        document = _Document(FORMAT, self.facts, self.layout, self.state.to_bytes(), hours, slices, joint, parts)
        return msgspec.msgpack.encode(document)

    @classmethod
    def from_bytes(cls, data: bytes) -> Baseline:
        """The reverse of `to_bytes`. Raises ValueError where `data` is no baseline that this version reads."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the file is no baseline: {error}") from error
        if document.format != FORMAT:
            raise ValueError(f"the baseline has format {document.format}, this version reads {FORMAT}")
        layout = document.layout
        hours = None
        if document.hours:
            hours = np.frombuffer(document.hours, "<i8").astype(np.int64).reshape(HOURS, *layout.shape)
        slices = {
            name: {value: loaded(layout, state) for value, state in states.items()}
            for name, states in document.slices.items()
        }
        joint = features.unpack(layout, document.joint) if document.joint else None
        return cls(layout, loaded(layout, document.state), document.facts, hours, slices, joint, document.parts)

    def save(self, path: Path) -> None:
        """Write the document to `path`, which appears complete or not at all."""
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(self.to_bytes())
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a document. Raises ValueError as `from_bytes` does, OSError where there is no file."""
        return cls.from_bytes(path.read_bytes())

    def describe(self) -> dict[str, Any]:
        """The baseline for people: rows, method, and each feature's bins with their counts."""
        described = []
        for feature, counts in zip(self.layout.features, self.state.counts, strict=True):
            special = dict(zip(SPECIAL, counts[:FIRST].tolist(), strict=True))
            own = list(zip(feature.labels(), counts[FIRST : FIRST + feature.bins].tolist(), strict=True))
            described.append({"name": feature.name, "special": special, "bins": own})
        return {"facts": msgspec.to_builtins(self.facts), "features": described}


def loaded(layout: Layout, data: bytes) -> State:
    """A state of `layout` from its bytes."""
    state = State(layout)
    state.load(data)
    return state


def hour_of_week(columns: Columns) -> Counts:
    """int64 (n,): the hour of the week of each row, 0..167 from Monday 0 h UTC. The epoch began on a Thursday."""
    hours: Counts = (columns.time_ns.astype(np.int64) // 3_600_000_000_000 + 72) % HOURS
    return hours
