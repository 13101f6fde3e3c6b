"""Replay: logged requests are run again and their answers compared with those that were given."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gateway.errors import HeadgateError, LoadRejected
from gateway.journal.columns import Tensor, fields_of, source_of, tensors_of
from gateway.journal.export import Join
from gateway.journal.reader import Damaged
from gateway.journal.sources import Source, read, sources
from gateway.progress import Progress
from gateway.replay import ahead, loose, runs
from gateway.replay.ahead import Opened
from gateway.replay.compare import Difference, difference, differing
from gateway.replay.quality import Quality
from gateway.replay.report import MAX_EXAMPLES, NO_INPUTS, NOT_ANSWERED, OTHER_TIME, Answers, Report
from gateway.replay.runs import Ids, Rows, Span
from gateway.replay.version import Version
from gateway.types import Array

Load = Callable[[int], Version]
"""Loads a version by its number. Raises LoadRejected."""


READ = ("row", "span", "time_ns", "batch", "run_ns", "whole")
"""The columns that a replay needs beside the tensors. Only who holds labels against answers needs every row's id."""


RUNS = 256
"""Results of so many runs are kept until they are put together: the caches of a core hold these and little more."""


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
        self._report.begin()
        found = sources(self._data, wish.model, wish.versions, wish.until_ns, self._damaged)
        if not found:
            raise ReplayFailed(f"there are no predictions of model {wish.model!r} in that folder, version and time")
        began = time.monotonic()
        self._progress.total = sum(each.rows for each in found)
        for source, opening in ahead.opened(self._data, found, self._columns):
            if self._judge is not None:
                self._judge.join.begin(source.prefix)
            answers = self._report.of(source.version, source.digest)
            try:
                self._source(source, opening.result(), answers)
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

    def _columns(self, source: Source) -> set[str]:
        """The columns of a source that a replay needs."""
        tensors = tensors_of(source_of(source.schema).segment)
        columns = {*READ, *(name for each in tensors for name in fields_of(each))}
        return columns if self._judge is None else columns | {"prediction_id"}

    def _source(self, source: Source, opened: Opened, answers: Answers) -> None:
        version = self._version(source.version if self._wish.against is None else self._wish.against)
        if isinstance(version, Version):
            if not answers.takes(version.sha256):
                number = source.version if self._wish.against is None else self._wish.against
                raise ReplayFailed(
                    f"the report has rows that another file of version {number} was run on (sha256 "
                    f"{answers.file[:12]}, now {version.sha256[:12]}); begin another report"
                )
            answers.file = version.sha256
        skip = self._report.done.get(source.prefix, 0)
        for words in opened.damage:
            self._damaged(words)
        self._progress.advance(min(skip, source.rows))
        for batch in opened.batches:
            named = _named(batch)
            if skip >= named.num_rows:
                skip -= named.num_rows
                continue
            named, skip = named.slice(skip), 0
            if isinstance(version, str):
                # They are not dealt with: the version may be there another time.
                answers.missing = version
                answers.skip(version, named.num_rows)
                self._progress.advance(named.num_rows)
                continue
            first = self._report.done.get(source.prefix, 0)
            ids = Ids(partial(_ids, self._data, source, first, named.num_rows))
            with _no_collection():
                count = self._batch(named, ids, source, version, answers, sealed=opened.sealed)
            self._report.done[source.prefix] = self._report.done.get(source.prefix, 0) + count
            self._progress.advance(count)

    def _batch(
        self, batch: pa.RecordBatch, ids: Ids, source: Source, version: Version, answers: Answers, *, sealed: bool
    ) -> int:
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
            loose.replay(batch, ids, inputs, outputs, version, self._wish, answers)
            return int(batch.num_rows)
        rows = runs.rows_of(batch, ids, inputs, outputs)
        spans = runs.runs(rows.batch, rows.run_ns)
        if not sealed and spans and spans[-1][1] == len(rows) and _is_short(rows, spans[-1]):
            # The rest of this run is not written yet: it is left for another time.
            end = spans.pop()[0]
            batch = batch.slice(0, end)
            rows = runs.rows_of(batch, ids, inputs, outputs)
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
        ran = runs.inside(spans, len(rows))
        answers.skip(OTHER_TIME, _count(~in_time & ~ran))
        answers.skip(NO_INPUTS, _count(~rows.has & in_time & ~ran))
        answers.skip(NOT_ANSWERED, _count(rows.has & in_time & ~ran))
        if self._wish.against is not None:
            spans = runs.batches(ran, self._wish.batch if version.max_rows else 1)
        results = self._execute(rows, spans, version, answers)
        self._compare(rows, ran, spans, results, version, answers)
        if self._judge is not None:
            self._score(self._judge, batch, rows, ran, results)
        return _count(ran)

    def _execute(self, rows: Rows, spans: Sequence[Span], version: Version, answers: Answers) -> dict[str, Array]:
        """Run spans of rows; what comes out, by output, where it has the shape of what was logged."""
        results = {name: np.empty_like(array) for name, array in rows.logged.items()}
        largest = version.max_rows if self._wish.against is None else 0
        if largest and any(stop - start > largest for start, stop in spans):
            spans = [each for span in spans for each in runs.pieces(span, largest)]
        began = time.perf_counter()
        try:
            for at in range(0, len(spans), RUNS):
                some = spans[at : at + RUNS]
                runs.put_all(results, some, version.session.run_all(runs.feeds(rows.inputs, some), list(results)))
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
                runs.put(list(results.values()), start, stop, version.session.run(feed, list(results)))
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
            for span in runs.touched(spans, different):
                answers.regrouped += self._regroup(rows, span, results, version)
            different = _differing(rows, ran, results)
        beyond = np.zeros(len(rows), np.bool_)
        for name, got in results.items():
            compared = _count(ran & rows.answered[name])
            # Rows that are the same need no arithmetic.
            at = np.flatnonzero(different & rows.answered[name])
            found, far = difference(got[at], rows.logged[name][at], self._wish.tolerance)
            width = got[0].size if len(got) else 0
            found.elements += (compared - found.rows) * width
            found.rows = compared
            answers.output(name).add(found)
            beyond[at[far]] = True
            for index in at[far][:MAX_EXAMPLES].tolist():
                answers.example(rows, index, name, rows.logged[name][index], got[index])
        answers.rows += _count(ran)
        answers.same += _count(ran & ~different)
        answers.beyond += _count(beyond)

    def _regroup(self, rows: Rows, span: Span, results: Mapping[str, Array], version: Version) -> int:
        """Try the other ways in which a server may have run these rows; returns how many are the same in one of them.

        A batch in which one request failed was run again request by request.
        """
        before = {name: array[slice(*span)].copy() for name, array in results.items()}
        for others in (runs.requests(span, rows.first), [span], runs.pieces(span, 1)):
            if not self._run_each(rows, others, results, version):
                inside = runs.inside([span], len(rows))
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
            quality.add(truth, array[use].reshape(_count(use), -1)[:, element])


def _count(mask: Array) -> int:
    """How many rows are True, which takes numpy a tenth of what a sum does."""
    return int(np.count_nonzero(mask))


def _named(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch without the requests that were refused before they had a row."""
    rows = batch.column("row")
    return batch.filter(rows.is_valid()) if rows.null_count else batch


def _ids(data: Path, source: Source, first: int, count: int) -> pa.Array:
    """The prediction ids of `count` rows of a source from row `first` on, of those that are named. Raises Damaged."""
    found: list[pa.Array] = []
    for batch in read(data, source, ("prediction_id", "row")):
        ids = _named(batch).column("prediction_id")
        piece = ids.slice(first, count)
        found.append(piece)
        first, count = max(0, first - len(ids)), count - len(piece)
        if not count:
            break
    return pa.concat_arrays(found)


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
        different = differing(got, rows.logged[name])
        if different.any():
            found |= different & rows.answered[name] & ran
    return found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let no garbage be looked for: what is kept of thousands of runs for a moment asks for it again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
