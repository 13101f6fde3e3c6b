"""The counters of a version, held against numpy and against plain addition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.telemetry.counters import BUCKETS_S, CLASSES, MAX_BATCH, OUTCOMES, PHASES, VersionCounters

EDGES = [int(bound * 1e9) for bound in BUCKETS_S]
durations = st.integers(0, 20_000_000_000) | st.sampled_from(EDGES) | st.sampled_from([edge + 1 for edge in EDGES])
batches = st.lists(
    st.lists(st.tuples(durations, durations, durations), min_size=1, max_size=40).flatmap(
        lambda calls: st.tuples(st.just(calls), durations, durations)
    ),
    max_size=8,
)


@settings(deadline=None)
@given(batches)
def test_every_histogram_is_what_numpy_counts_with_upper_bounds_included(
    served: list[tuple[list[tuple[int, int, int]], int, int]],
) -> None:
    counters = VersionCounters()
    seen: dict[str, list[int]] = {phase: [] for phase in PHASES}
    for calls, run_ns, encode_ns in served:
        decode, queue, total = ([call[at] for call in calls] for at in range(3))
        counters.served(decode, queue, run_ns, encode_ns, total, rows=2 * len(calls))
        for phase, values in (("decode", decode), ("queue", queue), ("total", total)):
            seen[phase] += values
        seen["run"] += [run_ns] * len(calls)
        seen["encode"] += [encode_ns] * len(calls)
    for phase, values in seen.items():
        histogram = counters.histogram(phase)
        # numpy's bins are open above, ours are open below: a nanosecond more turns one into the other.
        expected, _ = np.histogram(values, [-1, *(edge + 1 for edge in EDGES), 10**18])
        assert histogram.counts == tuple(expected)
        assert histogram.sum_ns == sum(values)
        assert histogram.total == len(values)
    requests = len(seen["total"])
    assert counters.outcome("ok") == requests
    assert counters.rows == 2 * requests


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*OUTCOMES[1:], "no-such-code"]), durations)))
def test_every_failure_is_counted_once_by_its_code_and_unknown_codes_together(failed: list[tuple[str, int]]) -> None:
    counters = VersionCounters()
    for code, total_ns in failed:
        counters.failed(code, total_ns)
    for outcome in OUTCOMES[1:]:
        codes = (outcome, "no-such-code") if outcome == "other" else (outcome,)
        assert counters.outcome(outcome) == sum(code in codes for code, _ in failed)
    assert counters.failures == (len(failed), sum(total_ns for _, total_ns in failed))
    assert counters.outcome("ok") == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 * MAX_BATCH), durations, durations, durations, st.integers(0, 2**41))))
def test_runs_are_summed_by_batch_size(runs: list[tuple[int, int, int, int, int]]) -> None:
    counters = VersionCounters()
    for run in runs:
        counters.ran(*run)
    assert counters.runs == len(runs)
    assert counters.last_inference_ms == max((run[4] for run in runs), default=0)
    found = {stat.rows: stat for stat in counters.batches()}
    assert set(found) == {min(run[0], MAX_BATCH) for run in runs}
    for rows, stat in found.items():
        same = [run for run in runs if min(run[0], MAX_BATCH) == rows]
        assert (stat.runs, stat.input_ns) == (len(same), sum(run[1] for run in same))
        assert (stat.infer_ns, stat.output_ns) == (sum(run[2] for run in same), sum(run[3] for run in same))


def test_one_kind_of_count_does_not_touch_another() -> None:
    counters = VersionCounters()
    counters.nonfinite(7)
    assert counters.nonfinite_outputs == 7
    assert counters.rows == counters.runs == counters.last_inference_ms == 0
    assert counters.failures == (0, 0)
    assert list(counters.batches()) == []
    assert all(counters.histogram(phase).total == 0 for phase in PHASES)
    assert all(counters.outcome(outcome) == 0 for outcome in OUTCOMES)


@pytest.mark.parametrize(
    ("outcome", "blame"),
    [
        ("ok", "ok"),
        ("not-ready", "overload"),
        ("deadline-exceeded", "overload"),
        ("model-failed", "server"),
        ("internal", "server"),
    ],
)
def test_who_is_to_blame(outcome: str, blame: str) -> None:
    assert CLASSES[outcome] == blame


def test_a_malformed_request_is_the_clients_fault() -> None:
    assert all(CLASSES.get(code, "client") == "client" for code in ("invalid-request", "invalid-json", "client-gone"))
