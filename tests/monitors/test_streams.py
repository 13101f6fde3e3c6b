"""Detectors on streams of losses: index for index river's, and never deaf."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river import drift

from monitors.streams import ADWIN, CUSUM, DDM, EWMA, HDDMA, HDDMW, KSWIN, Detector, PageHinkley

Make = Callable[[int], Detector]
Oracle = Callable[[], Any]

PAIRS: list[tuple[str, Make, Oracle]] = [
    ("adwin", ADWIN, drift.ADWIN),
    (
        "adwin-eager",
        lambda n: ADWIN(n, delta=0.3, clock=1, max_buckets=2, min_window_length=1, grace_period=1),
        lambda: drift.ADWIN(delta=0.3, clock=1, max_buckets=2, min_window_length=1, grace_period=1),
    ),
    ("adwin-clock-7", lambda n: ADWIN(n, clock=7, max_buckets=4), lambda: drift.ADWIN(clock=7, max_buckets=4)),
    ("page-hinkley", PageHinkley, drift.PageHinkley),
    (
        "page-hinkley-eager",
        lambda n: PageHinkley(n, min_instances=3, threshold=2.0, alpha=0.99),
        lambda: drift.PageHinkley(min_instances=3, threshold=2.0, alpha=0.99),
    ),
    (
        "page-hinkley-up",
        lambda n: PageHinkley(n, threshold=3.0, mode="up"),
        lambda: drift.PageHinkley(threshold=3.0, mode="up"),
    ),
    (
        "page-hinkley-down",
        lambda n: PageHinkley(n, threshold=3.0, mode="down"),
        lambda: drift.PageHinkley(threshold=3.0, mode="down"),
    ),
    ("kswin", lambda n: KSWIN(n, seed=7), lambda: drift.KSWIN(seed=7)),
    (
        "kswin-eager",
        lambda n: KSWIN(n, alpha=0.2, window_size=24, stat_size=10, seed=1),
        lambda: drift.KSWIN(alpha=0.2, window_size=24, stat_size=10, seed=1),
    ),
]
BINARY: list[tuple[str, Make, Oracle]] = [
    ("ddm", DDM, drift.binary.DDM),
    (
        "ddm-eager",
        lambda n: DDM(n, warm_start=5, warning_threshold=1.0, drift_threshold=1.5),
        lambda: drift.binary.DDM(warm_start=5, warning_threshold=1.0, drift_threshold=1.5),
    ),
    ("hddm-a", HDDMA, drift.binary.HDDMA),
    (
        "hddm-a-two-sided",
        lambda n: HDDMA(n, drift_confidence=0.05, warning_confidence=0.2, two_sided_test=True),
        lambda: drift.binary.HDDMA(drift_confidence=0.05, warning_confidence=0.2, two_sided_test=True),
    ),
    ("hddm-w", HDDMW, drift.binary.HDDMW),
    (
        "hddm-w-two-sided",
        lambda n: HDDMW(n, drift_confidence=0.05, warning_confidence=0.2, lambda_val=0.1, two_sided_test=True),
        lambda: drift.binary.HDDMW(drift_confidence=0.05, warning_confidence=0.2, lambda_val=0.1, two_sided_test=True),
    ),
]
OURS = [*PAIRS, *BINARY, ("cusum", CUSUM, None), ("ewma", EWMA, None)]


def by_name(pairs: list[Any]) -> list[Any]:
    return [pytest.param(*each[1:], id=each[0]) for each in pairs]


def river_alarms(oracle: Oracle, stream: list[float]) -> tuple[list[int], list[int]]:
    """Where river raises an alarm, and where it warns."""
    detector, alarms, warnings = oracle(), [], []
    for index, value in enumerate(stream):
        detector.update(value)
        if detector.drift_detected:
            alarms.append(index)
        if getattr(detector, "warning_detected", False):
            warnings.append(index)
    return alarms, warnings


def pieces(value: st.SearchStrategy[float], longest: int) -> st.SearchStrategy[list[float]]:
    """Streams made of constant runs, alternations and jumps between them: what breaks detectors."""
    run = st.tuples(st.lists(value, min_size=1, max_size=4), st.integers(1, longest))
    return st.lists(run, min_size=1, max_size=6).map(lambda runs: [v for values, times in runs for v in values * times])


numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 1e-300, 5e-324]),
    st.floats(-10, 10),
    st.floats(-1e9, 1e9),
)


@pytest.mark.parametrize(("make", "oracle"), by_name(PAIRS))
@settings(max_examples=8, deadline=None)
@given(streams=st.lists(pieces(numbers, 40), min_size=1, max_size=4))
def test_alarms_come_at_exactly_the_indices_at_which_rivers_come(
    make: Make, oracle: Oracle, streams: list[list[float]]
) -> None:
    compare(make, oracle, streams)


@pytest.mark.parametrize(("make", "oracle"), by_name(BINARY))
@settings(max_examples=10, deadline=None)
@given(streams=st.lists(pieces(st.sampled_from([0.0, 1.0]), 60), min_size=1, max_size=4))
@example(streams=[[1.0] * 100 + [0.0] * 100 + [1.0] * 100])
def test_alarms_on_errors_come_at_exactly_the_indices_at_which_rivers_come(
    make: Make, oracle: Oracle, streams: list[list[float]]
) -> None:
    compare(make, oracle, streams)


@pytest.mark.parametrize(("make", "oracle"), by_name(BINARY[2:]))
@settings(max_examples=10, deadline=None)
@given(streams=st.lists(pieces(st.floats(0, 1), 60), min_size=1, max_size=3))
def test_alarms_on_bounded_losses_come_at_exactly_the_indices_at_which_rivers_come(
    make: Make, oracle: Oracle, streams: list[list[float]]
) -> None:
    compare(make, oracle, streams)


def compare(make: Make, oracle: Oracle, streams: list[list[float]]) -> None:
    """Streams of unequal length side by side: the shorter ones end in NaN, which must not count as a step."""
    steps = max(map(len, streams))
    block = np.full((steps, len(streams)), np.nan)
    for column, stream in enumerate(streams):
        block[: len(stream), column] = stream
    alarms = make(len(streams)).update(block)
    for column, stream in enumerate(streams):
        assert np.flatnonzero(alarms[:, column]).tolist() == river_alarms(oracle, stream)[0]


def seeded(kind: str, steps: int = 1600, streams: int = 6) -> np.ndarray[Any, Any]:
    """Random streams with changes at different places in each."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    level = np.cumsum(rng.random((steps, streams)) < 1 / 450, axis=0) % 3 / 3
    if kind == "errors":
        return (rng.random((steps, streams)) < 0.1 + level * 0.8).astype(float)
    if kind == "heavy":
        return rng.lognormal(level, 1.5)
    if kind == "coarse":
        return np.round(rng.normal(level * 3, 1, (steps, streams)))
    return rng.normal(level * 3, 1, (steps, streams))


