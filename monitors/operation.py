"""Operation: requests of a version as the journal has them: how many, what became of them, and how long they took.

The workers count the same for Prometheus. This count is by the time at which requests came, survives restarts, and can
be made of the archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from monitors.performance.tally import floats
from monitors.types import Columns

OCTAVE = 4
"""Bins of the latency to each doubling: a quantile is known to a factor of 2^(1/4)."""

FASTEST_NS = 1_000
BINS = 28 * OCTAVE
"""From a microsecond to four minutes; what is beyond is in the outer bins."""

QUANTILES = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
CLASSES = ("answered", "refused", "failed")
"""Status 2xx, 4xx (499: the client had left), and 5xx or anything else."""


class Operation:
    """Counts of requests by outcome, and of their latencies by bin. Rows of `Columns` are requests here.

    `features` of them: "status" and "latency_ns", int64 (n,).
    """

    def __init__(self) -> None:
        self.outcomes = np.zeros(len(CLASSES), np.int64)
        self.latencies = np.zeros(BINS, np.int64)

    def update(self, columns: Columns) -> None:
        """Count requests."""
        status, latency_ns = (floats(columns.features.get(name), len(columns)) for name in ("status", "latency_ns"))
        place = np.where((status >= 200) & (status < 300), 0, np.where((status >= 400) & (status < 500), 1, 2))
        self.outcomes += np.bincount(place, minlength=len(CLASSES))
        octaves = np.log2(np.clip(np.nan_to_num(latency_ns) / FASTEST_NS, 1.0, 2.0 ** (BINS // OCTAVE)))
        bins = np.minimum((octaves * OCTAVE).astype(np.int64), BINS - 1)
        self.latencies += np.bincount(bins, minlength=BINS)

    def merge(self, other: Operation) -> None:
        """Add the requests of another."""
        self.outcomes += other.outcomes
        self.latencies += other.latencies

    def value(self) -> Mapping[str, Any]:
        """Requests by outcome, the share that failed, and quantiles of the latency, rounded up to the end of a bin."""
        requests = int(self.outcomes.sum())
        reached = np.cumsum(self.latencies)
        found: dict[str, Any] = {
            "requests": requests,
            **dict(zip(CLASSES, self.outcomes.tolist(), strict=True)),
            "failed_share": int(self.outcomes[2]) / requests if requests else None,
        }
        for name, share in QUANTILES.items():
            place = int(np.searchsorted(reached, share * requests)) + 1
            found[name] = FASTEST_NS * 2.0 ** (place / OCTAVE) / 1e9 if requests else None
        return found

    def to_bytes(self) -> bytes:
        """The counts; equal ones give equal bytes."""
        return msgspec.msgpack.encode((self.outcomes.tolist(), self.latencies.tolist()))

    def load(self, data: bytes) -> None:
        """Replace the counts by those of `to_bytes`. Raises ValueError where it is none."""
        try:
            outcomes, latencies = msgspec.msgpack.decode(data, type=tuple[list[int], list[int]])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no counts of requests: {error}") from error
        if (len(outcomes), len(latencies)) != (len(CLASSES), BINS):
            raise ValueError("the counts of requests have another form")
        self.outcomes, self.latencies = np.array(outcomes, np.int64), np.array(latencies, np.int64)
