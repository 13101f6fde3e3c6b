"""Fetching what a model said: the outputs (and features) of many predictions at once, from journal and archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gateway.journal import ids
from gateway.journal.reader import INDEX_FOLDER, Damaged, Locator, Segment, Side
from gateway.journal.schema import Form
from monitors.tail import ANSWERED, flat
from monitors.task import Task
from monitors.types import Array, Floats

Wanted = tuple[str, int]
"""A prediction id without its row, and the row of the request."""


class Said(NamedTuple):
    """What was said in one row: its score, (1,) or (classes,), and those features that were asked for; None: none."""

    score: Floats
    features: dict[str, Any] | None


class Fetcher:
    """Reads what a task compares. `features`: names of columns (as `tail.flat` gives them) that are wanted too."""

    def __init__(self, data: Path, locator: Locator) -> None:
        self._archive = data / "archive"
        self._locator = locator

    def fetch(self, task: Task, wanted: Sequence[Wanted], features: Sequence[str] = ()) -> dict[Wanted, Said | str]:
        """By prediction what was said there, or in words why that is not known. Raises OSError."""
        groups: defaultdict[str, list[tuple[Wanted, int]]] = defaultdict(list)
        found: dict[Wanted, Said | str] = {}
        for each in wanted:
            name = ids.parse(each[0])
            if name is None:
                found[each] = "no prediction has an id of this form"
            else:
                groups[name.prefix].append((each, name.row))
        for prefix, rows in groups.items():
            try:
                segment = self._locator.segment(prefix)
                if segment is None:
                    found.update({each: "the prediction is not kept any more" for each, _ in rows})
                elif segment.path.parent.name == INDEX_FOLDER:
                    found.update(self._archived(task, prefix, [each for each, _ in rows], features))
                elif task.score in segment.outputs and all(_tensor(name) in segment.inputs for name in features):
                    found.update(self._columns(task, segment, rows, features))
                else:
                    found.update({each: self._alone(task, each, features) for each, _ in rows})
            except Damaged as error:
                found.update({each: str(error) for each, _ in rows})
        return found

    def _columns(
        self, task: Task, segment: Segment, rows: Sequence[tuple[Wanted, int]], features: Sequence[str]
    ) -> dict[Wanted, Said | str]:
        first = np.array([row for _, row in rows])
        at = first + np.array([each[1] for each, _ in rows])
        inside = at < segment.rows()
        held = np.where(inside, at, 0)
        plain = inside & (segment.column("form")[held] == Form.COLUMNS)
        answered = plain & (segment.column("status")[held] == ANSWERED)
        scores = task.scores({task.score: segment.outputs[task.score][held]}, len(at))
        inputs: dict[str, Array] = {}
        for tensor in {_tensor(name) for name in features}:
            inputs.update(flat(tensor, segment.inputs[tensor][held]))
        unasked = _unasked(segment, held, task.score)
        found: dict[Wanted, Said | str] = {}
        for place, (each, _) in enumerate(rows):
            if unasked[place]:
                found[each] = f"nobody asked for the output {task.score!r}"
            elif not plain[place]:
                found[each] = self._alone(task, each, features)
            elif not answered[place]:
                found[each] = "the prediction failed"
            elif scores is None:
                found[each] = f"the output {task.score!r} does not fit"
            else:
                own = {name: inputs[name][place].item() for name in features if name in inputs}
                found[each] = Said(np.atleast_1d(scores[place]), own if len(own) == len(features) else None)
        return found

    def _alone(self, task: Task, wanted: Wanted, features: Sequence[str]) -> Said | str:
        """One prediction by itself: where its values are strings or have no columns."""
        record = self._locator.record(f"{wanted[0]}#{wanted[1]}")
        if record is None:
            return "the prediction is not kept any more"
        if record.meta["status"] != ANSWERED:
            return "the prediction failed"
        inputs = {name: np.asarray(value) for name, value in record.inputs.items()}
        return _said(task, record.outputs.get(task.score), inputs, features)

    def _archived(
        self, task: Task, prefix: str, wanted: Sequence[Wanted], features: Sequence[str]
    ) -> dict[Wanted, Said | str]:
        # Only who joins late labels needs pyarrow.
        from monitors.archived import values

        names = {("output", task.score), *(("input", _tensor(name)) for name in features)}
        found: dict[Wanted, Said | str] = {}
        for each, own in values(self._archive, prefix, names, wanted).items():
            if isinstance(own, str):
                found[each] = own
            else:
                inputs = {name: value for (group, name), value in own.items() if group == "input"}
                found[each] = _said(task, own.get(("output", task.score)), inputs, features)
        return found


def _unasked(segment: Segment, rows: Array, output: str) -> Array:
    """bool (n,): rows whose client asked for other outputs alone, so that this one was not computed."""
    found = np.zeros(len(rows), np.bool_)
    offsets = segment.column("side")[rows]
    if (offsets > 0).any():
        with Side(segment) as side:
            for place in np.flatnonzero(offsets > 0).tolist():
                only = side.frame(int(offsets[place])).get("only")
                found[place] = only is not None and output not in only
    return found


def _said(task: Task, value: Any, inputs: Mapping[str, Array], features: Sequence[str]) -> Said | str:
    """What one row said, from its values in their shapes."""
    if value is None:
        return f"no value of the output {task.score!r} is kept"
    scores = task.scores({task.score: np.asarray(value)[np.newaxis]}, 1)
    if scores is None:
        return f"the output {task.score!r} does not fit"
    return Said(np.atleast_1d(scores[0]), _features(inputs, features))


def _tensor(feature: str) -> str:
    """The tensor that a column is of: ``x`` of ``x[3]``."""
    head, bracket, rest = feature.rpartition("[")
    return head if bracket and rest.endswith("]") and rest[:-1].isdigit() else feature


def _features(inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        found.update({key: _plain(column[0]) for key, column in flat(name, value[np.newaxis]).items()})
    own = {name: found[name] for name in names if name in found}
    return own if len(own) == len(names) else None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def columns_of(said: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> dict[str, Array]:
    """Features row by row as columns; missing ones are NaN, or None among strings."""
    found: dict[str, Array] = {}
    for name in names:
        values = [None if each is None else each.get(name) for each in said]
        if any(isinstance(value, str) for value in values):
            column = np.empty(len(values), object)
            column[:] = values
            found[name] = column
        else:
            found[name] = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    return found