@pytest.mark.parametrize("kind", ["normal", "heavy", "coarse", "errors"])
@pytest.mark.parametrize(("make", "oracle"), by_name([each for each in PAIRS if "kswin" not in each[0]]))
def test_alarms_on_long_random_streams_equal_rivers(make: Make, oracle: Oracle, kind: str) -> None:
    compare(make, oracle, seeded(kind).T.tolist())


@pytest.mark.parametrize(("make", "oracle"), by_name([each for each in PAIRS if "kswin" in each[0]]))
def test_alarms_of_kswin_on_random_streams_equal_rivers(make: Make, oracle: Oracle) -> None:
    compare(make, oracle, [*seeded("normal", 600, 2).T.tolist(), *seeded("coarse", 500, 1).T.tolist()])


@pytest.mark.parametrize(("make", "oracle"), by_name(BINARY))
def test_alarms_and_warnings_on_long_streams_of_errors_equal_rivers(make: Make, oracle: Oracle) -> None:
    block = seeded("errors")
    detector = make(block.shape[1])
    alarms, warnings = np.zeros(block.shape, bool), np.zeros(block.shape, bool)
    for step, values in enumerate(block):
        alarms[step] = detector.update(values)
        warnings[step] = detector.warning
    assert alarms.any()
    assert warnings.any()
    for column, stream in enumerate(block.T.tolist()):
        expected = river_alarms(oracle, stream)
        assert (np.flatnonzero(alarms[:, column]).tolist(), np.flatnonzero(warnings[:, column]).tolist()) == expected


