"""Replay: logged requests are run again and their answers compared with those that were given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gateway.errors import HeadgateError, LoadRejected
from gateway.journal.columns import Tensor, fields_of, source_of, tensors_of
from gateway.journal.export import Join
from gateway.journal.reader import Damaged, Segment
from gateway.journal.sources import Source, read, sources
from gateway.progress import Progress
from gateway.replay import loose, runs
from gateway.replay.compare import Difference, difference, differing
from gateway.replay.quality import Quality
from gateway.replay.report import MAX_EXAMPLES, NO_INPUTS, NOT_ANSWERED, OTHER_TIME, Answers, Report
from gateway.replay.runs import Rows, Span
from gateway.replay.version import Version
from gateway.types import Array

Load = Callable[[int], Version]
"""Loads a version by its number. Raises LoadRejected."""


READ = ("prediction_id", "row", "span", "time_ns", "batch", "run_ns", "whole")
"""The columns that a replay needs beside the tensors."""


class ReplayFailed(HeadgateError):
    """Nothing can be replayed; the message says why."""

    code = "replay-failed"


class Score(NamedTuple):
    """The element of an output that is held against labels, and what kind of figure that gives."""

    output: str
    element: int
    kind: str


class Judge(NamedTuple):
    """Labels for the rows, and what of an answer is held against them."""

    join: Join
    score: Score
    truth: Callable[[pa.Array], Array]


class Replayer:
    """One replay. `save` is called when a source is done."""

    def __init__(
        self, data: Path, load: Load, report: Report, progress: Progress, judge: Judge | None, save: Callable[[], None]
    ) -> None:
        self._data = data
        self._load = load
        self._report = report
        self._wish = report.wish
        self._progress = progress
        self._judge = judge
        self._save = save
        self._loaded: dict[int, Version | str] = {}

    def run(self) -> None:
        """Replay all that is not done. Raises ReplayFailed, OSError; what is done by then stays in the report."""
        wish = self._wish
        found = sources(self._data, wish.model, wish.versions, wish.until_ns)
        if not found:
            raise ReplayFailed(f"there are no predictions of model {wish.model!r} in that folder, version and time")
        began = time.monotonic()
        self._progress.total = sum(each.rows for each in found)
        for source in found:
            if self._judge is not None:
                self._judge.join.begin(source.prefix)
            answers = self._report.of(source.version, source.digest)
            try:
                self._source(source, answers)
            except Damaged as error:
                self._damaged(str(error))
            now = time.monotonic()
            self._report.seconds += now - began
            began = now
            self._save()
        self._report.complete = True
        self._report.settle()
        self._save()

    def _damaged(self, words: str) -> None:
        if words not in self._report.damaged:
            self._report.damaged.append(words)

    def _version(self, number: int) -> Version | str:
        if number not in self._loaded:
            try:
                self._loaded[number] = self._load(number)
            except LoadRejected as error:
                self._loaded[number] = error.message
        return self._loaded[number]

    def _source(self, source: Source, answers: Answers) -> None:
        version = self._version(source.version if self._wish.against is None else self._wish.against)
        skip = self._report.done.get(source.prefix, 0)
        sealed = True
        if source.segment is not None:
            try:
                segment = Segment.open(source.segment)
                sealed = segment.sealed
                for words in segment.verify():
                    self._damaged(f"segment {source.prefix}: {words}")
            except FileNotFoundError:
                pass
        self._progress.advance(min(skip, source.rows))
        tensors = tensors_of(source_of(source.schema).segment)
        columns = {*READ, *(name for each in tensors for name in fields_of(each))}
        for batch in read(self._data, source, columns):
            ids = batch.column("prediction_id")
            named = batch.filter(ids.is_valid()) if ids.null_count else batch
            if skip >= named.num_rows:
                skip -= named.num_rows
                continue
            named, skip = named.slice(skip), 0
            if isinstance(version, str):
                answers.missing = version
                answers.skip(version, named.num_rows)
                count = named.num_rows
            else:
                answers.file = version.sha256
                count = self._batch(named, source, version, answers, sealed=sealed)
            self._report.done[source.prefix] = self._report.done.get(source.prefix, 0) + count
            self._progress.advance(count)

    def _batch(self, batch: pa.RecordBatch, source: Source, version: Version, answers: Answers, *, sealed: bool) -> int:
        """Replay a batch; returns how many of its rows are dealt with: an open segment may end within a run."""
        tensors = tensors_of(source_of(source.schema).segment)
        redacted = [each for each in tensors if each.group == "input" and _is_changed(each.keep)]
        inputs = _wanted(tensors, version, "input")
        outputs = _wanted(tensors, version, "output")
        if redacted or inputs is None or source.bare:
            answers.skip(NO_INPUTS, batch.num_rows)
            return int(batch.num_rows)
        outputs, odd = _fitting(outputs or [], version)
        fixed = (
            all(each.fixed for each in (*inputs, *outputs))
            and not batch.column("whole").to_numpy(zero_copy_only=False).any()
        )
        if not fixed:
            loose.replay(batch, inputs, outputs, version, self._wish, answers)
            return int(batch.num_rows)
        rows = runs.rows_of(batch, inputs, outputs)
        spans = runs.runs(rows.batch, rows.run_ns)
        if not sealed and spans and spans[-1][1] == len(rows) and _is_short(rows, spans[-1]):
            # The rest of this run is not written yet: it is left for another time.
            end = spans.pop()[0]
            batch = batch.slice(0, end)
            rows = runs.rows_of(batch, inputs, outputs)
        ran = self._rows(batch, rows, spans, version, answers)
        for name in odd:
            answers.output(name).add(Difference(ran, ran, ran, misshapen=ran))
        return len(rows)

    # -- rows of fixed shapes

    def _rows(self, batch: pa.RecordBatch, rows: Rows, spans: list[Span], version: Version, answers: Answers) -> int:
        """Run rows and compare them; returns how many ran."""
        time_ns = batch.column("time_ns").to_numpy(zero_copy_only=False)
        in_time = (time_ns >= self._wish.since_ns) & (time_ns < self._wish.until_ns)
        if not (rows.has.all() and in_time.all()):
            spans = [span for span in spans if rows.has[slice(*span)].all() and in_time[span[0]]]
        ran = _inside(spans, len(rows))
        answers.skip(OTHER_TIME, int((~in_time & ~ran).sum()))
        answers.skip(NO_INPUTS, int((~rows.has & in_time & ~ran).sum()))
        answers.skip(NOT_ANSWERED, int((rows.has & in_time & ~ran).sum()))
        if self._wish.against is not None:
            spans = _batches(ran, self._wish.batch if version.max_rows else 1)
        results = self._execute(rows, spans, version, answers)
        self._compare(rows, ran, spans, results, version, answers)
        if self._judge is not None:
            self._score(self._judge, batch, rows, ran, results)
        return int(ran.sum())

    def _execute(self, rows: Rows, spans: Sequence[Span], version: Version, answers: Answers) -> dict[str, Array]:
        """Run spans of rows; what comes out, by output, where it has the shape of what was logged."""
        results = {name: np.empty_like(array) for name, array in rows.logged.items()}
        run = version.session.run
        names, inputs = list(results), list(rows.inputs.items())
        largest = version.max_rows if self._wish.against is None else 0
        if largest and any(stop - start > largest for start, stop in spans):
            spans = [each for span in spans for each in runs.pieces(span, largest)]
        began = time.perf_counter()
        try:
            if len(inputs) == 1:
                ((only, values),) = inputs
                found = [run({only: values[start:stop]}, names) for start, stop in spans]
            else:
                found = [run({name: values[start:stop] for name, values in inputs}, names) for start, stop in spans]
            _put_all(results, spans, found)
        except Exception:  # a model raises what it likes: the runs are gone through one by one to see which fail
            answers.failed += self._run_each(rows, spans, results, version)
        answers.run_s += time.perf_counter() - began
        answers.runs += len(spans)
        return results

    @staticmethod
    def _run_each(rows: Rows, spans: Sequence[Span], results: Mapping[str, Array], version: Version) -> int:
        """Run spans that may fail; returns how many rows did. Their results are none."""
        failed = 0
        for start, stop in spans:
            feed = {name: array[start:stop] for name, array in rows.inputs.items()}
            try:
                _put(list(results.values()), start, stop, version.session.run(feed, list(results)))
            except Exception:  # see above
                failed += stop - start
        return failed

    def _compare(
        self,
        rows: Rows,
        ran: Array,
        spans: Sequence[Span],
        results: Mapping[str, Array],
        version: Version,
        answers: Answers,
    ) -> None:
        different = _differing(rows, ran, results)
        if self._wish.against is None and different.any():
            for span in _touched(spans, different):
                answers.regrouped += self._regroup(rows, span, results, version)
            different = _differing(rows, ran, results)
        beyond = np.zeros(len(rows), np.bool_)
        for name, got in results.items():
            compared = int((ran & rows.answered[name]).sum())
            # Rows that are the same need no arithmetic.
            at = np.flatnonzero(different & rows.answered[name])
            found, far = difference(got[at], rows.logged[name][at], self._wish.tolerance)
            width = got[0].size if len(got) else 0
            found.elements += (compared - found.rows) * width
            found.rows = compared
            answers.output(name).add(found)
            beyond[at[far]] = True
            for index in at[far][:MAX_EXAMPLES].tolist():
                answers.example(rows.name(index), name, rows.logged[name][index], got[index])
        answers.rows += int(ran.sum())
        answers.same += int((ran & ~different).sum())
        answers.beyond += int(beyond.sum())

    def _regroup(self, rows: Rows, span: Span, results: Mapping[str, Array], version: Version) -> int:
        """Try the other ways in which a server may have run these rows; returns how many are the same in one of them.

        A batch in which one request failed was run again request by request.
        """
        before = {name: array[slice(*span)].copy() for name, array in results.items()}
        for others in (runs.requests(span, rows.first), [span], runs.pieces(span, 1)):
            if not self._run_each(rows, others, results, version):
                inside = _inside([span], len(rows))
                if not _differing(rows, inside, results).any():
                    return span[1] - span[0]
        for name, array in results.items():
            array[slice(*span)] = before[name]
        return 0

    # -- quality

    def _score(self, judge: Judge, batch: pa.RecordBatch, rows: Rows, ran: Array, results: Mapping[str, Array]) -> None:
        labels = judge.join.labels(batch)
        output, element, kind = judge.score
        if output not in results:
            return
        use = ran & np.asarray(labels.is_valid()) & rows.answered[output]
        if not use.any():
            return
        truth = judge.truth(labels.filter(pa.array(use)))
        for who, array in (("logged", rows.logged[output]), ("replayed", results[output])):
            quality = self._report.quality.setdefault(who, Quality(kind))
            quality.add(truth, array[use].reshape(int(use.sum()), -1)[:, element])


def _wanted(tensors: Sequence[Tensor], version: Version, group: str) -> list[Tensor] | None:
    """The tensors of a group that the version has, too; None where an input that it needs is not kept."""
    kept = {each.name: each for each in tensors if each.group == group and not each.keep.startswith("digest")}
    specs = version.session.contract.inputs if group == "input" else version.session.contract.outputs
    found = [kept[spec.name] for spec in specs if spec.name in kept]
    if group == "input" and len(found) < len(specs):
        return None
    return [each for each in found if group == "input" or not _is_changed(each.keep)]


def _fitting(outputs: Sequence[Tensor], version: Version) -> tuple[list[Tensor], list[str]]:
    """The outputs that a version gives in the shape that was logged, and the names of the others."""
    shapes = {spec.name: spec.shape for spec in version.session.contract.outputs}
    good: list[Tensor] = []
    odd: list[str] = []
    for tensor in outputs:
        shape = shapes[tensor.name]
        fits = not tensor.fixed or not shape or len(shape) != len(tensor.shape) + 1
        if fits or all(dim in (-1, own) for dim, own in zip((shape or ())[1:], tensor.shape, strict=True)):
            good.append(tensor)
        else:
            odd.append(tensor.name)
    return good, odd


def _is_changed(keep: str) -> bool:
    """Whether values were redacted before they were written."""
    return keep.split()[-1] in ("mask", "hmac", "bucket", "drop")


def _is_short(rows: Rows, span: Span) -> bool:
    return bool(span[1] - span[0] < rows.batch[span[0]])


def _differing(rows: Rows, ran: Array, results: Mapping[str, Array]) -> Array:
    """Which rows have another answer than the logged one, in any bit."""
    found = np.zeros(len(rows), np.bool_)
    for name, got in results.items():
        found |= differing(got, rows.logged[name]) & rows.answered[name] & ran
    return found


def _put(targets: Sequence[Array], start: int, stop: int, results: Sequence[Array]) -> None:
    """Put the results of a run into their rows. Raises ValueError where they do not fit."""
    for target, array in zip(targets, results, strict=True):
        target[start:stop] = array


def _put_all(results: Mapping[str, Array], spans: Sequence[Span], found: Sequence[Sequence[Array]]) -> None:
    """Put the results of many runs into their rows: one copy for all that lie side by side. Raises as _put."""
    if not spans:
        return
    sizes = [stop - start for start, stop in spans]
    breaks = [at for at in range(1, len(spans)) if spans[at][0] != spans[at - 1][1]]
    for target, arrays in zip(results.values(), zip(*found, strict=True), strict=True):
        if list(map(len, arrays)) != sizes:
            raise ValueError("a run gave another number of rows than it was given")
        for first, last in zip([0, *breaks], [*breaks, len(spans)], strict=True):
            rows = target[spans[first][0] : spans[last - 1][1]]
            np.concatenate(arrays[first:last], out=rows, casting="unsafe")


def _inside(spans: Sequence[Span], rows: int) -> Array:
    """Which of some rows lie in a span, (rows,); spans do not overlap."""
    if sum(stop - start for start, stop in spans) == rows:
        return np.ones(rows, np.bool_)
    edges = np.zeros(rows + 1, np.int8)
    if spans:
        starts, stops = np.array(spans).T
        edges[starts] += 1
        edges[stops] -= 1
    found: Array = np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)
    return found


def _touched(spans: Sequence[Span], rows: Array) -> Iterator[Span]:
    """The spans that hold any of some rows."""
    at = np.flatnonzero(rows)
    if not len(at):
        return
    starts = np.array([start for start, _ in spans])
    for index in np.unique(np.searchsorted(starts, at, side="right") - 1).tolist():
        yield spans[index]


def _batches(ran: Array, rows: int) -> list[Span]:
    """Stretches of rows that can be run, in batches of at most `rows`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], ran, [False])).astype(np.int8)))
    return [span for start, stop in edges.reshape(-1, 2).tolist() for span in runs.pieces((start, stop), rows)]
