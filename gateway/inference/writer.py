"""Writer: the outputs of a batch to the replies of its calls, from prebuilt pieces.

The values of all rows are written as JSON at once and cut per row; what stands around them was written before.
A reply that needs more (classes, literal NaN) is written by `oip.response`; both give the same bytes where both can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import orjson

from gateway.inference.call import Call
from gateway.oip.datatypes import DATATYPES, is_float
from gateway.oip.response import encode
from gateway.oip.tensors import to_binary
from gateway.types import Array, Contract, InferRequest, InferResponse, OutputRequest, TensorSpec

MAX_PLANS = 64
_ROW_ENDS = b"],["


class ReplyPlan:
    """How the replies to one set of requested outputs are put together.

    `names`: what the session must compute. `special`: some output cannot be written by a form. `forms`: see `_form`.
    """

    __slots__ = ("forms", "names", "outputs", "special", "specs")

    def __init__(self, outputs: tuple[OutputRequest, ...], specs: Mapping[str, TensorSpec]) -> None:
        self.outputs = outputs
        self.names = tuple(output.name for output in outputs)
        self.specs = tuple(specs[name] for name in self.names)
        strings = any(output.binary and specs[output.name].datatype == "BYTES" for output in outputs)
        self.special = strings or any(output.classification for output in outputs)
        self.forms: dict[tuple[Any, ...], bytes] = {}


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
        self, calls: Sequence[Call], names: Sequence[str], arrays: Sequence[Array], first_row: int | None
    ) -> tuple[list[tuple[bytes, int]], int]:
        """(body, length of its JSON part) for each call, and how many non-finite values became null.

        `arrays` are the outputs `names` of the batch; `first_row` is the block row of their row 0, or None where the
        single call of the batch owns them whole.
        """
        first = calls[0].plan if calls else None
        empty = 0 in [array.size for array in arrays]
        if first is not None and not first.special and not empty and first.names == names:
            rows = calls[0].rows
            if len(calls) == 1 and not calls[0].literal:
                return self._alike(first, calls, arrays, first_row, rows)
            if all([call.plan is first and call.rows == rows and not call.literal for call in calls]):
                return self._alike(first, calls, arrays, first_row, rows)
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
        self, plan: ReplyPlan, calls: Sequence[Call], arrays: Sequence[Array], first_row: int | None, rows: int
    ) -> tuple[list[tuple[bytes, int]], int]:
        """Calls of as many rows and the same outputs: what most batches are. One format a reply."""
        if first_row is None and any([array.ndim == 0 or len(array) != rows for array in arrays]):
            body, length, count = self._plain(calls[0], plan, dict(zip(plan.names, arrays, strict=True)), {}, None)
            return [(body, length)], count
        key = (rows, *[array.shape[1:] for array in arrays])
        form = plan.forms.get(key) or self._form(plan, key)
        nonfinite = 0
        texts: list[list[bytes]] = []
        blobs: list[tuple[bytes, int]] = []
        for output, spec, array in zip(plan.outputs, plan.specs, arrays, strict=True):
            if output.binary:
                raw = to_binary(array, DATATYPES[spec.datatype])
                blobs.append((raw, len(raw) // len(array) if len(array) else 0))
            else:
                cut, nulls = _rows(array)
                nonfinite += nulls
                texts.append(cut)
        replies = []
        for call in calls:
            row = 0 if first_row is None else call.row - first_row
            pid = call.prediction_id
            call_id = orjson.dumps(call.id) if call.id else b'"%b"' % pid
            if rows == 1:
                body = form % (call_id, pid, *[text[row] for text in texts])
            else:
                body = form % (call_id, pid, *[b",".join(text[row : row + rows]) for text in texts])
            length = len(body)
            if blobs:
                body = b"".join([body, *[raw[row * width : (row + rows) * width] for raw, width in blobs]])
            replies.append((body, length))
        return replies, nonfinite

    def _form(self, plan: ReplyPlan, key: tuple[Any, ...]) -> bytes:
        """The JSON part of such a reply with a place for the id, the prediction id and each output's values."""
        rows, *trailing = key
        pieces = []
        for at, (output, spec, shape) in enumerate(zip(plan.outputs, plan.specs, trailing, strict=True)):
            size = rows * prod(shape) * DATATYPES[spec.datatype].size if output.binary else -1
            head = self._head(output.name, at, (rows, *shape), size).replace(b"%", b"%%")
            pieces.append(head if output.binary else head + b"%b]}")
        front = self._front.replace(b"%", b"%%")
        form = front + b'%b,"parameters":{"prediction_id":"%b"},"outputs":[' + b"".join(pieces) + b"]}"
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
    if array.ndim > 2:
        array = array.reshape(count, -1)
    depth = array.ndim
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[depth:-depth]
    nulls = text.count(b"null")
    if count == 1:
        return [text], nulls
    return text.split(b"," if depth == 1 else b"],["), nulls
