"""Watches: detectors with a budget, in the form in which alarms are drawn from them.

A `Watch` says how much evidence there is, how much an alarm takes, and, when asked, what the evidence is about. How it
is fed differs from one to the next, so `update` is no part of the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from monitors.evidence.budget import Budget
from monitors.evidence.conformal import ConformalDetector
from monitors.evidence.detector import Detector
from monitors.evidence.findings import Features, Finding, LossChange, feature_finding
from monitors.evidence.losses import LossDetector
from monitors.evidence.pack import pack, unpack
from monitors.evidence.reference import Reference
from monitors.evidence.selection import e_bh
from monitors.types import Floats

__all__ = [
    "BaselineWatch",
    "LabelWatch",
    "LossWatch",
    "RecentWatch",
    "ScoreWatch",
    "Watch",
]

WEEK_S = 604_800.0
SECOND_NS = 1_000_000_000
SMALL_EVIDENCE = 0.01
SCORES = 256
"""Of a block at most so many scores are bet on."""


class Watch(Protocol):
    """A detector with a budget: an alarm is due when `log_m` reaches `log_threshold`."""

    kind: str
    budget: Budget
    log_threshold: float

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        ...

    def finding(self) -> Finding:
        """What the evidence is about."""
        ...

    def restart(self) -> None:
        """Forget the evidence so far."""
        ...

    def to_bytes(self) -> bytes:
        """The state."""
        ...

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called."""
        ...


class BaselineWatch:
    """Are rows different from those the model was trained on?"""

    kind = "different-from-training"

    def __init__(self, features: Features, references: Sequence[Reference], budget: Budget, block_s: float) -> None:
        """`references`: one for each class of time. `block_s`: the length of a block in seconds."""
        self.features, self.budget = features, budget
        self.log_threshold = budget.log_threshold(block_s)
        self._detector = Detector(references)
        _check(features, references[0])

    def update(self, counts: npt.ArrayLike, began_ns: int, kind_of_time: int = 0) -> None:
        """Take a block of counts (F, B) that began then."""
        self._detector.update(counts, began_ns, kind_of_time)

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        return self._detector.log_m

    def finding(self) -> Finding:
        """Which features, since when, from what to what."""
        return feature_finding(self.features, self._detector, self.log_threshold)

    def restart(self) -> None:
        """Forget the evidence so far; the baseline stays."""
        self._detector.restart()

    def to_bytes(self) -> bytes:
        """The state."""
        return self._detector.to_bytes()

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not such a watch's."""
        self._detector.load(data)


