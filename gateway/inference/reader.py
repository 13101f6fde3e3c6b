"""Reader: the body of a request straight into the next rows of a block.

The plain forms of a request are read here, each value once: JSON with all inputs in any order, and binary tensors.
Whatever is unusual, wrong, or not of fixed shape goes to `oip.request`, which knows every form and every error; a
plain form is taken only where both would agree, and a property test holds them together.
"""

from __future__ import annotations

from math import nan
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from gateway.errors import InvalidRequest
from gateway.inference.block import Block, Blocks, ColumnSpec, Layout
from gateway.inference.call import Call
from gateway.inference.plain import (
    BACKSLASH,
    CLOSE,
    DATA,
    DATA_KEY,
    ID_FIRST,
    LETTER_L,
    LETTER_R,
    OPEN,
    are_whole,
    colons,
    may_hold_booleans,
    split_id,
)
from gateway.oip import request as oip
from gateway.oip.datatypes import DATATYPES, is_float, nonfinite_count
from gateway.oip.limits import Limits
from gateway.types import Contract, InferRequest, OutputRequest

try:
    import simdjson
except ImportError:  # there are Pythons for which it has no wheels; orjson reads the same, in more time
    _simd: Any = None
else:
    _simd = simdjson.Parser()

MANY_NUMBERS = 96
"""From this many on, simdjson reads them into an array in less time than orjson and struct."""

MAX_SQUARES = 1e76
"""Sum of squares below which no number is too large for 32 bits: that of a larger one is left to the general codec."""

MAX_HEADERS = 128
MAX_HEADER_BYTES = 4096
"""How many JSON parts are remembered, and the longest of them."""

LONG_BODY = 2048
"""Bytes of a body above which it pays not to count through its numbers."""

PRIORITIES = 3
"""Lanes: 0 is urgent (priority 1), 1 normal (0 and 2), 2 may wait (3 and above)."""


class BlockSource(Protocol):
    """Where blocks come from: memory (`Blocks`), or the journal."""

    def next(self, lane: int, rows: int, previous: Block | None) -> Block:
        """A block with room for `rows`, in place of `previous`. Raises HeadgateError where there can be none."""
        ...

    def give(self, block: Block) -> None:
        """Nobody needs the rows of a block any more."""
        ...


class _Header(NamedTuple):
    """What a JSON part said that was seen before: equal bytes mean an equal request, so it is not read again.

    `request` without its inputs and its id.
    """

    sizes: tuple[tuple[int, int], ...]
    total: int
    request: InferRequest


class _Shell(NamedTuple):
    """What stood around the numbers of a JSON body: with the same around others, only these are read.

    `tail` begins with the bracket that closes them; `pack` writes as many numbers as the rows have. `shape` is that of
    all rows, where their numbers are floats, and many. `request` as in _Header.
    """

    tail: bytes
    pack: Any
    shape: tuple[int, ...] | None
    request: InferRequest