def published_stream() -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(42)
    x = rng.integers(0, 2, 2000).astype(float)
    x[1000:] = rng.integers(6, 12, 1000)
    return x[:, np.newaxis]


def gaussian(after: int, shift: float, total: int) -> np.ndarray[Any, Any]:
    rng = random.Random(12345)
    return np.array([[rng.gauss(0, 1) if i < after else rng.gauss(shift, 1)] for i in range(total)])


def uniform_choices() -> np.ndarray[Any, Any]:
    rng = random.Random(12345)
    return np.array([rng.choices([0, 1], k=1000) + rng.choices(range(4, 8), k=1000)], float).T


@pytest.mark.parametrize(
    ("detector", "stream", "indices"),
    [
        # The examples in the documentation of river; CUSUM and EWMA are not in its last release.
        (ADWIN(1), uniform_choices(), [1023]),
        (PageHinkley(1), uniform_choices(), [1006]),
        (KSWIN(1, alpha=0.0001, seed=42), uniform_choices(), [1016]),
        (CUSUM(1), gaussian(200, 3, 400), [201, 251]),
        (EWMA(1, alpha=0.1, threshold=4, min_instances=50), gaussian(1000, 3, 2000), [1010]),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Detector) else "",
)
def test_documented_streams_alarm_at_the_documented_indices(
    detector: Detector, stream: np.ndarray[Any, Any], indices: list[int]
) -> None:
    assert np.flatnonzero(detector.update(stream)).tolist() == indices


@pytest.mark.parametrize("make", [pytest.param(each[1], id=each[0]) for each in OURS])
@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.one_of(st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 1e101]), st.floats(0, 1)),
            min_size=2,
            max_size=2,
        ),
        max_size=120,
    )
)
def test_what_is_not_a_number_is_counted_and_leaves_no_other_trace(make: Make, rows: list[list[float]]) -> None:
    """1. A stream has NaN, infinities and absurd values in it. 2. The same stream is given without them.
    Result: alarms come at the same values, and the states are equal but for what was skipped.
    """
    block = np.array(rows).reshape(-1, 2)
    mixed = make(2)
    alarms = mixed.update(block)
    for column in range(2):
        usable = np.isfinite(block[:, column]) & (np.abs(block[:, column]) <= 1e100)
        if mixed.bounds == (0.0, 1.0):
            usable &= (block[:, column] >= 0) & (block[:, column] <= 1)
        alone = make(1)
        expected = alone.update(block[usable, column][:, np.newaxis])
        assert alarms[usable, column].tolist() == expected[:, 0].tolist()
        assert not alarms[~usable, column].any()
        assert (mixed.seen[column], mixed.skipped[column]) == (usable.sum(), (~usable).sum())
        assert mixed.alarms[column] == expected.sum()
        for name, state in mixed._state.items():
            np.testing.assert_array_equal(state[column], alone._state[name][0])


@pytest.mark.parametrize("make", [pytest.param(each[1], id=each[0]) for each in OURS])
def test_a_detector_that_was_fed_garbage_still_hears_the_change(make: Make) -> None:
    rng = np.random.default_rng(5)
    quiet, loud = rng.random((900, 1)) * 0.05, 0.9 + rng.random((400, 1)) * 0.1
    if make(1).bounds == (0.0, 1.0):
        quiet, loud = (quiet > 0.045).astype(float), np.ones((400, 1))
    garbage = np.tile([[np.nan], [np.inf], [-np.inf], [1e300]], (50, 1))
    detector = make(1)
    if detector.settings.get("mode") == "down":
        quiet, loud = 1 - quiet, 1 - loud
    detector.update(np.concatenate((quiet[:450], garbage, quiet[450:], garbage)))
    before = int(detector.alarms[0])
    detector.update(np.concatenate((loud, garbage)))
    assert detector.alarms[0] > before
    assert detector.skipped[0] == 600


