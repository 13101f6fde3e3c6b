"""The protobuf wire format, read in place: nothing is copied and nothing is built that the caller did not ask for.

A message is the list of its spans in the file. Protobuf merges a singular message that occurs twice by reading the
concatenation of both, so a caller that hands on every span it found sees exactly what any other parser sees.
The second half is the part of the ONNX schema that is looked at: field numbers, wire types, how tensors store values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from gateway.errors import LoadRejected

Span = tuple[int, int]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIRE_NAMES = ("a varint", "8 bytes", "a length", "a group", "the end of a group", "4 bytes", "type 6", "type 7")
_MAX_VARINT_BYTES = 10
_MAX_TEXT_BYTES = 4096
_CHUNK_BYTES = 1 << 20


class Schema:
    """What the reader knows of one message: wire types by field number, and the names of the fields to keep.

    `kept` and `packed` name the fields a caller wants, by number and wire type of one element; those in `packed` may
    also come as one length-delimited block. `skipped` fields are only checked for their wire type; those in `bulk`
    may occur millions of times (the attributes of a tree ensemble), so their runs are skipped in C.
    """

    def __init__(
        self,
        kept: Mapping[str, tuple[int, int]],
        packed: Mapping[str, tuple[int, int]] | None = None,
        skipped: Mapping[int, tuple[int, ...]] | None = None,
        bulk: Collection[int] = (),
    ) -> None:
        self.names: dict[int, str] = {}
        self.runs: dict[int, re.Pattern[bytes]] = {}
        for name, (number, wire) in (*kept.items(), *(packed or {}).items()):
            self.names[number << 3 | wire] = name
        for name, (number, _) in (packed or {}).items():
            self.names[number << 3 | BYTES] = name
        for number, wires in (skipped or {}).items():
            for wire in wires:
                self.names[number << 3 | wire] = ""
                if number in bulk:
                    self.runs[number << 3 | wire] = _run_pattern(number << 3 | wire)
        self.numbers = frozenset(tag >> 3 for tag in self.names)


def _run_pattern(tag: int) -> re.Pattern[bytes]:
    """A pattern for occurrences in a row of one field whose tag takes one byte."""
    element = {
        VARINT: rb"[\x80-\xff]{0,9}+[\x00-\x7f]",
        FIXED32: rb".{4}",
        FIXED64: rb".{8}",
        BYTES: b"(?:" + b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(0x80)) + b")",
    }[tag & 7]
    # Possessive: matched elements are never given back, so a run of any length takes constant memory.
    return re.compile(b"(?:" + re.escape(bytes([tag])) + element + b")*+", re.DOTALL)


class Message:
    """The kept fields of one message. Accessors of singular fields give the last occurrence, as parsers do."""

    __slots__ = ("_fields", "_reader")

    def __init__(self, reader: Reader, fields: dict[str, list[Span]]) -> None:
        self._reader = reader
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __bool__(self) -> bool:
        return bool(self._fields)

    def spans(self, name: str) -> Sequence[Span]:
        """Every occurrence of a field, in file order: the elements of a repeated one, the pieces of a singular one."""
        return self._fields.get(name, ())

    def text(self, name: str) -> str:
        """A string field, empty if absent; bytes that are not UTF-8 are replaced."""
        found = self._fields.get(name)
        return self._reader.text(found[-1]) if found else ""

    def texts(self, name: str) -> list[str]:
        """A repeated string field."""
        return [self._reader.text(span) for span in self.spans(name)]

    def number(self, name: str) -> int:
        """A signed 64-bit integer field, 0 if absent."""
        found = self._fields.get(name)
        return _signed(self._reader.varint(*found[-1])[0]) if found else 0

    def numbers(self, name: str) -> Iterator[int]:
        """A repeated signed 64-bit integer field, packed or not, decoded as far as it is consumed."""
        for start, end in self.spans(name):
            while start < end:
                value, start = self._reader.varint(start, end)
                yield _signed(value)


class Reader:
    """Reads messages out of one buffer, at most `max_fields` fields in all, so that no file can hold it for long."""

    def __init__(self, data: memoryview, max_fields: int) -> None:
        self.data = data
        self._max_fields = max_fields
        self._fields_left = max_fields

    def text(self, span: Span) -> str:
        """The string in a span, which may not be longer than any sane name."""
        start, end = span
        if end - start > _MAX_TEXT_BYTES:
            raise malformed(f"the name at byte {start} is {end - start:,} bytes long, over {_MAX_TEXT_BYTES:,}")
        return str(self.data[start:end], "utf-8", "replace")

    def varint(self, pos: int, end: int) -> tuple[int, int]:
        """The unsigned 64-bit integer at `pos` and the position after it."""
        data, value, shift, start = self.data, 0, 0, pos
        while pos < end:
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, pos
            shift += 7
            if pos - start == _MAX_VARINT_BYTES:
                raise malformed(f"the number at byte {start} is longer than {_MAX_VARINT_BYTES} bytes")
        raise malformed(f"the number at byte {start} is cut off")

    def varint_count(self, spans: Sequence[Span]) -> int:
        """How many integers the spans of a packed field hold."""
        count = 0
        for start, end in spans:
            if start < end and self.data[end - 1] >= 0x80:
                raise malformed(f"the number before byte {end} is cut off")
            for pos in range(start, end, _CHUNK_BYTES):
                chunk = np.frombuffer(self.data[pos : min(pos + _CHUNK_BYTES, end)], np.uint8)
                count += int(np.count_nonzero(chunk < 0x80))
        return count

    def read(self, schema: Schema, spans: Sequence[Span]) -> Message:
        """The kept fields of the message that `spans` hold; LoadRejected if they are not well-formed protobuf."""
        data, names, runs = self.data, schema.names, schema.runs
        found: dict[str, list[Span]] = {}
        left = self._fields_left
        for pos, end in spans:
            while pos < end:
                if left <= 0:
                    raise LoadRejected(f"The model has more than {self._max_fields:,} protobuf fields.")
                left -= 1
                at = pos
                tag = data[pos]
                if tag < 0x80:
                    pos += 1
                else:
                    tag, pos = self.varint(pos, end)
                wire = tag & 7
                if wire == BYTES:
                    if pos < end and (size := data[pos]) < 0x80:
                        pos += 1
                    else:
                        size, pos = self.varint(pos, end)
                    start = pos
                    pos += size
                elif wire == VARINT:
                    start = pos
                    if pos < end and data[pos] < 0x80:
                        pos += 1
                    else:
                        _, pos = self.varint(pos, end)
                elif wire in (FIXED32, FIXED64):
                    start = pos
                    pos += 4 if wire == FIXED32 else 8
                else:
                    raise malformed(f"the field at byte {at} has the wire type of {_WIRE_NAMES[wire]}")
                if pos > end:
                    raise malformed(f"the field at byte {at} runs past the end of its message")
                name = names.get(tag)
                if name:
                    if name in found:
                        found[name].append((start, pos))
                    else:
                        found[name] = [(start, pos)]
                elif name is None:
                    self._check_unknown(schema, tag, at)
                elif pos < end and tag in runs and data[pos] == tag:
                    run = runs[tag].match(data, pos, end)
                    if run is not None:
                        pos = run.end()
        self._fields_left = left
        return Message(self, found)

    def _check_unknown(self, schema: Schema, tag: int, at: int) -> None:
        """Fields of later ONNX releases pass; a field number that no field can have, or a known one mistyped, not."""
        number = tag >> 3
        if not 0 < number < 1 << 29:
            raise malformed(f"the field at byte {at} has the impossible number {number}")
        if number in schema.numbers:
            raise malformed(f"field {number} at byte {at} is stored as {_WIRE_NAMES[tag & 7]}, which it cannot be")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def malformed(what: str) -> LoadRejected:
    """The refusal of bytes that are not well-formed protobuf."""
    return LoadRejected(f"The model file is not a well-formed ONNX model: {what}.")


# The ONNX schema

MODEL: Final = Schema(
    {
        "ir_version": (1, VARINT),
        "producer_name": (2, BYTES),
        "producer_version": (3, BYTES),
        "graph": (7, BYTES),
        "opset_import": (8, BYTES),
        "metadata_props": (14, BYTES),
        "training_info": (20, BYTES),
        "functions": (25, BYTES),
    },
    skipped={4: (BYTES,), 5: (VARINT,), 6: (BYTES,), 26: (BYTES,)},
)
OPSET: Final = Schema({"domain": (1, BYTES), "version": (2, VARINT)})
TRAINING: Final = Schema({"initialization": (1, BYTES), "algorithm": (2, BYTES)}, skipped={3: (BYTES,), 4: (BYTES,)})
FUNCTION: Final = Schema(
    {
        "name": (1, BYTES),
        "node": (7, BYTES),
        "opset_import": (9, BYTES),
        "domain": (10, BYTES),
        "attribute_proto": (11, BYTES),
        "overload": (13, BYTES),
    },
    skipped=dict.fromkeys((4, 5, 6, 8, 12, 14), (BYTES,)),
)
GRAPH: Final = Schema(
    {
        "node": (1, BYTES),
        "name": (2, BYTES),
        "initializer": (5, BYTES),
        "input": (11, BYTES),
        "output": (12, BYTES),
        "sparse_initializer": (15, BYTES),
    },
    skipped=dict.fromkeys((10, 13, 14, 16), (BYTES,)),
)
NODE: Final = Schema(
    {
        "input": (1, BYTES),
        "output": (2, BYTES),
        "name": (3, BYTES),
        "op_type": (4, BYTES),
        "attribute": (5, BYTES),
        "domain": (7, BYTES),
        "overload": (8, BYTES),
    },
    skipped=dict.fromkeys((6, 9, 10), (BYTES,)),
)
ATTRIBUTE: Final = Schema(
    {
        "t": (5, BYTES),
        "g": (6, BYTES),
        "tensors": (10, BYTES),
        "graphs": (11, BYTES),
        "sparse_tensor": (22, BYTES),
        "sparse_tensors": (23, BYTES),
    },
    skipped={
        2: (FIXED32,),
        3: (VARINT,),
        7: (FIXED32, BYTES),
        8: (VARINT, BYTES),
        20: (VARINT,),
        **dict.fromkeys((1, 4, 9, 13, 14, 15, 21), (BYTES,)),
    },
    bulk=(7, 8, 9),
)
TENSOR: Final = Schema(
    {
        "data_type": (2, VARINT),
        "string_data": (6, BYTES),
        "name": (8, BYTES),
        "raw_data": (9, BYTES),
        "external_data": (13, BYTES),
        "data_location": (14, VARINT),
    },
    packed={
        "dims": (1, VARINT),
        "float_data": (4, FIXED32),
        "int32_data": (5, VARINT),
        "int64_data": (7, VARINT),
        "double_data": (10, FIXED64),
        "uint64_data": (11, VARINT),
    },
    skipped=dict.fromkeys((3, 12, 16), (BYTES,)),
)
SPARSE: Final = Schema({"values": (1, BYTES), "indices": (2, BYTES)}, packed={"dims": (3, VARINT)})
VALUE_INFO: Final = Schema({"name": (1, BYTES), "type": (2, BYTES)}, skipped={3: (BYTES,), 4: (BYTES,)})
TYPE_MEMBERS: Final = (
    "tensor_type",
    "sequence_type",
    "map_type",
    "opaque_type",
    "sparse_tensor_type",
    "optional_type",
)
TYPE: Final = Schema(
    dict(zip(TYPE_MEMBERS, ((number, BYTES) for number in (1, 4, 5, 7, 8, 9)), strict=True)), skipped={6: (BYTES,)}
)
TENSOR_TYPE: Final = Schema({"shape": (2, BYTES)}, skipped={1: (VARINT,)})
SHAPE: Final = Schema({"dim": (1, BYTES)})


class Storage(NamedTuple):
    """How elements of a type are stored: bits of one in `raw_data` (0: never there), and the typed field.

    One value of the typed field carries `value_bits` of elements and takes `value_bytes` in the file (0: a varint).
    """

    bits: int
    field: str
    value_bits: int
    value_bytes: int = 0

    def values(self, elements: int) -> int:
        """How many values of the typed field hold that many elements."""
        return -(-elements * self.bits // self.value_bits) if self.bits else elements


INT64: Final = 7
STORAGE: Final = {
    1: Storage(32, "float_data", 32, 4),
    8: Storage(0, "string_data", 0),
    11: Storage(64, "double_data", 64, 8),
    14: Storage(64, "float_data", 32, 4),
    15: Storage(128, "double_data", 64, 8),
    INT64: Storage(64, "int64_data", 64),
    12: Storage(32, "uint64_data", 32),
    13: Storage(64, "uint64_data", 64),
    6: Storage(32, "int32_data", 32),
    # uint16, int16, float16, bfloat16; uint8, int8, bool and the eight-bit floats
    **dict.fromkeys((4, 5, 10, 16), Storage(16, "int32_data", 16)),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), Storage(8, "int32_data", 8)),
    # uint4, int4, float4 and uint2, int2: one value of the field carries one byte
    **dict.fromkeys((21, 22, 23), Storage(4, "int32_data", 8)),
    **dict.fromkeys((25, 26), Storage(2, "int32_data", 8)),
}