class RecentWatch:
    """Are rows different from those of last week? The reference is the epoch before this one, whatever it held.

    Half of the budget is for what the detector may say wrongly, half for epochs that misrepresent their own truth: with
    e epochs in the budget's period each is allowed alarms / (2 e) of that. Silent until one epoch is complete, also
    after `restart`: a change that somebody has taken note of is the new normal, which is learned from then on.
    """

    kind = "changed-since-last-week"
    FIELDS = {"began": list, "gathered": np.ndarray, "reference": np.ndarray, "detector": bytes}

    def __init__(
        self,
        features: Features,
        budget: Budget,
        block_s: float,
        *,
        tolerance: npt.ArrayLike = 0.01,
        copies: npt.ArrayLike = 1.0,
        kinds: int = 1,
        epoch_s: float = WEEK_S,
        least_rows: int = 1000,
    ) -> None:
        """An epoch of `epoch_s` that has fewer than `least_rows` rows goes on until it has them.

        `kinds`: how many classes of time there are; each is compared with itself in the epoch before.
        """
        self.features, self.budget, self.epoch_s, self.least_rows = features, budget, epoch_s, least_rows
        self.log_threshold = budget.part(0.5).log_threshold(block_s)
        self._delta = min(budget.alarms * epoch_s / budget.period_s / 2, 0.1)
        self._tolerance, self._copies = tolerance, copies
        self._gathered = np.zeros((kinds, *features.valid.shape), dtype=np.int64)
        self._reference = np.zeros_like(self._gathered)
        self._began: int | None = None
        self._detector = self._build()

    def _build(self) -> Detector:
        return Detector(
            [
                Reference.build(
                    counts,
                    valid=self.features.valid,
                    ordered=self.features.ordered,
                    delta=self._delta / len(self._reference),
                    tolerance=self._tolerance,
                    copies=self._copies,
                )
                for counts in self._reference
            ]
        )

    @property
    def is_learning(self) -> bool:
        """Whether no epoch is complete yet, so that there is nothing to compare with."""
        return not self._reference.any()

    def update(self, counts: npt.ArrayLike, began_ns: int, kind_of_time: int = 0) -> None:
        """Take a block of counts (F, B) that began then; it counts as evidence first and as reference later."""
        if self._began is None:
            self._began = began_ns
        enough = int(self._gathered.sum(axis=(0, 2)).max()) >= self.least_rows
        if began_ns - self._began >= self.epoch_s * SECOND_NS and enough:
            self._reference, self._gathered = self._gathered, np.zeros_like(self._gathered)
            self._detector = self._build()
            self._began = began_ns
        if not self.is_learning:
            self._detector.update(counts, began_ns, kind_of_time)
        self._gathered[kind_of_time] += np.asarray(counts, dtype=np.int64)

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        return -np.inf if self.is_learning else self._detector.log_m

    def finding(self) -> Finding:
        """Which features, since when, from what to what."""
        return feature_finding(self.features, self._detector, self.log_threshold)

    def restart(self) -> None:
        """Forget evidence and reference, and begin an epoch with the next block."""
        self._began = None
        self._gathered = np.zeros_like(self._gathered)
        self._reference = np.zeros_like(self._gathered)
        self._detector = self._build()

    def to_bytes(self) -> bytes:
        """The state."""
        began = [] if self._began is None else [self._began]
        detector = self._detector.to_bytes()
        counts = {"gathered": self._gathered, "reference": self._reference}
        return pack(self.kind, {"began": began, "detector": detector, **counts})

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not such a watch's."""
        state = unpack(self.kind, data, self.FIELDS)
        if not state["gathered"].shape == state["reference"].shape == self._gathered.shape:
            raise ValueError(f"expected counts of shape {self._gathered.shape} in the state")
        self._began = state["began"][0] if state["began"] else None
        self._gathered, self._reference = state["gathered"], state["reference"]
        self._detector = self._build()
        self._detector.load(state["detector"])


class LossWatch:
    """Is a loss higher than it may be? One stream or several (slices, metrics), which share the budget."""

    kind = "performs-worse"

    def __init__(self, bounds: dict[str, float], budget: Budget, block_s: float) -> None:
        """`bounds`: by name of the loss, the mean that is still all right: the baseline's, its doubt, the tolerance."""
        if not bounds:
            raise ValueError("expected at least one loss to watch")
        self.budget, self.log_threshold = budget, budget.log_threshold(block_s)
        self._detectors = {name: LossDetector(bound) for name, bound in bounds.items()}

    def update(self, loss: str, values: npt.ArrayLike, counts: npt.ArrayLike | None, began_ns: int) -> None:
        """Take the losses of a block, in the order in which labels arrived; see `LossDetector.update`."""
        self._detectors[loss].update(values, counts, began_ns)

    def _logs(self) -> Floats:
        return np.array([each.log_m for each in self._detectors.values()])

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        return float(np.logaddexp.reduce(self._logs())) - float(np.log(len(self._detectors)))

    def finding(self) -> Finding:
        """Which losses, since when, and how high they are."""
        logs = self._logs()
        whole = np.logaddexp.reduce(logs)
        proved = e_bh(logs, self.log_threshold)
        shares = np.exp(logs - whole) if np.isfinite(whole) else np.zeros(len(logs))
        changes = []
        for (name, detector), share, sure in zip(self._detectors.items(), shares, proved, strict=True):
            rows, mean = detector.since
            if sure or share >= SMALL_EVIDENCE:
                changes.append(LossChange(name, bool(sure), float(share), detector.bound, mean, rows))
        changes.sort(key=lambda each: -each.evidence)
        best = list(self._detectors.values())[int(np.argmax(logs))]
        return Finding(best.began, best.since[0], losses=tuple(changes), unnamed=len(logs) - len(changes))

    def restart(self) -> None:
        """Forget the evidence so far."""
        for each in self._detectors.values():
            each.restart()

    def to_bytes(self) -> bytes:
        """The state."""
        return pack(self.kind, {name: each.to_bytes() for name, each in self._detectors.items()})

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not such a watch's."""
        state = unpack(self.kind, data, dict.fromkeys(self._detectors, bytes))
        for name, each in self._detectors.items():
            each.load(state[name])


