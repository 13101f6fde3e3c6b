"""What the alarms do with the settings that a model has when nobody sets any: ``python -m loadtests.defaults``.

Rows go through a whole watcher with ``Rule()``: its blocks, tolerance, budget and bins. Printed are the delay from a
change to the alarm, in rows, for a shift of a given PSI in one of 20 features after a baseline of 10,000 rows; and how
many alarms come in as many blocks as a year has hours, each with a baseline of its own, where nothing changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from monitors.alarms import Alarm
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.baseline.layout import Numeric
from monitors.rule import Rule
from monitors.types import Columns, Floats
from monitors.watcher import Watcher

FEATURES, BASELINE, BLOCK = 20, 10_000, 64
QUIET = 200
"""Blocks before the change."""

MOST = 30_000
HOLD = 1300


def baseline_of(dice: np.random.Generator, rows: int = BASELINE) -> Baseline:
    """A baseline of normal features, with an answer that is one of them."""
    x = dice.standard_normal((rows, FEATURES)).astype(np.float32)
    return build(Arrays({f"x{place}": x[:, place] for place in range(FEATURES)}, {"y": x[:, 1]}))


def shift_of(baseline: Baseline, psi: float) -> float:
    """By how many standard deviations the first feature must move to have this PSI on its bins."""
    feature = baseline.layout.features[0]
    assert isinstance(feature, Numeric)
    ends = np.array([-np.inf, *feature.edges, np.inf])

    def shares(shift: float) -> Floats:
        return np.asarray(np.maximum(np.diff(ndtr(ends - shift)), 1e-300))

    def excess(shift: float) -> float:
        p, q = shares(0.0), shares(shift)
        return float(np.sum((q - p) * np.log(q / p))) - psi

    return float(brentq(excess, 1e-6, 3))


def block(dice: np.random.Generator, number: int, rule: Rule, shift: float) -> Columns:
    """The rows of a block, one feature of which has moved."""
    x = dice.standard_normal((BLOCK, FEATURES)).astype(np.float32)
    x[:, 0] += np.float32(shift)
    times = np.full(BLOCK, int(number * rule.block_s * 1e9))
    return Columns(times, {f"x{place}": x[:, place] for place in range(FEATURES)}, {"y": x[:, 1]})


def delay(seed: int, psi: float, rule: Rule) -> int:
    """Rows from the change to the alarm; MOST where there was none by then."""
    dice = np.random.default_rng(seed)
    baseline = baseline_of(dice)
    watcher, shift = Watcher("m", 1, rule, baseline), shift_of(baseline, psi)
    for number in range(QUIET + MOST // BLOCK):
        watcher.update(block(dice, number, rule, shift if number >= QUIET else 0.0))
        raised = watcher.close(int((number + 1) * rule.block_s * 1e9))
        if number < QUIET:
            assert not raised, "an alarm before the change"
        elif any(alarm.watch == "training" for alarm in raised):
            return (number - QUIET + 1) * BLOCK
    return MOST


def false_alarms(seed: int, blocks: int, rule: Rule) -> list[str]:
    """The watches that raised an alarm in so many blocks without a change."""
    dice = np.random.default_rng(seed)
    watcher = Watcher("m", 1, rule, baseline_of(dice))
    raised: list[Alarm] = []
    for number in range(blocks):
        watcher.update(block(dice, number, rule, 0.0))
        raised += watcher.close(int((number + 1) * rule.block_s * 1e9))
    return [alarm.watch for alarm in raised]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where the delay at PSI 0.1 is not held."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.defaults", description=__doc__)
    parser.add_argument("--runs", type=int, default=12, help="of each line (default: 12)")
    parser.add_argument("--tolerance", type=float, default=Rule().tolerance, help="in place of the default")
    parser.add_argument("--blocks", type=int, default=8766, help="of each stream without a change (default: 8766)")
    args = parser.parse_args(arguments)
    rule = Rule(tolerance=args.tolerance)
    held = True
    print("| PSI | tolerance | median delay, rows | nine of ten within |\n|---|---|---|---|")
    for psi in (0.05, 0.1, 0.25):
        found = [delay(seed, psi, rule) for seed in range(args.runs)]
        middle, tenth = np.percentile(found, [50, 90], method="higher")
        held &= psi != 0.1 or middle <= HOLD
        print(f"| {psi} | {rule.tolerance} | {middle:,.0f} | {tenth:,.0f} |", flush=True)
    if args.blocks:
        raised = [name for seed in range(args.runs) for name in false_alarms(1000 + seed, args.blocks, rule)]
        share = args.blocks * rule.block_s / 31_557_600
        print(f"without a change: {len(raised)} alarms in {args.runs * share:.2f} model-years ({', '.join(raised)})")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
