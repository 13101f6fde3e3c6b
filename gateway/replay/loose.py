"""Replaying requests whose shapes vary: one by one, or joined as they were. Each counts as one row."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from gateway.journal.columns import Tensor
from gateway.replay import runs
from gateway.replay.compare import Tolerance, difference
from gateway.replay.report import NO_INPUTS, NOT_ANSWERED, OTHER_TIME, Answers, Wish
from gateway.replay.runs import Ids, Rows
from gateway.replay.version import Version
from gateway.types import Array

Results = list[tuple[Array, ...]]
"""What each request of a group was answered, output by output."""


def replay(
    batch: pa.RecordBatch,
    ids: Ids,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    version: Version,
    wish: Wish,
    answers: Answers,
) -> None:
    """Run the requests of a batch again and compare them; what is found goes into `answers`."""
    rows = batch.column("row").to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(rows == 0)
    sizes = np.diff(np.append(starts, batch.num_rows)).tolist()
    spans, times = (batch.column(name).to_numpy(zero_copy_only=False)[starts].tolist() for name in ("span", "time_ns"))
    fit: list[tuple[Rows, int]] = []
    found = runs.requests_of(batch, ids, inputs, outputs)
    for request, size, span, time_ns in zip(found, sizes, spans, times, strict=True):
        if not wish.since_ns <= time_ns < wish.until_ns:
            answers.skip(OTHER_TIME, size)
        elif not request.has[0]:
            answers.skip(NO_INPUTS, size)
        elif not request.logged:
            answers.skip(NOT_ANSWERED, size)
        else:
            fit.append((request, span))
    for group in groups(fit):
        began = time.perf_counter()
        results = _reproduce(group, version, answers)
        answers.run_s += time.perf_counter() - began
        answers.runs += 1
        answers.rows += len(group)
        if results is None:
            answers.failed += len(group)
            continue
        for request, values in zip(group, results, strict=True):
            _compare(request, dict(zip(request.logged, values, strict=True)), wish, answers)


def groups(requests: Sequence[tuple[Rows, int]]) -> list[list[Rows]]:
    """Requests, each with its rows, in groups that ran together: neighbours, as many as their run had rows."""
    found: list[list[Rows]] = []
    room = 0
    for request, rows in requests:
        last = found[-1][0] if found else None
        same = last is not None and (last.batch[0], last.run_ns[0]) == (request.batch[0], request.run_ns[0])
        if same and rows <= room and last is not None and list(last.logged) == list(request.logged):
            found[-1].append(request)
            room -= rows
        else:
            found.append([request])
            room = int(request.batch[0]) - rows
    return found


def _reproduce(group: list[Rows], version: Version, answers: Answers) -> Results | None:
    """The answers of requests that ran together: of all at once if that gives the same bits, else of each alone.

    None where the model fails on them.
    """
    results: Results | None = None
    for way in (_together, _alone) if len(group) > 1 else (_alone,):
        try:
            results = way(group, version)
        except Exception:  # a model raises what it likes, and rows of different shapes cannot be joined
            continue
        if _is_same(group, results):
            answers.regrouped += len(group) if len(group) > 1 and way is _alone else 0
            break
    return results


def _alone(group: Sequence[Rows], version: Version) -> Results:
    return [version.session.run(request.inputs, list(request.logged)) for request in group]


def _together(group: Sequence[Rows], version: Version) -> Results:
    feed = {name: np.concatenate([request.inputs[name] for request in group]) for name in group[0].inputs}
    stops = np.cumsum([len(next(iter(request.inputs.values()))) for request in group])[:-1]
    found = version.session.run(feed, list(group[0].logged))
    return list(zip(*(np.split(array, stops) for array in found), strict=True))


def _is_same(group: Sequence[Rows], results: Results) -> bool:
    return not any(
        difference(got[None], logged[None], Tolerance())[0].differing
        for request, values in zip(group, results, strict=True)
        for logged, got in zip(request.logged.values(), values, strict=True)
    )


def _compare(request: Rows, results: Mapping[str, Array], wish: Wish, answers: Answers) -> None:
    differs = far = False
    for name, got in results.items():
        logged = request.logged[name]
        found, beyond = difference(got[None], logged[None], wish.tolerance)
        answers.output(name).add(found)
        differs |= bool(found.differing)
        if beyond.any():
            far = True
            answers.example(request, 0, name, logged, got)
    answers.same += not differs
    answers.beyond += far
