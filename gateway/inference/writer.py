"""Writer: the outputs of a batch to the replies of its calls, from prebuilt pieces.

The values of all rows are written as JSON at once and cut per row; what stands around them was written before.
A reply that needs more (classes, literal NaN) is written by `oip.response`; both give the same bytes where both can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from gateway.inference.call import Call
from gateway.oip.datatypes import DATATYPES, Datatype, is_float
from gateway.oip.response import encode
from gateway.oip.tensors import to_binary
from gateway.types import Array, Contract, InferRequest, InferResponse, OutputRequest, TensorSpec

MAX_PLANS = 64
_ROW_ENDS = b"],["
LETTER_N = ord("n")
_shape_of = attrgetter("shape")


class _Lone(NamedTuple):
    """How a single call is written: the form, and of each output the brackets around its values in JSON, or (`kinds`)
    the datatype of what is binary."""

    form: bytes
    depths: tuple[int, ...]
    kinds: tuple[Datatype | None, ...]


class ReplyPlan:
    """How the replies to one set of requested outputs are put together.

    `names`: what the session must compute. `special`: some output cannot be written by a form. `forms`: see `_form`.
    `lone`: by the shapes of the outputs, how a single call is written: see `_Lone`.
    """

    __slots__ = ("forms", "lone", "names", "outputs", "special", "specs")

    def __init__(self, outputs: tuple[OutputRequest, ...], specs: Mapping[str, TensorSpec]) -> None:
        self.outputs = outputs
        self.names = tuple(output.name for output in outputs)
        self.specs = tuple(specs[name] for name in self.names)
        strings = any(output.binary and specs[output.name].datatype == "BYTES" for output in outputs)
        self.special = strings or any(output.classification for output in outputs)
        self.forms: dict[tuple[Any, ...], bytes] = {}
        self.lone: dict[tuple[tuple[int, ...], ...], _Lone] = {}


class Writer:
    """Writes the replies of one version."""

    def __init__(self, model: str, version: int, contract: Contract, labels: Mapping[str, Sequence[str]]) -> None:
        self._model = model
        self._version = version
        self._contract = contract
        self._labels = labels
        self._specs = {spec.name: spec for spec in contract.outputs}
        self._plans: dict[tuple[OutputRequest, ...], ReplyPlan] = {}
        self._heads: dict[tuple[Any, ...], bytes] = {}
        self._front = b'{"model_name":%b,"model_version":"%d","id":' % (orjson.dumps(model), version)

    def plan(self, outputs: tuple[OutputRequest, ...]) -> ReplyPlan:
        """The plan for requested outputs, made once for each set of them."""
        found = self._plans.get(outputs)
        if found is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            found = self._plans[outputs] = ReplyPlan(outputs, self._specs)
        return found

    def write(
        self,
        calls: Sequence[Call],
        names: Sequence[str],
        arrays: Sequence[Array],
        first_row: int | None,
        *,
        plain: bool = False,
    ) -> tuple[list[tuple[bytes, int]], int]:
        """(body, length of its JSON part) for each call, and how many non-finite values became null.

        `arrays` are the outputs `names` of the batch; `first_row` is the block row of their row 0, or None where the
        single call of the batch owns them whole. `plain` as in Batch: row i is that of call i.
        """
        first = calls[0].plan if calls else None
        if plain and first is not None and len(calls) == 1:
            shapes = tuple(map(_shape_of, arrays))
            lone = first.lone.get(shapes)
            if lone is not None:
                return _one(lone, calls[0].prediction_id, arrays)
            self._keep_lone(first, shapes, arrays)
        if first is not None and not first.special and first.names == names and 0 not in [each.size for each in arrays]:
            rows = calls[0].rows
            alike = plain or all([call.plan is first and call.rows == rows and not call.literal for call in calls])
            if alike and (first_row is not None or all([each.ndim and len(each) == rows for each in arrays])):
                starts = range(len(calls)) if plain else [call.row - (first_row or 0) for call in calls]
                return self._alike(first, calls, arrays, starts if first_row is not None else (0,), rows, plain=plain)
        empty = 0 in [array.size for array in arrays]
        by_name = dict(zip(names, arrays, strict=True))
        texts: dict[str, list[bytes]] = {}
        replies: list[tuple[bytes, int]] = []
        nonfinite = 0
        for call in calls:
            plan = call.plan
            assert plan is not None
            start = 0 if first_row is None else call.row - first_row
            if empty or call.literal or any(output.classification for output in plan.outputs):
                body, length, count = self._general(call, plan, by_name, start, whole=first_row is None)
            else:
                body, length, count = self._plain(call, plan, by_name, texts, None if first_row is None else start)
            nonfinite += count
            replies.append((body, length))
        return replies, nonfinite

    def _alike(
        self,
        plan: ReplyPlan,
        calls: Sequence[Call],
        arrays: Sequence[Array],
        starts: Sequence[int],
        rows: int,
        *,
        plain: bool,
    ) -> tuple[list[tuple[bytes, int]], int]:
        """Calls of as many rows each and the same outputs: what most batches are. One format a reply.

        `starts` are their first rows in the arrays.
        """
        key = (rows, *[array.shape[1:] for array in arrays])
        form = plan.forms.get(key) or self._form(plan, key)
        nonfinite = blob = 0
        texts: list[list[bytes]] = []
        blobs: list[list[bytes]] = []
        for output, spec, array in zip(plan.outputs, plan.specs, arrays, strict=True):
            if output.binary:
                raw = to_binary(array, DATATYPES[spec.datatype])
                width = len(raw) // len(array)
                blob += rows * width
                blobs.append([raw[at * width : (at + rows) * width] for at in starts])
            else:
                cut, nulls = _rows(array)
                nonfinite += nulls
                if rows > 1:
                    cut = [b",".join(cut[at : at + rows]) for at in starts]
                elif not plain:
                    cut = [cut[at] for at in starts]
                texts.append(cut)
        ids = [call.prediction_id for call in calls]
        own = ids if plain else [orjson.dumps(each.id)[1:-1] if each.id else each.prediction_id for each in calls]
        bodies = [form % pieces for pieces in zip(own, ids, *texts, *blobs, strict=True)]
        return [(body, len(body) - blob) for body in bodies], nonfinite

    def _keep_lone(self, plan: ReplyPlan, shapes: tuple[tuple[int, ...], ...], arrays: Sequence[Array]) -> None:
        """Remember how a call alone is written whose outputs are rows of numbers, as `_alike` would do it."""
        simple = not plan.special and all(shape and shape[0] == 1 and 0 not in shape for shape in shapes)
        outputs = list(zip(plan.outputs, plan.specs, arrays, strict=True))
        if simple and all(output.binary or (array.ndim <= 2 and array.dtype != object) for output, _, array in outputs):
            if len(plan.lone) >= MAX_PLANS:
                plan.lone.clear()
            kinds = tuple(DATATYPES[spec.datatype] if output.binary else None for output, spec, _ in outputs)
            form = self._form(plan, (1, *[shape[1:] for shape in shapes]))
            plan.lone[shapes] = _Lone(form, tuple(map(len, shapes)), kinds)

    def _form(self, plan: ReplyPlan, key: tuple[Any, ...]) -> bytes:
        """Such a reply with a place for the id, the prediction id, each JSON output's values, each binary one's."""
        rows, *trailing = key
        pieces = []
        for at, (output, spec, shape) in enumerate(zip(plan.outputs, plan.specs, trailing, strict=True)):
            size = rows * prod(shape) * DATATYPES[spec.datatype].size if output.binary else -1
            head = self._head(output.name, at, (rows, *shape), size).replace(b"%", b"%%")
            pieces.append(head if output.binary else head + b"%b]}")
        front = self._front.replace(b"%", b"%%")
        form = front + b'"%b","parameters":{"prediction_id":"%b"},"outputs":[' + b"".join(pieces) + b"]}"
        form += b"%b" * sum(output.binary for output in plan.outputs)
        if len(plan.forms) >= MAX_PLANS:
            plan.forms.clear()
        plan.forms[key] = form
        return form

    def _plain(
        self,
        call: Call,
        plan: ReplyPlan,
        by_name: Mapping[str, Array],
        texts: dict[str, list[bytes]],
        start: int | None,
    ) -> tuple[bytes, int, int]:
        """One reply, JSON and binary; `start` is its first row in the arrays, None where they are its own."""
        call_id = orjson.dumps(call.id) if call.id else b'"%b"' % call.prediction_id
        parts = [self._front, call_id, b',"parameters":{"prediction_id":"', call.prediction_id, b'"},"outputs":[']
        blobs: list[bytes] = []
        nonfinite = 0
        for position, (output, spec) in enumerate(zip(plan.outputs, plan.specs, strict=True)):
            array = by_name[output.name]
            shape = array.shape if start is None else (call.rows, *array.shape[1:])
            if output.binary:
                blob = to_binary(array if start is None else array[start : start + call.rows], DATATYPES[spec.datatype])
                parts.append(self._head(output.name, position, shape, len(blob)))
                blobs.append(blob)
                continue
            if start is None:
                text = _whole(array)
            else:
                rows = texts.get(output.name)
                if rows is None:
                    rows = texts[output.name] = _rows(array)[0]
                text = b",".join(rows[start : start + call.rows])
            if is_float(spec.datatype):
                nonfinite += text.count(b"null")
            parts += (self._head(output.name, position, shape, -1), text, b"]}")
        parts.append(b"]}")
        text = b"".join(parts)
        return b"".join((text, *blobs)), len(text), nonfinite

    def _head(self, name: str, position: int, shape: tuple[int, ...], blob: int) -> bytes:
        """What stands before an output's values; `blob` is the size of its binary data, -1 for JSON."""
        key = (name, position > 0, shape, blob)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= 1024:
                self._heads.clear()
            dims = orjson.dumps(list(shape))
            datatype = self._specs[name].datatype.encode()
            head = b'%b{"name":%b,"datatype":"%b","shape":%b,' % (
                b"," if position else b"",
                orjson.dumps(name),
                datatype,
                dims,
            )
            head += b'"parameters":{"binary_data_size":%d}}' % blob if blob >= 0 else b'"data":['
            self._heads[key] = head
        return head

    def _general(
        self, call: Call, plan: ReplyPlan, by_name: Mapping[str, Array], start: int, *, whole: bool
    ) -> tuple[bytes, int, int]:
        arrays = tuple(by_name[name] if whole else by_name[name][start : start + call.rows] for name in plan.names)
        prediction_id = call.prediction_id.decode()
        parameters = {"nonfinite": "literal"} if call.literal else {}
        request = InferRequest(call.id or prediction_id, parameters, {}, plan.outputs, call.rows)
        response = InferResponse(self._model, self._version, arrays)
        reply = encode(request, response, self._contract, {"prediction_id": prediction_id}, self._labels)
        length = len(reply.body) if reply.header_length is None else reply.header_length
        return reply.body, length, reply.nonfinite