class Reader:
    """Reads the requests of one version. `lanes` are the blocks being filled, one per priority."""

    def __init__(self, contract: Contract, limits: Limits, model: str, *, refuse_nonfinite: bool) -> None:
        self.layout = Layout(contract, limits)
        self._contract = contract
        self._limits = limits
        self._model = model
        self._refuse_nonfinite = refuse_nonfinite
        self._at = {column.name: index for index, column in enumerate(self.layout.columns)}
        self._count = len(self.layout.columns)
        self._colons = 1 + 4 * self._count
        single = self.layout.columns[0] if self._count == 1 else None
        self._single = single if single is not None and single.letter is not None else None
        # The plain form asks for all outputs as JSON, which some datatypes cannot be.
        in_json = all(DATATYPES[spec.datatype].in_json for spec in (*contract.inputs, *contract.outputs))
        self._json = self.layout.fits and in_json and not refuse_nonfinite
        self._headers: dict[bytes, _Header] = {}
        self._shells: dict[bytes, _Shell] = {}
        self._packers: dict[tuple[str, int], Any] = {}
        self.source: BlockSource = Blocks(self.layout, PRIORITIES)
        self._blocks: list[Block | None] = [None] * PRIORITIES
        self.everything = tuple(OutputRequest(spec.name, False) for spec in contract.outputs)

    def read(self, call: Call, body: bytes, header: str | None) -> None:
        """Decode `body` into `call`. Raises ClientError; then no row is taken."""
        name, plain = "", body
        if header is None:
            if self._json:
                # Most bodies end with their numbers.
                if self._shells and self._read_numbers(call, body, body.rfind(OPEN)):
                    return
                if body.startswith(ID_FIRST):
                    name, plain = split_id(body, self._limits.max_text)
                at = plain.find(OPEN, plain.find(DATA))
                if (self._shells and self._read_numbers(call, plain, at)) or self._read_json(call, plain):
                    if name:
                        call.id, call.noted = name, True
                    return
        elif self._read_binary(call, body, header):
            return
        request = oip.decode(body, header, self._contract, self._limits, self._model)
        if self._refuse_nonfinite:
            self._check_finite(request)
        self._adopt(call, request)
        # A call of no rows would share its row, and so its prediction id, with the next one.
        if self.layout.fits and 0 < request.rows <= self.layout.capacity:
            block, row = self._room(call.priority, request.rows)
            for array, value in zip(block.arrays, request.inputs.values(), strict=True):
                array[row : row + request.rows] = value
            self._take(call, block, row, request.rows)
            if header is not None:
                self._remember(body, header, request)
            elif self._json and self._single is not None and BACKSLASH not in plain and request.id == name:
                self._keep_shell(plain, self._single, _bare(request))
        else:
            call.arrays = request.inputs
            call.rows = request.rows

    def release(self, block: Block, calls: int = 1) -> None:
        """So many calls no longer need their rows."""
        block.held -= calls
        if not block.held and block.full:
            self.source.give(block)

    # -- rows

    def _room(self, priority: int, rows: int) -> tuple[Block, int]:
        block = self._blocks[priority]
        if block is None or block.full or block.fill + rows > block.capacity:
            block = self._blocks[priority] = self.source.next(priority, rows, block)
        return block, block.fill

    @staticmethod
    def _take(call: Call, block: Block, row: int, rows: int) -> None:
        block.fill = row + rows
        block.held += 1
        call.block = block
        call.row = row
        call.rows = rows

    # -- the plain forms

    def _read_numbers(self, call: Call, body: bytes, start: int) -> bool:
        """A body that differs from one that was read before in nothing but its numbers, which begin at `start`."""
        shell = self._shells.get(body[:start])
        if shell is None:
            return False
        stop = body.find(CLOSE, start)
        text = body[start : stop + 1]
        # Numbers have no such letters, but true, false and null do, and struct packs True as 1.
        if body[stop:] != shell.tail or LETTER_L in text or LETTER_R in text:
            return False
        self._adopt(call, shell.request)
        rows = shell.request.rows
        block, row = self._room(call.priority, rows)
        try:
            if shell.shape is not None and _simd is not None:
                values = np.frombuffer(_simd.parse(text).as_buffer(of_type="d"))
                if not values.dot(values) < MAX_SQUARES:
                    return False
                block.arrays[0][row : row + rows] = values.reshape(shell.shape)
            else:
                shell.pack(block.raw[0], row * self.layout.columns[0].row_bytes, *orjson.loads(text))
        except (ValueError, TypeError, RuntimeError, StructError, OverflowError):
            # Whatever it is that is no number in its place, the general codec has a name for it.
            return False
        block.fill = row + rows
        block.held += 1
        call.block, call.row, call.rows = block, row, rows
        return True

    def _keep_shell(self, body: bytes, column: ColumnSpec, request: InferRequest) -> None:
        """Remember what stands around the numbers of a body that was just read, if they are one list.

        Without a backslash in the body, the bytes ``"data":[`` can only be that key and the beginning of its list.
        """
        start = body.find(OPEN, body.find(DATA))
        stop = body.find(CLOSE, start)
        is_list = body.endswith((b'"data":', b'"data": '), 0, max(start, 0)) and body.find(OPEN, start + 1, stop) < 0
        if not is_list or start + len(body) - stop > MAX_HEADER_BYTES:
            return
        head, tail = body[:start], body[stop:]
        # Members that mean nothing may hold whatever they like, and the list of the tensor may be another one then.
        if len(DATA_KEY.findall(head + tail)) == 1:
            if len(self._shells) >= MAX_HEADERS:
                self._shells.clear()
            count = request.rows * column.width
            are_many = count >= MANY_NUMBERS and column.letter in ("f", "d")
            shape = (request.rows, *column.trailing) if are_many else None
            self._shells[head] = _Shell(tail, Struct(f"<{count}{column.letter}").pack_into, shape, request)

    def _read_json(self, call: Call, body: bytes) -> bool:
        """True when read; False leaves everything, errors too, to the general codec."""
        try:
            document = orjson.loads(body)
            inputs = document["inputs"]
            # As many colons as keys: no key stands twice (see oip.jsontext), and nothing but inputs is there.
            if len(document) != 1 or len(inputs) != self._count or BACKSLASH in body:
                return False
            long = self._single is not None and len(body) > LONG_BODY
            if (colons(body) if long else body.count(b":")) != self._colons:
                return False
            shape = inputs[0]["shape"]
            rows = shape[0]
            if type(rows) is not int or not 0 < rows <= self.layout.capacity:
                return False
            block, row = self._room(1, rows)
            column = self._single
            if column is not None and rows == 1:
                item = inputs[0]
                data = item["data"]
                if (
                    len(item) != 4
                    or shape != column.one_row
                    or item["name"] != column.name
                    or item["datatype"] != column.datatype
                    or not are_whole(shape)
                    or may_hold_booleans(body)
                ):
                    return False
                column.pack(block.raw[0], row * column.row_bytes, *data)
            elif not self._read_columns(inputs, rows, block, row, body):
                return False
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, StructError, OverflowError, AttributeError):
            return False
        call.outputs = self.everything
        self._take(call, block, row, rows)
        if column is not None:
            self._keep_shell(body, column, InferRequest("", {}, {}, self.everything, rows))
        return True

    def _read_columns(self, inputs: list[Any], rows: int, block: Block, row: int, body: bytes) -> bool:
        seen = 0
        for item in inputs:
            index = self._at[item["name"]]
            column = self.layout.columns[index]
            shape = item["shape"]
            data = item["data"]
            if item["datatype"] != column.datatype or shape[0] != rows or shape[1:] != column.one_row[1:]:
                return False
            if not are_whole(shape) or type(data) is not list or len(item) != 4:
                return False
            seen |= 1 << index
            if column.width == 1 and rows == 1:
                value = data[0]
                if len(data) != 1:
                    return False
                kind = type(value)
                if column.datatype == "BYTES":
                    if kind is not str:
                        return False
                    block.arrays[index].reshape(-1)[row] = value
                    continue
                if value is None and column.letter in ("f", "d"):
                    value = nan
                elif kind is not float and kind is not int:
                    return False
                if column.letter is None:
                    return False
                column.pack(block.raw[index], row * column.row_bytes, value)
            elif not self._pack(column, block, index, row, rows, data, body):
                return False
        return seen == (1 << self._count) - 1

    def _pack(self, column: ColumnSpec, block: Block, index: int, row: int, rows: int, data: Any, body: bytes) -> bool:
        if column.datatype == "BYTES":
            start, stop = row * column.width, (row + rows) * column.width
            if len(data) != stop - start or set(map(type, data)) != {str}:
                return False
            block.arrays[index].reshape(-1)[start:stop] = data
            return True
        if column.letter is None or may_hold_booleans(body):
            return False
        key = (column.letter, rows * column.width)
        packer = self._packers.get(key)
        if packer is None:
            if len(self._packers) > 256:
                self._packers.clear()
            packer = self._packers[key] = Struct(f"<{key[1]}{key[0]}").pack_into
        packer(block.raw[index], row * column.row_bytes, *data)
        return True

    def _read_binary(self, call: Call, body: bytes, header: str) -> bool:
        """A JSON part that was seen before, with its tensors behind it."""
        if not self.layout.fits or not (header.isascii() and header.isdigit()) or len(header) > 6:
            return False
        length = int(header)
        name, text = "", body[:length]
        if text.startswith(ID_FIRST):
            name, text = split_id(text, self._limits.max_text)
        known = self._headers.get(text)
        if known is None or len(body) - length != known.total or length == 0:
            return False
        self._adopt(call, known.request)
        if name:
            call.id, call.noted = name, True
        rows = known.request.rows
        block, row = self._room(call.priority, rows)
        at = length
        for index, size in known.sizes:
            start = row * self.layout.columns[index].row_bytes
            block.raw[index][start : start + size] = body[at : at + size]
            at += size
        self._take(call, block, row, rows)
        return True

    def _remember(self, body: bytes, header: str, request: InferRequest) -> None:
        """Keep a JSON part whose tensors are all binary and need no look at their values."""
        length = int(header)
        if length > MAX_HEADER_BYTES or length == 0 or self._refuse_nonfinite:
            return
        if any(column.datatype in ("BYTES", "BOOL") for column in self.layout.columns):
            return
        name, text = split_id(body[:length], self._limits.max_text)
        if request.id != name:
            return
        document = orjson.loads(text)
        sizes = []
        for item in document["inputs"]:
            if "data" in item:
                return
            sizes.append((self._at[item["name"]], int(item["parameters"]["binary_data_size"])))
        if len(self._headers) >= MAX_HEADERS:
            self._headers.clear()
        self._headers[text] = _Header(tuple(sizes), sum(size for _, size in sizes), _bare(request))

    # -- what is left

    def _adopt(self, call: Call, request: InferRequest) -> None:
        if request.id:
            call.id = request.id
            call.noted = True
        call.outputs = request.outputs
        if request.parameters:
            priority = request.parameters.get("priority", 0)
            call.priority = 0 if priority == 1 else 1 if priority in (0, 2) else 2
            call.literal = request.parameters.get("nonfinite") == "literal"
        call.timeout_s = request.timeout_s

    def _check_finite(self, request: InferRequest) -> None:
        for index, spec in enumerate(self._contract.inputs):
            if is_float(spec.datatype) and nonfinite_count(request.inputs[spec.name], spec.datatype):
                raise InvalidRequest(
                    f"inputs[{index}].data: model {self._model!r} refuses NaN and infinities: input {spec.name!r}",
                    field=f"inputs[{index}].data",
                )


def _bare(request: InferRequest) -> InferRequest:
    """A request without its inputs, its id, and the parameters that are no wish of `_adopt`."""
    wishes = {name: value for name, value in request.parameters.items() if name in ("priority", "nonfinite")}
    return InferRequest("", wishes, {}, request.outputs, request.rows, request.timeout_s)