class LabelWatch:
    """Do labels mean something else than in training, given the score? It looks at each score by itself.

    A shift of the scores alone is no evidence; labels that change sides are, also where as many errors are made as
    before. Every bin of the score is a class of its own, known before the label is, with a reference of its own.
    """

    kind = "labels-differ-from-training"

    def __init__(
        self,
        counts: npt.ArrayLike,
        classes: Sequence[str],
        budget: Budget,
        block_s: float,
        *,
        delta: float = 0.01,
        tolerance: float = 0.01,
    ) -> None:
        """`counts`: int64 (score bins, classes) of the labelled baseline; `classes`: what the labels are called."""
        table = np.asarray(counts, dtype=np.int64)
        self.budget, self.log_threshold = budget, budget.log_threshold(block_s)
        everywhere = np.ones((1, len(classes)), dtype=np.bool_)
        self.features = Features(("label",), (tuple(classes),), everywhere, ~everywhere)
        self._detector = Detector(
            [Reference.build(each[None], delta=delta / len(table), tolerance=tolerance) for each in table]
        )

    def update(self, counts: npt.ArrayLike, began_ns: int) -> None:
        """Take the labels of a block: int64 (score bins, classes), as they arrived."""
        self._detector.update_classes(np.asarray(counts, dtype=np.int64)[:, None, :], began_ns)

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        return self._detector.log_m

    def finding(self) -> Finding:
        """Since when, and how many labels of each class there were and were to be expected at these scores."""
        return feature_finding(self.features, self._detector, self.log_threshold)

    def restart(self) -> None:
        """Forget the evidence so far; the baseline stays."""
        self._detector.restart()

    def to_bytes(self) -> bytes:
        """The state."""
        return self._detector.to_bytes()

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not such a watch's."""
        self._detector.load(data)


class ScoreWatch:
    """Has the order of the model's scores come to mean something? Needs no training data, and cannot say since when.

    Scores come as counts of a block, of which a random sample is taken in random order: while their order means
    nothing that is as good as the order in which they came, and it is the same for any number of workers.
    """

    kind = "scores-out-of-order"

    def __init__(self, bins: int, budget: Budget, block_s: float, *, groups: int = 1, copies: float = 1.0) -> None:
        """`bins`: of the score histogram. `groups`: see `ConformalDetector`.

        `copies`: of rows that behave as so many of one, one is taken.
        """
        self.budget, self.log_threshold = budget, budget.log_threshold(block_s)
        self._copies = max(copies, 1.0)
        self._detector = ConformalDetector(bins, groups=groups)

    def update(self, scores: npt.ArrayLike, group: int = 0) -> None:
        """Take the score bins of a block, int (n,), in order of time."""
        self._detector.update(scores, group)

    def update_counts(self, counts: npt.ArrayLike, began_ns: int, group: int = 0) -> None:
        """Take how often each score bin came in a block, int64 (bins,)."""
        seen = np.asarray(counts, dtype=np.int64)
        # The random numbers are those of the block: what is read again gives the same evidence.
        dice = np.random.Generator(np.random.Philox(key=began_ns))
        taken = min(SCORES, int(seen.sum() / self._copies))
        drawn = dice.multivariate_hypergeometric(seen, taken, method="marginals")
        self.update(dice.permutation(np.repeat(np.arange(len(seen)), drawn)), group)

    @property
    def log_m(self) -> float:
        """The evidence, a natural logarithm."""
        return self._detector.log_sr

    def finding(self) -> Finding:
        """How many scores have been read."""
        return Finding(None, self._detector.rows)

    def restart(self) -> None:
        """Forget scores and evidence."""
        self._detector.restart()

    def to_bytes(self) -> bytes:
        """The state."""
        return self._detector.to_bytes()

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not such a watch's."""
        self._detector.load(data)


def _check(features: Features, reference: Reference) -> None:
    if not np.array_equal(features.valid, reference.valid):
        raise ValueError("expected names for the features and bins of the reference")