@pytest.mark.parametrize("make", [pytest.param(each[1], id=each[0]) for each in OURS])
def test_a_block_equals_its_steps_one_by_one_also_across_a_restart(make: Make) -> None:
    block = seeded("errors", 900, 3)
    block[np.random.default_rng(1).random(block.shape) < 0.02] = np.nan
    whole, stepwise, restored = make(3), make(3), make(3)
    expected = whole.update(block)
    steps = np.array([stepwise.update(values) for values in block])
    parts = [restored.update(block[:333])]
    again = make(3)
    again.load(restored.to_bytes())
    parts.append(again.update(block[333:]))
    np.testing.assert_array_equal(steps, expected)
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert whole.to_bytes() == stepwise.to_bytes() == again.to_bytes()
    assert whole.nbytes == make(3).nbytes


@pytest.mark.parametrize("make", [pytest.param(each[1], id=each[0]) for each in OURS])
def test_a_state_of_another_detector_or_cut_short_is_refused(make: Make) -> None:
    detector = make(2)
    other = PageHinkley(2, threshold=49.0)
    data = detector.to_bytes()
    form = msgspec.msgpack.decode(data)
    extra = msgspec.msgpack.encode([form[0], form[1], form[2] | {"extra": ("<i8", (1,), b"")}])
    short = msgspec.msgpack.encode([form[0], form[1], form[2] | {"seen": ("<i8", (2,), b"\x00" * 15)}])
    for wrong in (make(3).to_bytes(), other.to_bytes(), b"", data[:-1], b"\x00" * 40, extra, short):
        with pytest.raises(ValueError, match="state|detector"):
            detector.load(wrong)
    assert detector.to_bytes() == data


@pytest.mark.parametrize("make", [pytest.param(each[1], id=each[0]) for each in OURS])
def test_a_repr_makes_the_detector_again(make: Make) -> None:
    detector = make(2)
    scope = {each.__name__: each for each in (ADWIN, CUSUM, DDM, EWMA, HDDMA, HDDMW, KSWIN, PageHinkley)}
    name, _, rest = repr(detector).partition("(")
    again = scope[name](**dict_of(rest.rstrip(")")))
    assert again.to_bytes() == detector.to_bytes()


def dict_of(arguments: str) -> dict[str, Any]:
    """`2, a=1, b='x'` as {'streams': 2, 'a': 1, 'b': 'x'}."""
    import ast

    call = ast.parse(f"f({arguments})", mode="eval").body
    assert isinstance(call, ast.Call)
    named = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
    return {"streams": ast.literal_eval(call.args[0]), **named}


def test_a_block_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected values of shape \(2,\)"):
        ADWIN(2).update(np.zeros(3))
    with pytest.raises(ValueError, match="at least one stream"):
        ADWIN(0)
    assert ADWIN(2).update(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PageHinkley(1, mode="sideways"),  # type: ignore[arg-type]
        lambda: CUSUM(1, mode="sideways"),  # type: ignore[arg-type]
        lambda: EWMA(1, mode="sideways"),  # type: ignore[arg-type]
        lambda: CUSUM(1, slack=-1),
        lambda: EWMA(1, alpha=0),
        lambda: ADWIN(1, delta=0),
        lambda: KSWIN(1, window_size=50, stat_size=30),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Callable[[], Detector]) -> None:
    with pytest.raises(ValueError, match="mode|slack|alpha|delta|window_size"):
        wrong()


@pytest.mark.parametrize("mode", ["up", "down"])
@pytest.mark.parametrize("kind", [CUSUM, EWMA, PageHinkley])
def test_a_one_sided_detector_hears_its_side_alone(kind: Any, mode: str) -> None:
    rng = np.random.default_rng(2)
    rising = np.concatenate((rng.normal(0, 1, 500), rng.normal(20, 1, 40)))[:, np.newaxis]
    sign = 1 if mode == "up" else -1
    settings = {} if kind is PageHinkley else {"threshold": 12.0}
    assert kind(1, mode=mode, **settings).update(sign * rising)[500:].any()
    assert not kind(1, mode=mode, **settings).update(-sign * rising)[500:].any()


def test_the_published_stream_gives_one_alarm_right_after_the_change() -> None:
    stream = published_stream()
    assert np.flatnonzero(ADWIN(1).update(stream)).tolist() == [1023]
    assert np.flatnonzero(EWMA(1).update(stream))[0] in range(1000, 1010)
    assert np.flatnonzero(CUSUM(1, threshold=20.0).update(stream))[0] in range(1000, 1010)
