"""Recorder: what one version's requests become in the journal. It hands out the blocks they are decoded into.

The inputs that are kept as they are need no copy: a block is a window on the columns of a segment. The rest of a record
is written when the answer is known and before it is sent, for a whole batch at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gateway.errors import NotReady
from gateway.inference.block import Block, Layout
from gateway.journal import keep, schema
from gateway.journal.contents import Contents, hash_key, note
from gateway.journal.keep import JournalRule, Kept
from gateway.journal.schema import Column, Form, SegmentSpec
from gateway.journal.segment import Segment, Target
from gateway.oip.datatypes import DATATYPES
from gateway.types import Array, Contract, TensorSpec

if TYPE_CHECKING:
    from gateway.inference.call import Call
    from gateway.inference.times import Times

LANES = 3
BAD_REQUEST = 400
MAX_TARGETS = 64
"""Sets of requested outputs whose columns are remembered."""


class Run(msgspec.Struct, gc=False):
    """What the answers of a run have in common: its rows and length, when they are given, and (`wall_ns`) what makes
    Unix time of the monotonic clock. All in nanoseconds. `plain` as in Batch."""

    rows: int
    run_ns: int
    now_ns: int
    wall_ns: int
    plain: bool = False


class Disk(NamedTuple):
    """What a recorder asks of the journal. `open` and `unwritten` raise NotReady where records are required.

    `open` makes a segment of so many rows or gives None where there is no room: then blocks are in memory alone.
    `dropped` is told how many records are lost, `unwritten` also why they could not be written.
    """

    open: Callable[[SegmentSpec, int], Segment | None]
    dropped: Callable[[int], None]
    unwritten: Callable[[OSError, int], None]


class Recorder:
    """One version in the journal of one worker. Belongs to the thread of the event loop."""

    def __init__(
        self,
        template: SegmentSpec,
        contract: Contract,
        layout: Layout,
        rule: JournalRule,
        secret: bytes,
        disk: Disk,
    ) -> None:
        self._layout = layout
        self._secret = secret
        self._open, self._dropped, self._unwritten = disk
        fixed = layout.fits
        self.inputs = [keep.decide(spec, rule.tensors, fixed=fixed) for spec in contract.inputs]
        self.outputs = [
            keep.decide(spec, rule.tensors, fixed=contract.batched and _has_fixed_rows(spec))
            for spec in contract.outputs
        ]
        self._contents = Contents(contract, secret)
        # What was wrong with a request is told with the value that was wrong.
        self._quotes = not any(kept.rule.redact or kept.rule.keep == "none" for kept in self.inputs)
        self._plain_outputs = {kept.name for kept in self.outputs if kept.direct}
        self._direct = [kept.direct for kept in self.inputs] if fixed else []
        # What is no column as it came: a version without any of it has a shorter path.
        self._others = [kept for kept in self.inputs if not kept.direct and kept.rule.keep != "none"]
        self.spec = msgspec.structs.replace(
            template,
            columns=schema.meta_columns()
            + _columns("input", self.inputs, contract.inputs)
            + _columns("output", self.outputs, contract.outputs),
            side=_others("input", self.inputs, contract) + _others("output", self.outputs, contract),
            kept={kept.name: kept.words() for kept in (*self.inputs, *self.outputs)},
            redaction_version=rule.redaction_version,
        )
        self._segments: list[Segment | None] = [None] * LANES
        self._windows: list[Block | None] = [None] * LANES
        self._scratch: list[tuple[Array, ...]] = []
        self.closing: list[Segment] = []

    # -- blocks

    def next(self, lane: int, rows: int, previous: Block | None) -> Block:
        """A block with room for `rows`, in place of `previous`. Raises NotReady where a record is required."""
        segment = self._segments[lane]
        if previous is not None and not previous.full:
            previous.full = True
            if not previous.held:
                self.give(previous)
        if segment is not None:
            segment.close_window()
            if segment.capacity - segment.fill < rows or segment.used >= 1:
                self._roll(lane)
                segment = None
        if segment is None:
            segment = self._segments[lane] = self._open(self.spec, max(rows, self.least_rows))
        if segment is None:
            block = self._windows[lane] = Block(self._layout)
            return block
        base = segment.fill
        capacity = min(self._layout.capacity, segment.capacity - base)
        arrays, scratch = self._arrays(segment, base, capacity)
        block = Block(self._layout, segment, base, capacity, arrays)
        block.scratch = scratch
        segment.window = self._windows[lane] = block
        return block

    def give(self, block: Block) -> None:
        """Nobody needs the rows of a block any more."""
        if block.scratch and len(self._scratch) < LANES:
            self._scratch.append(block.scratch)

    def seat(self, call: Call) -> None:
        """Give a call without a block the row that its id names, in the order in which calls of its priority run."""
        lane = call.priority
        block = self._windows[lane]
        if block is None or block.full or block.fill == block.capacity:
            block = self.next(lane, 1, block)
        call.segment = block.segment
        call.slot = block.base + block.fill
        call.prediction_id = block.prefix + b"%08x" % call.slot
        block.fill += 1

    def _arrays(self, segment: Segment, base: int, capacity: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The arrays of a window, and those among them that are memory and no columns."""
        spare: tuple[Array, ...] = ()
        if not all(self._direct):
            spare = self._scratch.pop() if self._scratch else Block.allocate(self._layout, self._direct)
        memory = iter(spare)
        arrays = tuple(
            segment.inputs[kept.name][base : base + capacity] if direct else next(memory)
            for kept, direct in zip(self.inputs, self._direct, strict=False)
        )
        return arrays, spare

    @property
    def least_rows(self) -> int:
        """Rows that a segment must have: those of the largest request that a block takes."""
        return self._layout.capacity

    def _roll(self, lane: int) -> None:
        segment = self._segments[lane]
        window = self._windows[lane]
        if window is not None:
            # Whoever fills it asks for another one.
            window.full = True
        if segment is not None:
            segment.close_window()
            self.closing.append(segment)
        self._segments[lane] = self._windows[lane] = None

    def segments(self) -> list[Segment]:
        """The segments that are being written."""
        return [segment for segment in self._segments if segment is not None]

    def roll(self, older_than_s: float) -> None:
        """Put segments aside that are older, or used up; they are sealed when their last row is written."""
        now = time.monotonic()
        for lane, segment in enumerate(self._segments):
            block = self._windows[lane]
            if segment is None and block is not None:
                # It is in memory alone. For the next one the disk may have room again.
                block.full = True
            if segment is None or (block is not None and block.held):
                continue
            if now - segment.opened >= older_than_s or segment.used >= 1:
                self._roll(lane)

    def retire(self) -> None:
        """Have the next request of each lane begin another segment, where its own is used up."""
        for segment, window in zip(self._segments, self._windows, strict=True):
            if segment is not None and window is not None and segment.used >= 1:
                window.full = True

    # -- records

    def answered(
        self, calls: Sequence[Call], names: tuple[str, ...], arrays: Sequence[Array], times: Times, run: Run
    ) -> None:
        """The answers of calls that ran together, in order; `arrays` are the outputs `names` of just these calls.

        `run.plain` as in Batch.
        """
        block = calls[0].block
        if block is None:
            for index, call in enumerate(calls):
                rows = slice(call.row, call.row + call.rows)
                own = [array[rows] for array in arrays] if len(calls) > 1 else arrays
                self._loose(call, names, own, int(times.queue[index]), run)
            return
        segment = block.segment
        if segment is None:
            self._dropped(sum([call.rows for call in calls]))
            return
        start, stop = block.base + calls[0].row, block.base + calls[-1].row + calls[-1].rows
        count = stop - start
        columns = segment.targets.get(names) or self._targets(segment, names)
        plain = len(names) == len(self.outputs)
        for column, array in zip(columns, arrays, strict=True):
            if column is None or array.size != count * column.width:
                plain = False
            elif count == 1 and array.dtype == column.dtype:
                # numpy takes twice as long to find out that a row is a row.
                size = column.row_bytes
                column.memory[start * size : start * size + size] = array.tobytes()
            else:
                column.array[start:stop] = array
        if count == 1:
            call = calls[0]
            arrived_ns = call.arrived_ns
            time_at, latency_at, queue_at, run_at, span_at, batch_at, status_at = segment.scalars
            time_at[start] = arrived_ns + run.wall_ns
            latency_at[start] = run.now_ns - arrived_ns
            queue_at[start] = times.queue[0]
            run_at[start] = run.run_ns
            span_at[start] = 1
            batch_at[start] = run.rows
            if call.noted or not plain or self._others:
                self._frames(segment, block, calls, names, arrays, start, stop)
            status_at[start] = call.outcome or 200
            return
        segment.run_ns[start:stop] = run.run_ns
        segment.batch[start:stop] = run.rows
        if count == len(calls):
            arrived = np.asarray(times.arrived, np.int64)
            segment.time_ns[start:stop] = arrived + run.wall_ns
            segment.latency_ns[start:stop] = run.now_ns - arrived
            segment.queue_ns[start:stop] = times.queue
            segment.span[start:stop] = 1
        else:
            for call, queue_ns in zip(calls, times.queue, strict=True):
                self._time(segment, block.base + call.row, call, call.rows, run.now_ns, run.wall_ns, queue_ns)
        noted = [] if run.plain else [call for call in calls if call.noted]
        if noted or not plain or self._others:
            self._frames(segment, block, noted, names, arrays, start, stop)
        if run.plain or (count == len(calls) and not any([call.gone for call in calls])):
            segment.status[start:stop] = 200
        else:
            for call in calls:
                row = block.base + call.row
                segment.status[row : row + call.rows] = call.outcome or 200

    def _targets(self, segment: Segment, names: tuple[str, ...]) -> tuple[Target | None, ...]:
        """The columns of some outputs, None for those that have no column of their values as they come."""
        found = tuple(Target.of(segment.outputs[name]) if name in self._plain_outputs else None for name in names)
        if len(segment.targets) < MAX_TARGETS:
            segment.targets[names] = found
        return found

    def ended(self, call: Call, status: int, code: str, now_ns: int, wall_ns: int) -> None:
        """A call that had rows ends without an answer, and without a record so far."""
        block = call.block
        segment = call.segment if block is None else block.segment
        if segment is None:
            self._dropped(call.rows)
            return
        row = call.slot if block is None else block.base + call.row
        rows = slice(row, row + (1 if block is None else call.rows))
        self._time(segment, row, call, rows.stop - rows.start, now_ns, wall_ns, 0)
        frame: dict[str, Any] = {"row": row, "n": call.rows, "code": code}
        note(frame, [call], row if block is None else block.base)
        if block is None:
            segment.form[row] = Form.FRAME
            frame["inputs"] = self._contents.whole(self.inputs, call.arrays or {}, call, always=True)
        else:
            # What failed is kept whole, whatever the rule samples, but never what must not be written.
            values = {
                kept.name: array[call.row : call.row + call.rows]
                for kept, array in zip(self.inputs, block.arrays, strict=True)
                if not kept.direct
            }
            others = [kept for kept in self.inputs if not kept.direct]
            frame["inputs"] = self._contents.whole(others, values, call, always=True)
        if call.key:
            segment.key[rows] = hash_key(call.key)
        self._append_end(segment, rows, frame)
        segment.status[rows] = status

    def refused(
        self, status: int, code: str, message: str, arrived_ns: int, now_ns: int, wall_ns: int, request_id: str
    ) -> None:
        """A request that never got a row: its record is a frame alone."""
        segment = self._segments[1]
        if segment is None or segment.used >= 1:
            segment = None
            with suppress(NotReady):
                segment = self.next(1, 1, self._windows[1]).segment
        if segment is None:
            self._dropped(1)
            return
        frame = {
            "refused": code,
            "status": status,
            "message": message if self._quotes or status != BAD_REQUEST else "it may quote values that are not kept",
            "time_ns": arrived_ns + wall_ns,
            "latency_ns": now_ns - arrived_ns,
        }
        if request_id:
            frame["request_id"] = request_id
        self._append_end(segment, slice(0, 0), frame)

    # -- parts of a record

    @staticmethod
    def _time(segment: Segment, row: int, call: Call, rows: int, now_ns: int, wall_ns: int, queue_ns: int) -> None:
        """When a call came and how long it took, for all of its rows; and that it begins at `row`."""
        segment.time_ns[row : row + rows] = call.arrived_ns + wall_ns
        segment.latency_ns[row : row + rows] = now_ns - call.arrived_ns
        segment.queue_ns[row : row + rows] = queue_ns
        # A call of no rows has a record, too.
        segment.span[row] = max(1, call.rows)

    def _loose(self, call: Call, names: Sequence[str], arrays: Sequence[Array], queue_ns: int, run: Run) -> None:
        """A call of varying shape, or larger than a block: one row, and everything in its frame."""
        segment, row = call.segment, call.slot
        if segment is None:
            self._dropped(call.rows)
            return
        self._time(segment, row, call, 1, run.now_ns, run.wall_ns, queue_ns)
        segment.run_ns[row] = run.run_ns
        segment.batch[row] = run.rows
        segment.form[row] = Form.FRAME
        frame: dict[str, Any] = {"row": row, "n": call.rows}
        frame["inputs"] = self._contents.whole(self.inputs, call.arrays or {}, call)
        frame["outputs"] = self._contents.whole(self.outputs, dict(zip(names, arrays, strict=True)), call)
        note(frame, [call], row)
        if call.key:
            segment.key[row] = hash_key(call.key)
        self._append(segment, slice(row, row + 1), frame)
        segment.status[row] = call.outcome or 200

    def _frames(
        self,
        segment: Segment,
        block: Block,
        noted: Sequence[Call],
        names: Sequence[str],
        arrays: Sequence[Array],
        start: int,
        stop: int,
    ) -> None:
        """The frame of a batch: strings, ids, digests, samples; and the columns of what was redacted."""
        frame: dict[str, Any] = {"row": start, "n": stop - start}
        if len(names) < len(self.outputs):
            # Nobody asked for the others, so they were not computed: what stands in their columns means nothing.
            frame["only"] = list(names)
        note(frame, noted, block.base)
        for call in noted:
            if call.key:
                row = block.base + call.row
                segment.key[row : row + call.rows] = hash_key(call.key)
        inputs, outputs = {}, {}
        for kept, values in zip(self.inputs, block.arrays, strict=True):
            if not kept.direct:
                inputs[kept.name] = values[start - block.base : stop - block.base]
        for name, array in zip(names, arrays, strict=True):
            if name not in self._plain_outputs or array.shape != segment.outputs[name][start:stop].shape:
                outputs[name] = array
        for group, kepts, found in (("input", self.inputs, inputs), ("output", self.outputs, outputs)):
            for kept in kepts:
                if kept.name not in found or kept.rule.keep == "none":
                    continue
                array = found[kept.name]
                column = (segment.inputs if group == "input" else segment.outputs).get(kept.name)
                if column is not None and array.shape[1:] == column.shape[1:]:
                    column[start:stop] = keep.redact(kept.rule, array, self._secret)
                else:
                    self._contents.stretch(frame, group + "s", kept, array, segment, start)
        self._append(segment, slice(start, stop), frame)

    def _append(self, segment: Segment, rows: slice, frame: dict[str, Any]) -> None:
        """Raises NotReady where a record is required and the disk has no room."""
        try:
            segment.side_at[rows] = segment.append_frame(frame)
        except OSError as error:
            self._unwritten(error, max(1, rows.stop - rows.start))
        if segment.used >= 1:
            self.retire()

    def _append_end(self, segment: Segment, rows: slice, frame: dict[str, Any]) -> None:
        """The request is refused already: that it cannot be recorded either must not hide why."""
        try:
            self._append(segment, rows, frame)
        except NotReady:
            self._dropped(max(1, rows.stop - rows.start))


