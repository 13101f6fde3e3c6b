"""Choosing predictions for people to look at, from the journal: a fair sample, or those the model was least sure of."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from gateway.errors import InvalidRequest
from gateway.journal import ids
from gateway.journal.reader import Segment
from gateway.types import Array

Strategy = Literal["sampled", "low-confidence"]

ANSWERED = 200
MAX_SCAN_ROWS = 5_000_000
"""Rows that are looked at, the newest first."""


class Chosen(NamedTuple):
    """A row of a prediction; those of lower score come first."""

    score: float
    prediction_id: str
    part: int
    version: int


def choose(
    segments: Iterable[Segment],
    strategy: Strategy,
    count: int,
    *,
    output: str = "",
    version: int = 0,
    since_ns: int = 0,
) -> tuple[list[Chosen], int]:
    """`count` answered rows, and how many there were to choose from. `segments`: of one model, the newest first.

    Raises InvalidRequest where the outputs tell no confidence.
    """
    best: list[Chosen] = []
    scanned = 0
    for segment in segments:
        if version and segment.spec.version != version:
            continue
        rows = segment.rows()
        wanted = (segment.column("status")[:rows] == ANSWERED) & (segment.column("time_ns")[:rows] >= since_ns)
        at = np.flatnonzero(wanted)
        scanned += len(at)
        scores = _chances(segment, at) if strategy == "sampled" else _confidence(segment, output)[at]
        if len(at) > count:
            some = np.argpartition(scores, count)[:count]
            at, scores = at[some], scores[some]
        begins = np.flatnonzero(segment.column("span")[:rows])
        firsts = begins[np.searchsorted(begins, at, "right") - 1] if len(begins) else at
        best += [
            Chosen(score, str(ids.PredictionId(segment.spec.prefix, first)), row - first, segment.spec.version)
            for score, row, first in zip(scores.tolist(), at.tolist(), firsts.tolist(), strict=True)
        ]
        best = heapq.nsmallest(count, best)
        if scanned >= MAX_SCAN_ROWS:
            break
    return best, scanned


def _chances(segment: Segment, rows: Array) -> Array:
    """A number in [0, 1) for each row that looks random and is always the same: the least of them are a fair sample.

    SplitMix64 (Steele, Lea and Flood, 2014) of the row and the name of its segment.
    """
    seed = np.uint64(xxhash.xxh3_64_intdigest(segment.spec.prefix.encode()))
    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scores: Array = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
    return scores


def _confidence(segment: Segment, output: str) -> Array:
    """The probability of the likeliest class for each row; of a single probability p the larger of p and 1 - p."""
    names = [name for name, array in segment.outputs.items() if array.dtype.kind == "f" and output in ("", name)]
    for name in names:
        shares = segment.outputs[name].reshape(segment.spec.capacity, -1)[: segment.rows()].astype(np.float64)
        if not shares.shape[1]:
            continue
        # What is no number is what somebody should look at first.
        with np.errstate(invalid="ignore"):
            fits = np.nanmin(shares, initial=0) >= 0 and np.nanmax(shares, initial=0) <= 1.000001
        if fits:
            top = shares.max(axis=1) if shares.shape[1] > 1 else np.maximum(shares[:, 0], 1 - shares[:, 0])
            return np.nan_to_num(top, nan=0.0)
    what = f"output {output[:64]!r} is" if output else "no output is"
    raise InvalidRequest(f"model {segment.spec.model!r}: {what} kept as probabilities from 0 to 1", field="output")
