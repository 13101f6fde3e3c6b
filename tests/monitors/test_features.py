"""Joint drift: the discrepancy of whole rows against its exact value, and its behaviour with and without drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.features import Joint, centred, discrepancy
from monitors.types import Array, Columns

RNG = np.random.default_rng(13)


def dependent(rows: int, rho: float, shift: float = 0.0) -> dict[str, Array]:
    x = RNG.normal(size=(rows, 3))
    x[:, 1] = rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]
    return {"a": x[:, 0] + shift, "b": x[:, 1], "c": x[:, 2]}


def fed(baseline: Baseline, features: dict[str, Array]) -> Joint:
    joint = baseline.new_joint()
    assert joint is not None
    joint.update(Columns(np.zeros(len(features["a"]), dtype=np.int64), features))
    return joint


def exact(one: Array, other: Array, width: float) -> float:
    """The unbiased squared discrepancy with a Gaussian kernel (Gretton et al. 2012, lemma 6)."""

    def kernel(x: Array, y: Array) -> Array:
        square = ((x[:, None, :] - y[None, :, :]) ** 2).sum(axis=2)
        value: Array = np.exp(-square / (2 * width**2))
        return value

    m, n = len(one), len(other)
    within = [(kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (one, other)]
    return float(within[0] + within[1] - 2 * kernel(one, other).sum() / (m * n))


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_the_discrepancy_is_near_the_exact_one_of_the_kernel(shift: float) -> None:
    reference, current = dependent(1500, 0.0), dependent(1500, 0.0, shift)
    baseline = build(Arrays(reference))
    assert baseline.joint is not None
    found = discrepancy(baseline.joint, fed(baseline, current))
    assert found is not None
    scales = [centred(reference[name]) for name in "abc"]
    points = [
        np.stack([np.clip((side[name] - c) / s, -4, 4) for name, (c, s) in zip("abc", scales, strict=True)], axis=1)
        for side in (reference, current)
    ]
    distances = np.sqrt(((points[0][:500, None] - points[0][None, :500]) ** 2).sum(axis=2))
    width = float(np.median(distances[np.triu_indices(500, 1)]))
    value = exact(points[0], points[1], width)
    # The kernel's error is about 1/sqrt(2 D) = 0.09 for a pair and relative to the discrepancy for a mean.
    assert found[0] == pytest.approx(value, abs=4 * found[1] + 0.3 * value)


def test_drift_of_the_dependence_alone_is_seen() -> None:
    baseline = build(Arrays(dependent(10_000, 0.0)))
    assert baseline.joint is not None
    changed = discrepancy(baseline.joint, fed(baseline, dependent(3000, 0.9)))
    same = discrepancy(baseline.joint, fed(baseline, dependent(3000, 0.0)))
    assert changed is not None
    assert same is not None
    assert changed[0] > 20 * changed[1]
    assert abs(same[0]) < 4 * same[1]


def test_the_null_deviation_bounds_a_simulation_and_the_estimate_is_unbiased() -> None:
    baseline = build(Arrays(dependent(20_000, 0.3)))
    assert baseline.joint is not None
    found = [discrepancy(baseline.joint, fed(baseline, dependent(400, 0.3))) for _ in range(200)]
    values = np.array([each[0] for each in found if each is not None])
    bound = found[0][1] if found[0] is not None else math.nan
    assert values.std() < bound
    # The baseline is the same in all of them, so its own error is common to all.
    assert abs(values.mean()) < bound / 2


def test_fewer_than_two_rows_say_nothing() -> None:
    baseline = build(Arrays(dependent(100, 0.0)))
    assert baseline.joint is not None
    assert discrepancy(baseline.joint, fed(baseline, dependent(1, 0.0))) is None


def test_categories_and_missing_values_take_part() -> None:
    words = np.array(["a", "b", "c", None], dtype=object)

    def rows(n: int, share: float) -> dict[str, Array]:
        word = np.where(RNG.random(n) < share, "a", words[RNG.integers(0, 4, n)])
        number = RNG.normal(size=n)
        number[RNG.random(n) < 0.1] = math.nan
        return {"a": number, "word": word.astype(object)}

    baseline = build(Arrays(rows(5000, 0.1)))
    assert baseline.joint is not None
    changed = discrepancy(baseline.joint, fed(baseline, rows(3000, 0.7)))
    same = discrepancy(baseline.joint, fed(baseline, rows(3000, 0.1)))
    assert changed is not None
    assert same is not None
    assert changed[0] > 20 * changed[1]
    assert abs(same[0]) < 5 * same[1]


def test_the_map_travels_with_the_baseline() -> None:
    baseline = build(Arrays(dependent(300, 0.0)))
    again = Baseline.from_bytes(baseline.to_bytes())
    rows = dependent(50, 0.0)
    assert fed(again, rows).to_bytes() == fed(baseline, rows).to_bytes()
    other = build(Arrays(dependent(300, 0.0)))
    assert other.joint is not None
    with pytest.raises(ValueError, match="another baseline"):
        Joint(baseline.layout, other.joint.map)
    with pytest.raises(ValueError, match="two different maps"):
        fed(baseline, rows).merge(other.joint)


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, 1.0], [3.0, 3.0], [1e308, -1e308], [5e-324, 0.0]])
def test_a_centre_and_a_scale_exist_for_any_values(values: list[float]) -> None:
    centre, scale = centred(np.array(values))
    assert math.isfinite(centre)
    assert 0 < scale < math.inf
