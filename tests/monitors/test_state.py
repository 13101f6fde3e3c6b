"""Counts on frozen bins: exact whatever the way, the type, the partition and the order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import fixed
from monitors.baseline.build import Arrays, build
from monitors.baseline.freeze import numeric
from monitors.baseline.layout import FIRST, MINUS_INF, MISSING, OTHER, PLUS_INF, UNSEEN, Category, Layout, Numeric
from monitors.quality.duplicates import Duplicates
from monitors.state import State
from monitors.types import Array, Columns

RNG = np.random.default_rng(20260731)
FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


def columns(outputs: Mapping[str, Array] | None = None, /, **features: Array) -> Columns:
    rows = len(next(iter({**features, **(outputs or {})}.values())))
    return Columns(np.zeros(rows, dtype=np.int64), features, outputs or {})


def layout_of(**features: Array) -> Layout:
    return build(Arrays(features)).layout


@cache
def layout_of_kind(kind: str) -> Layout:
    return layout_of(x=KINDS[kind])


def by_hand(feature: Numeric, values: Array, bins: int) -> Array:
    """The counts by one comparison after the other, in Python."""
    counts = np.zeros(bins, dtype=np.int64)
    for value in values.astype(np.float64).tolist():
        if math.isnan(value):
            counts[MISSING] += 1
        elif math.isinf(value):
            counts[PLUS_INF if value > 0 else MINUS_INF] += 1
        else:
            own = sum(value >= edge for edge in feature.edges)
            strange = feature.points[own] and value != feature.edges[own - 1]
            counts[UNSEEN if strange else FIRST + own] += 1
    return counts


KINDS: dict[str, Array] = {
    "normal": RNG.normal(size=3000),
    "shifted": RNG.normal(size=3000) + 1000.0,
    "far from zero": RNG.normal(size=3000) * 1e-3 + 1000.0,
    "large": RNG.normal(size=3000) * 1e6,
    "heavy": np.exp(RNG.normal(size=3000) * 3),
    "skewed": np.exp(RNG.normal(size=3000) * 1.5),
    "zeros and more": np.where(RNG.random(3000) < 0.6, 0.0, RNG.exponential(size=3000)),
    "flags": (RNG.random(3000) < 0.3).astype(float),
    "few": RNG.integers(-3, 9, 3000).astype(float),
    "many whole": RNG.integers(-90_000, 90_000, 3000).astype(float),
    "constant": np.full(100, 0.1),
    "constant whole": np.full(100, 7.0),
    "huge": RNG.normal(size=3000) * 1e300,
    "tiny": RNG.normal(size=3000) * 1e-300,
    "two": np.array([-1.7e308, 1.7e308]),
    "one": np.array([3.25]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_are_counted_as_by_hand_whatever_their_distribution_was(kind: str, dtype: type) -> None:
    layout = layout_of(x=KINDS[kind])
    feature = layout.features[0]
    assert isinstance(feature, Numeric)
    edges = np.array(feature.edges)
    with np.errstate(over="ignore"):
        near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), edges + 0.5, -edges])
        values = np.concatenate([KINDS[kind][:500], near, [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45]])
        values = np.concatenate([values, [5e-324, -5e-324, 3e38, -3e38, 2.0**53, -(2.0**63)]]).astype(dtype)
    state = State(layout)
    state.update(columns(x=values))
    assert state.counts[0].tolist() == by_hand(feature, values, layout.shape[1]).tolist()
    assert state.counts.sum() == len(values)


@pytest.mark.parametrize("kind", ["normal", "shifted", "large", "skewed", "few", "flags", "constant whole"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_grid_and_the_comparison_with_every_edge_count_alike(kind: str, data: st.DataObject) -> None:
    layout = layout_of_kind(kind)
    fast = layout.features[0]
    assert isinstance(fast, Numeric)
    assert fast.grid is not None
    close = st.sampled_from([*fast.edges, *np.nextafter(fast.edges, -np.inf), *(edge + 0.25 for edge in fast.edges)])
    values = np.array(data.draw(st.lists(FLOAT32 | close, max_size=60)), dtype=data.draw(st.sampled_from("fd")))
    slow = Layout((Numeric(**{**{f: getattr(fast, f) for f in fast.__struct_fields__}, "grid": None}),))
    states = [State(layout), State(slow)]
    for state in states:
        state.update(columns(x=values))
    assert states[0].counts.tolist() == states[1].counts.tolist()
    for name in ("below", "above", "held", "sums", "squares"):
        assert getattr(states[0], name).tolist() == getattr(states[1], name).tolist(), name


def mixed_rows(rows: int) -> dict[str, Array]:
    rng = np.random.default_rng(rows)
    numbers = {name: rng.choice(values, rows) for name, values in KINDS.items()}
    for values in numbers.values():
        values[rng.random(rows) < 0.05] = math.nan
        values[rng.random(rows) < 0.02] = rng.choice([math.inf, -math.inf, 1e30, -1e30])
    words = np.array(["a", "b", "c", None, "zz", "é"], dtype=object)
    return {**numbers, "word": rng.choice(words, rows), "count": rng.integers(-(2**63), 2**63 - 1, rows)}


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 700), max_size=6), seed=st.integers(0, 2**32 - 1))
def test_any_partition_order_and_merge_gives_the_same_bytes(cuts: list[int], seed: int) -> None:
    rows = mixed_rows(700)
    layout = MIXED
    whole = State(layout)
    whole.update(columns(**rows))
    order = np.random.default_rng(seed).permutation(700)
    parts = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 700], strict=True):
        part = State(layout)
        part.update(columns(**{name: values[order[start:stop]] for name, values in rows.items()}))
        parts.append(part)
    np.random.default_rng(seed + 1).shuffle(parts)
    while len(parts) > 1:
        parts[0].merge(parts.pop())
    restored = State(layout)
    restored.load(parts[0].to_bytes())
    assert restored.to_bytes() == whole.to_bytes()


MIXED = layout_of(**mixed_rows(2000))


def test_taking_a_part_away_undoes_its_merge() -> None:
    first, second = State(MIXED), State(MIXED)
    first.update(columns(**mixed_rows(300)))
    second.update(columns(**mixed_rows(200)))
    alone = first.to_bytes()
    first.merge(second)
    assert first.to_bytes() != alone
    first.subtract(second)
    assert first.to_bytes() == alone


@pytest.mark.parametrize("missing", [0.0, 0.01, 0.4])
def test_a_matrix_by_rows_by_columns_and_separate_columns_count_alike(missing: float) -> None:
    matrix = RNG.normal(size=(5000, 40)).astype(np.float32)
    matrix[:, 3] = RNG.integers(0, 5, 5000)
    matrix[:, 4:8] *= 1e6
    matrix[:, 11] = np.exp(matrix[:, 11] * 4)
    matrix[RNG.random(matrix.shape) < missing] = math.nan
    names = [f"f{place}" for place in range(40)]
    layout = layout_of(**{name: matrix[:, place] for place, name in enumerate(names)})
    ways = (matrix, np.asfortranarray(matrix), matrix.astype(np.float64), np.repeat(matrix, 2, axis=1)[:, ::2])
    found = set()
    for way in ways:
        state = State(layout)
        state.update(columns(**{name: way[:, place] for place, name in enumerate(names)}))
        found.add(state.to_bytes())
        for row, feature in enumerate(layout.features):
            assert isinstance(feature, Numeric)
            counts = by_hand(feature, matrix[:300, row], layout.shape[1])
            part = State(layout)
            part.update(columns(**{name: way[:300, place] for place, name in enumerate(names)}))
            assert part.counts[row].tolist() == counts.tolist()
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "g"])
def test_every_type_of_number_is_counted(dtype: str) -> None:
    values = np.array([0, 1, 1, 0, 1], dtype=dtype)
    layout = layout_of(x=np.array([0.0, 1.0] * 10))
    state = State(layout)
    state.update(columns(x=values))
    feature = layout.features[0]
    assert state.counts[0, FIRST : FIRST + feature.bins].tolist() == [0, 2, 3, 0]


def test_a_fraction_where_the_training_data_held_two_whole_numbers_is_unseen() -> None:
    state = State(layout_of(x=np.array([0.0, 1.0] * 10)))
    state.update(columns(x=np.array([0.0, 0.5, 1.0, 1.5, 2.5, -0.5])))
    assert state.counts[0].tolist() == [0, 0, 0, 2, 0, 1, 1, 1, 1]
    assert state.finite[0] == 4


def test_text_where_a_number_was_expected_is_unseen_and_none_is_missing() -> None:
    state = State(layout_of(x=KINDS["normal"]))
    state.update(columns(x=np.array(["1.5", None, 0.5, True, 10**400, -(10**400), np.float32(2)], dtype=object)))
    assert state.counts[0, [UNSEEN, MISSING, PLUS_INF, MINUS_INF]].tolist() == [1, 1, 1, 1]
    assert state.finite[0] == 3


def test_a_category_tells_known_other_and_unseen_values_apart() -> None:
    rare = [f"rare{place}" for place in range(300)]
    layout = layout_of(x=np.array(["a"] * 50 + ["b"] * 40 + rare, dtype=object))
    feature = layout.features[0]
    assert isinstance(feature, Category)
    assert feature.values[:2] == ("a", "b")
    assert feature.bins == 200
    state = State(layout)
    state.update(columns(x=np.array(["a", "b", "b", "rare299", "new", None, math.nan, b"a", ["odd"]], dtype=object)))
    assert state.counts[0, FIRST : FIRST + 2].tolist() == [2, 2]
    assert state.counts[0, [OTHER, UNSEEN, MISSING]].tolist() == [1, 2, 2]


def test_one_category_may_come_as_text_or_as_number() -> None:
    layout = build(Arrays({"x": np.array([1, 2, 3, 3])}), categorical=["x"]).layout
    states = []
    for values in ([1, 2, 3], [1.0, 2.0, 3.0], [b"1", b"2", b"3"], ["1", "2", "3"], [True, 2, 3.0]):
        states.append(State(layout))
        states[-1].update(columns(x=np.array(values, dtype=object)))
    numbers = State(layout)
    numbers.update(columns(x=np.array([1.0, 2.0, 3.0], dtype=np.float32)))
    assert {state.to_bytes() for state in [*states, numbers]} == {numbers.to_bytes()}


def test_a_column_that_does_not_come_is_absent_and_missing() -> None:
    layout = layout_of(x=KINDS["normal"], y=KINDS["few"])
    state = State(layout)
    state.update(columns(y=KINDS["few"][:10], z=np.zeros(10)))
    assert state.absent.tolist() == [10, 0]
    assert state.counts[:, MISSING].tolist() == [10, 0]


def test_an_input_of_several_values_is_counted_value_by_value() -> None:
    matrix = RNG.normal(size=(800, 3)).astype(np.float32)
    baseline = build(Arrays({"x": matrix, "word": np.array(["a", "b"] * 400, dtype=object)}))
    assert baseline.layout.names == ("x[0]", "x[1]", "x[2]", "word")
    apart = {f"x[{place}]": matrix[:, place] for place in range(3)}
    monitors = [State(baseline.layout), baseline.new_joint(), Duplicates(baseline.layout)]
    others = [State(baseline.layout), baseline.new_joint(), Duplicates(baseline.layout)]
    for one, other in zip(monitors, others, strict=True):
        assert one is not None
        assert other is not None
        one.update(columns(x=matrix))
        other.update(columns(**apart))
        assert one.to_bytes() == other.to_bytes()


def test_a_column_of_one_value_a_row_keeps_its_name() -> None:
    layout = build(Arrays({"x": KINDS["normal"]}, {"score": KINDS["normal"]})).layout
    one, other = State(layout), State(layout)
    one.update(columns({"score": KINDS["few"][:9, None]}, x=KINDS["few"][:9].reshape(9, 1, 1)))
    other.update(columns({"score": KINDS["few"][:9]}, x=KINDS["few"][:9]))
    assert one.to_bytes() == other.to_bytes()
    one.update(columns({"score": np.zeros((0, 1))}, x=np.zeros((0, 1))))
    assert one.to_bytes() == other.to_bytes()


def test_outputs_are_counted_class_by_class() -> None:
    scores = RNG.random((500, 3)).astype(np.float32)
    layout = build(Arrays({"x": KINDS["normal"][:500]}, {"score": scores})).layout
    assert layout.names == ("x", "score[0]", "score[1]", "score[2]")
    assert layout.outputs.tolist() == [False, True, True, True]
    state = State(layout)
    state.update(columns({"score": scores}, x=KINDS["normal"][:500]))
    assert (state.counts.sum(axis=1) == 500).all()
    assert not state.absent.any()


def test_finite_numbers_out_of_the_training_range_are_counted_on_each_side() -> None:
    for values in (KINDS["normal"], KINDS["heavy"], KINDS["few"]):
        state = State(layout_of(x=values))
        low, high = values.min(), values.max()
        live = [low - 1, low, high, high + 1, high + 2, math.inf, math.nan]
        state.update(columns(x=np.array(live)))
        assert (state.below[0], state.above[0]) == (1, 2)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30),
    exponent=st.integers(-1000, 1000),
)
def test_units_are_the_floor_of_exact_division(values: list[float], exponent: int) -> None:
    from fractions import Fraction

    centre = 5
    k, held = fixed.units(np.array(values, dtype=np.float64), exponent, centre)
    for value, unit, beyond in zip(values, k.tolist(), held.tolist(), strict=True):
        exact = math.floor(Fraction(value) / Fraction(2) ** exponent) - centre
        assert beyond == (abs(exact) > fixed.LIMIT)
        assert unit == max(min(exact, fixed.LIMIT), -fixed.LIMIT)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-fixed.LIMIT, fixed.LIMIT), st.integers(0, 3)), max_size=40))
def test_sums_and_squares_are_those_of_python_integers(items: list[tuple[int, int]]) -> None:
    k = np.array([value for value, _ in items], dtype=np.int64)
    group = np.array([place for _, place in items], dtype=np.int64)
    total, squares = fixed.sums(k, group, 4), fixed.squares(k, group, 4)
    for place in range(4):
        own = [value for value, where in items if where == place]
        assert (total[place], squares[place]) == (sum(own), sum(value * value for value in own))
    assert fixed.unpack(fixed.pack(squares), 4).tolist() == squares.tolist()


@pytest.mark.parametrize("kind", ["normal", "shifted", "heavy", "few", "many whole", "zeros and more"])
def test_moments_are_within_half_a_unit_of_those_of_the_raw_values(kind: str) -> None:
    from monitors.moments import resolution

    state = State(layout_of(x=KINDS[kind]))
    live = RNG.choice(KINDS[kind], 2000) * 1.01
    if state.layout.features[0].whole:  # type: ignore[union-attr]
        live = np.rint(live)
    state.update(columns(x=live))
    half = resolution(state)[0] / 2
    n, mean, variance = state.moments()
    assert n[0] == 2000
    assert abs(mean[0] - live.mean()) <= half * 1.000001 + 1e-12 * abs(live.mean())
    assert abs(math.sqrt(variance[0]) - live.std(ddof=1)) <= half * math.sqrt(2000 / 1999) * 1.000001


def test_memory_does_not_grow_with_rows() -> None:
    state = State(MIXED)
    before = state.state_bytes
    for _ in range(3):
        state.update(columns(**mixed_rows(500)))
    assert state.state_bytes == before
    assert state.value()["state_bytes"] == before


@pytest.mark.parametrize("data", [b"", b"\x81", State(layout_of(x=KINDS["few"])).to_bytes()])
def test_a_state_refuses_what_is_not_its_own(data: bytes) -> None:
    state = State(MIXED)
    with pytest.raises(ValueError, match="baseline|no state"):
        state.load(data)
    with pytest.raises(ValueError, match="two different baselines"):
        state.merge(State(layout_of(x=KINDS["few"])))


def test_an_empty_column_freezes_and_counts() -> None:
    empty: dict[str, Any] = {"x": np.full(10, math.nan), "y": np.array([None] * 10, dtype=object)}
    state = State(layout_of(**empty))
    state.update(columns(x=np.array([1.0, math.nan]), y=np.array(["a", None], dtype=object)))
    assert state.counts[:, MISSING].tolist() == [1, 1]
    assert state.counts[1, UNSEEN] == 1
    assert state.counts[0, FIRST] == 1


def test_the_same_values_freeze_to_the_same_bins_with_either_zero() -> None:
    ones = numeric("x", "feature", np.array([-0.0, -0.0, 1.5, 2.5]), -0.0, 2.5, False)
    others = numeric("x", "feature", np.array([0.0, 0.0, 1.5, 2.5]), 0.0, 2.5, False)
    assert repr(ones) == repr(others)


def test_a_state_that_is_full_says_so_before_its_sums_wrap() -> None:
    state = State(layout_of(x=KINDS["heavy"]))
    state.update(columns(x=np.full(4096, 1e300)))
    assert state.held[0] == 4096
    with pytest.raises(OverflowError, match="full"):  # noqa: PT012
        for _ in range(40):
            state.merge(state.copy())
