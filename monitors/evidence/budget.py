"""The alarm budget: how many false alarms somebody is willing to get, as a number that a detector can hold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["YEAR_S", "Budget"]

YEAR_S = 31_557_600.0
PERIODS_S = {
    "hour": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "month": YEAR_S / 12,
    "quarter": YEAR_S / 4,
    "year": YEAR_S,
}
WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?) per (?:([0-9]+(?:\.[0-9]+)?) )?(?:model-)?([a-z]+?)s?")


@dataclass(frozen=True)
class Budget:
    """At most `alarms` false alarms in `period_s` seconds of one model, on average over the long run."""

    alarms: float
    period_s: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "1 per model-year", "2 per 3 model-months" and the like. Raises ValueError for anything else."""
        match = WRITTEN.fullmatch(text.strip())
        if match is None or match[3] not in PERIODS_S or not float(match[1]) or not float(match[2] or 1):
            raise ValueError(f"expected an alarm budget such as '1 per model-year', got {text[:64]!r}")
        return cls(float(match[1]), float(match[2] or 1) * PERIODS_S[match[3]])

    @property
    def per_year(self) -> float:
        """False alarms in a year."""
        return self.alarms * YEAR_S / self.period_s

    def log_threshold(self, block_s: float) -> float:
        """ln c, where c is how many blocks of `block_s` seconds must pass, on average, before a false alarm.

        The whole budget is in c where every block holds rows; where some are empty, fewer are looked at and there are
        fewer false alarms. A budget of more than one alarm in a block is refused: it would be no budget.
        """
        if not block_s > 0:
            raise ValueError(f"expected blocks longer than 0 s, got {block_s}")
        blocks = self.period_s / (self.alarms * block_s)
        if blocks < 1:
            raise ValueError(f"expected an alarm budget of at most one for each block of {block_s:g} s")
        return math.log(blocks)

    def part(self, share: float) -> Budget:
        """A share of this budget."""
        return Budget(self.alarms * share, self.period_s)

    def __str__(self) -> str:
        for name, seconds in PERIODS_S.items():
            if math.isclose(seconds, self.period_s):
                return f"{self.alarms:g} per model-{name}"
        return f"{self.per_year:g} per model-year"