def _one(lone: _Lone, prediction_id: bytes, arrays: Sequence[Array]) -> tuple[list[tuple[bytes, int]], int]:
    """The reply to a call alone, whose client may wait for nothing else."""
    pieces = [prediction_id, prediction_id]
    blobs: list[bytes] = []
    nulls = 0
    for array, depth, kind in zip(arrays, lone.depths, lone.kinds, strict=True):
        if kind is not None:
            blobs.append(to_binary(array, kind))
            continue
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[depth:-depth]
        if LETTER_N in text:
            nulls += text.count(b"null")
        pieces.append(text)
    if not blobs:
        body = lone.form % tuple(pieces)
        return [(body, len(body))], nulls
    body = lone.form % (*pieces, *blobs)
    return [(body, len(body) - sum(map(len, blobs)))], nulls


def _whole(array: Array) -> bytes:
    """All values of an array as JSON, without the outer brackets."""
    if array.dtype == object:
        return orjson.dumps(array.reshape(-1).tolist())[1:-1]
    return orjson.dumps(array.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _rows(array: Array) -> tuple[list[bytes], int]:
    """The values of each row as JSON, without brackets, and how many of them are null."""
    count = len(array)
    if array.dtype == object:
        return [orjson.dumps(row.reshape(-1).tolist())[1:-1] for row in array.reshape(count, -1)], 0
    depth = array.ndim
    if depth > 2:
        array, depth = array.reshape(count, -1), 2
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[depth:-depth]
    # Only a value that is not finite has the letter: looking for it takes less than counting the word.
    nulls = text.count(b"null") if LETTER_N in text else 0
    if count == 1:
        return [text], nulls
    return text.split(b"," if depth == 1 else _ROW_ENDS), nulls
