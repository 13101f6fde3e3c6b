"""A detector of change in bin counts, with a guaranteed mean time between false alarms.

Shiryaev-Roberts e-detector (Shin, Ramdas, Rinaldo, "E-detectors", 2022): M_t = Σ_s E(s..t), the evidence of the blocks
since every start s. Before any change the expectation of M at the time of an alarm is at most the expected
number of blocks until then, so that an alarm at M >= c comes, on average, after c blocks or more. Leaving starts out
keeps that, and so does the average over features, however they depend on one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monitors.evidence.multinomial import log_evidence
from monitors.evidence.pack import pack, unpack
from monitors.evidence.reference import Reference
from monitors.evidence.starts import kept
from monitors.types import Counts, Floats

__all__ = ["Detector", "Reading"]

KIND = "evidence.detector"
FIELDS = {"blocks": int, "total": np.ndarray, "starts": np.ndarray, "began": np.ndarray, "before": np.ndarray}


@dataclass(frozen=True)
class Reading:
    """What a detector says after a block. Logarithms are natural.

    `log_m`: of the average over features, to be compared with ln c. `features` (F,): log M of each feature.
    `start`: the kept start with the most evidence, None before the first block; `began`: the mark given with its block,
    which estimates when the change began. `since` (F, B): counts from there on. `expected` (F, B): the shares that the
    references lead one to expect of them, mixed by class of time. `share` (F,): each feature's share of the evidence.
    """

    log_m: float
    features: Floats
    start: int | None
    began: int
    since: Counts
    expected: Floats
    share: Floats


class Detector:
    """Watches blocks of counts (F, B) against one reference for each class of time, usually one in all.

    With several references (hours of the week, say) a block names its class, by something that is known before its
    rows are. The evidence of the classes multiplies, half of the capital staying out of each: Π (1 + E) / 2, so that
    classes in which nothing happens cost little. Classes share one set of starts, and each its `delta`.
    """

    def __init__(self, references: Sequence[Reference]) -> None:
        """Raises ValueError where there is no reference or they differ in shape."""
        shapes = {each.counts.shape for each in references}
        if len(shapes) != 1:
            raise ValueError(f"expected references of one shape (features, bins), got {sorted(shapes)}")
        self.references = tuple(references)
        self._shape = (len(self.references), *references[0].counts.shape)
        self.restart()

    def restart(self) -> None:
        """Forget all evidence; what is known of the baseline stays."""
        self.blocks = 0
        self._total = np.zeros(self._shape, dtype=np.int64)
        self._starts = np.zeros(0, dtype=np.int64)
        self._began = np.zeros(0, dtype=np.int64)
        self._before = np.zeros((0, *self._shape), dtype=np.int64)
        self._evidence = np.zeros((0, *self._shape[:2]))

    def update(self, counts: npt.ArrayLike, began: int = 0, kind_of_time: int = 0) -> None:
        """Take the next block: int64 (F, B), its beginning as an integer mark (Unix ns), and its class.

        A block without rows changes nothing. Raises ValueError for a wrong shape, class, or negative counts.
        """
        block = np.asarray(counts, dtype=np.int64)
        if not 0 <= kind_of_time < self._shape[0]:
            raise ValueError(f"expected a class of time below {self._shape[0]}, got {kind_of_time}")
        if block.shape != self._shape[1:]:
            raise ValueError(f"expected counts of shape {self._shape[1:]}, got {block.shape}")
        blocks = np.zeros(self._shape, dtype=np.int64)
        blocks[kind_of_time] = block
        self.update_classes(blocks, began)

    def update_classes(self, counts: npt.ArrayLike, began: int = 0) -> None:
        """Take the next block with rows of several classes: int64 (H, F, B), H classes. Otherwise as `update`."""
        block = np.asarray(counts, dtype=np.int64)
        if block.shape != self._shape or np.any(block < 0):
            raise ValueError(f"expected counts >= 0 of shape {self._shape}, got {block.shape}")
        if not block.any():
            return
        stay = kept(self._starts, self.blocks + 1)
        self._starts = np.append(self._starts[stay], self.blocks)
        self._began = np.append(self._began[stay], began)
        self._before = np.concatenate([self._before[stay], self._total[None]])
        self._evidence = np.concatenate([self._evidence[stay], np.zeros((1, *self._shape[:2]))])
        self.blocks += 1
        self._total += block
        for kind_of_time in np.flatnonzero(block.any(axis=(1, 2))).tolist():
            self._weigh(kind_of_time)

    def _weigh(self, kind_of_time: int) -> None:
        since = self._total[kind_of_time] - self._before[:, kind_of_time]
        self._evidence[:, kind_of_time] = log_evidence(self.references[kind_of_time], since)

    @property
    def log_m(self) -> float:
        """The evidence alone, as in `reading`."""
        if not len(self._starts):
            return -float("inf")
        return float(np.logaddexp.reduce(self._by_start(), axis=None)) - float(np.log(self._shape[1]))

    def _by_start(self) -> Floats:
        """log E of all classes together, (S, F)."""
        if self._shape[0] == 1:
            return self._evidence[:, 0]
        return np.asarray((np.logaddexp(0.0, self._evidence) - np.log(2)).sum(axis=1))

    def reading(self) -> Reading:
        """What the blocks so far say. Before the first block log M is minus infinity: no start, no evidence."""
        classes, features, bins = self._shape
        if not len(self._starts):
            nothing = np.full(features, -np.inf)
            table = np.zeros((features, bins), np.int64)
            return Reading(-np.inf, nothing, None, 0, table, table.astype(np.float64), np.zeros(features))
        evidence = self._by_start()
        each = np.logaddexp.reduce(evidence, axis=0)
        whole = float(np.logaddexp.reduce(each))
        start = int(np.argmax(np.logaddexp.reduce(evidence, axis=1)))
        since = self._total - self._before[start]
        shares = np.stack([each.share for each in self.references])
        rows = since.sum(axis=2, keepdims=True)
        return Reading(
            log_m=whole - float(np.log(features)),
            features=each,
            start=start,
            began=int(self._began[start]),
            since=since.sum(axis=0),
            expected=(shares * rows).sum(axis=0) / np.maximum(rows.sum(axis=0), 1),
            share=np.exp(each - whole),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        arrays = (self._total, self._starts, self._began, self._before, self._evidence)
        return sum(each.nbytes for each in arrays)

    def to_bytes(self) -> bytes:
        """The state, without the references; equal blocks give equal bytes."""
        state: Mapping[str, Any] = {
            "blocks": self.blocks,
            "total": self._total,
            "starts": self._starts,
            "began": self._began,
            "before": self._before,
        }
        return pack(KIND, state)

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not that of such a detector."""
        state = unpack(KIND, data, FIELDS)
        starts = len(state["starts"])
        expected = {"total": self._shape, "began": (starts,), "before": (starts, *self._shape)}
        for name, shape in expected.items():
            if state[name].shape != shape:
                raise ValueError(f"expected {name} of shape {shape} in the state, got {state[name].shape}")
        self.blocks = state["blocks"]
        self._total, self._starts, self._began = state["total"], state["starts"], state["began"]
        self._before = state["before"]
        self._evidence = np.zeros((starts, *self._shape[:2]))
        for kind_of_time in range(self._shape[0]):
            self._weigh(kind_of_time)
