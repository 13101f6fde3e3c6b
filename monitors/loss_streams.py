"""LossStreams: the classical detectors of `monitors.streams` on the losses of one version, as their labels arrive.

What they say are detections and no alarms: they hold no budget, and nobody is woken by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from monitors.streams import ADWIN, CUSUM, DDM, EWMA, HDDMA, HDDMW, KSWIN, Detector, PageHinkley
from monitors.types import Counts, Floats

DETECTORS: Mapping[str, Callable[[int], Detector]] = MappingProxyType(
    {
        "adwin": ADWIN,
        "cusum": CUSUM,
        "ddm": DDM,
        "ewma": EWMA,
        "hddm-a": HDDMA,
        "hddm-w": HDDMW,
        "kswin": KSWIN,
        "page-hinkley": PageHinkley,
    }
)
"""By the name that `model.toml` has for it, what makes a detector of so many streams with default settings."""


class LossStreams:
    """By name of a detector one with a stream for each loss."""

    def __init__(self, detectors: Sequence[str], losses: Sequence[str]) -> None:
        """Raises KeyError for a detector that there is none of."""
        self._losses = tuple(losses)
        self._detectors = {name: DETECTORS[name](len(self._losses)) for name in detectors}
        self._last_ns: dict[str, Counts] = {name: np.zeros(len(self._losses), np.int64) for name in detectors}

    def update(self, losses: Mapping[str, Floats], arrived_ns: int) -> None:
        """Take losses side by side, (n,) by name, in the order in which their labels arrived, the last one then."""
        if not self._detectors:
            return
        block = np.stack([losses[name] for name in self._losses], axis=1)
        for name, detector in self._detectors.items():
            detected = detector.update(block).any(axis=0)
            self._last_ns[name] = np.where(detected, arrived_ns, self._last_ns[name])

    def value(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By detector and loss: losses seen, those that were skipped, detections, and when the last one was."""
        return {
            name: {
                loss: {
                    "seen": int(detector.seen[place]),
                    "skipped": int(detector.skipped[place]),
                    "detections": int(detector.alarms[place]),
                    "last_ns": int(self._last_ns[name][place]) or None,
                }
                for place, loss in enumerate(self._losses)
            }
            for name, detector in self._detectors.items()
        }

    def to_bytes(self) -> bytes:
        """The state; equal losses give equal bytes."""
        saved = {name: (each.to_bytes(), self._last_ns[name].tolist()) for name, each in self._detectors.items()}
        return msgspec.msgpack.encode(saved)

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called; a detector that is new, or has other settings now, begins."""
        if not data:
            return
        for name, (state, last_ns) in msgspec.msgpack.decode(data, type=dict[str, tuple[bytes, list[int]]]).items():
            if name in self._detectors and len(last_ns) == len(self._losses):
                try:
                    self._detectors[name].load(state)
                except ValueError:
                    continue
                self._last_ns[name] = np.array(last_ns, np.int64)