def segments_of(calls: Iterable[Call]) -> set[Segment]:
    """The segments in which calls have their records."""
    found = {call.segment if call.block is None else call.block.segment for call in calls}
    return {segment for segment in found if segment is not None}


def _has_fixed_rows(spec: TensorSpec) -> bool:
    return spec.shape is not None and len(spec.shape) > 0 and -1 not in spec.shape[1:]


def _columns(group: str, kepts: Sequence[Kept], specs: Sequence[TensorSpec]) -> tuple[Column, ...]:
    return tuple(
        Column(group, spec.name, DATATYPES[spec.datatype].dtype.str, tuple(spec.shape[1:]), 0)
        for kept, spec in zip(kepts, specs, strict=True)
        if kept.column and spec.shape is not None
    )


def _others(group: str, kepts: Sequence[Kept], contract: Contract) -> tuple[Column, ...]:
    """What has no column, as a segment tells it."""
    specs = contract.inputs if group == "input" else contract.outputs
    return tuple(
        Column(
            group,
            spec.name,
            DATATYPES[spec.datatype].dtype.str,
            tuple(spec.shape[1:]) if contract.batched and spec.shape and _has_fixed_rows(spec) else schema.VARYING,
            0,
        )
        for kept, spec in zip(kepts, specs, strict=True)
        if not kept.column
    )
