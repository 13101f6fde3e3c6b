"""Rule: how a model is watched, as `[monitor]` of its `model.toml` says it."""

from __future__ import annotations

import msgspec

from monitors.evidence.budget import Budget


class Rule(msgspec.Struct, frozen=True):
    """How a model is watched: `[monitor]` of its `model.toml`.

    `alarm_budget`: false alarms of each watch; `budgets`: of single ones, by name (training, recent, scores, labels,
    performance). `tolerance`: drift in PSI units that nobody wants to be told. `window_s`: what "now" means in the
    drift that is shown. `block_s`: how often evidence is looked at. `learn_rows`: rows that a baseline is learned from
    where the version has none, and `slices` the columns by whose values it is learned apart.
    """

    enabled: bool = True
    alarm_budget: str = "1 per model-year"
    budgets: dict[str, str] = {}
    tolerance: float = 0.01
    window_s: float = 86_400.0
    block_s: float = 300.0
    learn_rows: int = 5000
    slices: tuple[str, ...] = ()

    def budget(self, watch: str) -> Budget:
        """The budget of a watch. Raises ValueError where it cannot be read."""
        return Budget.parse(self.budgets.get(watch, self.alarm_budget))
