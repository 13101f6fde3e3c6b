"""The format of a segment: an append-only file of the rows of one model version, its columns side by side.

::

    header   magic, length, crc32, JSON (a SegmentSpec), padded to a page
    control  one page of counters that change, see `Control`
    extents  what was checksummed, see journal.extents: stop rows and hashes of all columns
    columns  each contiguous, `capacity` rows, at its offset

A row is written when its `status` is not 0; that is stored last. Everything is little-endian. Strings, variable shapes
and whatever only some rows have are frames (journal.frames) in the file beside it, where the column `side` says.
"""

from __future__ import annotations

import re
import struct
import zlib
from enum import IntEnum

import msgspec
import numpy as np

MAGIC = b"HGSEGM1\n"
PAGE = 4096
MAX_EXTENTS = 4096
EXTENT = np.dtype([("stop", "<i8"), ("hash", "<u8")])

SEGMENT_SUFFIX = ".segment"
SIDE_SUFFIX = ".side"
FRAME_BEGINS = re.compile(rb"[\x81-\x8f](?:\xa3row|\xa7refused)")
"""How the payload of a frame begins: a small map of MessagePack whose first key is one of two."""

_HEAD = struct.Struct("<8sII")

META = (
    ("time_ns", "<i8"),
    ("latency_ns", "<i8"),
    ("queue_ns", "<i8"),
    ("run_ns", "<i8"),
    ("key", "<u8"),
    ("side", "<i8"),
    ("span", "<u4"),
    ("batch", "<u4"),
    ("route", "<u2"),
    ("form", "|u1"),
    ("status", "<u2"),
)
"""Columns that every segment has, beside its inputs and outputs:

time_ns: arrival, Unix time. latency_ns: from arrival to the reply. queue_ns: from decoded to run. run_ns: of the run.
key: 64-bit hash of the client's routing key, 0 for none. side: where the row's frame begins, 0 for none. span: rows of
the request at its first row, 0 at its others. batch: rows of the run. route: index of a route frame, 0 for the
default: asked for directly, stable, propensity and sample rate 1. form: a `Form`. status: HTTP status of the reply, 499
where the client had left, 0 for a row that is not written.
"""


VARYING = (-1,)
"""The shape of a row of a tensor whose rows have no fixed one."""


class Form(IntEnum):
    """Where the values of a row are."""

    COLUMNS = 0
    """In the columns; what has none, in the frame."""

    FRAME = 1
    """All in the frame, for all rows of the request: the columns of this row say nothing."""


class Control(IntEnum):
    """Places of the int64 counters in the control page."""

    SEALED_NS = 0
    ROWS = 1
    EXTENTS = 2
    TAKEN = 3


class Column(msgspec.Struct, frozen=True):
    """One column: `group` is meta, input or output; `dtype` as numpy writes it; `shape` of one row."""

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        size: int = np.dtype(self.dtype).itemsize
        for dim in self.shape:
            size *= dim
        return size


class SegmentSpec(msgspec.Struct, frozen=True):
    """What a segment says of itself.

    `prefix` begins the ids of its predictions. `digest`: sha256 of the model file. `kept`: what is kept of each input
    and by which rule. `side`: the inputs and outputs without a column, whose values stand in frames; their `dtype` is
    ``|O`` for strings, their `shape` that of one row, or VARYING. `boot_id`: of the machine while it was written; under
    another one, what was not flushed may be torn.
    """

    prefix: str
    model: str
    version: int
    digest: str
    created_ns: int
    boot_id: str
    capacity: int
    columns: tuple[Column, ...]
    side: tuple[Column, ...] = ()
    kept: dict[str, str] = {}
    redaction_version: str = ""

    @property
    def sample_rate(self) -> float:
        """The share of clients' keys whose rows are kept with all that is ever kept of one: 1 unless a rule samples."""
        rates = [float(words.split()[1]) for words in self.kept.values() if words.startswith("sampled ")]
        return min(rates, default=1.0)

    def group(self, group: str) -> tuple[Column, ...]:
        """The columns of one group, in their order."""
        return tuple(column for column in self.columns if column.group == group)

    @property
    def control_at(self) -> int:
        """Where the control page begins."""
        return len(pack_header(self))

    @property
    def extents_at(self) -> int:
        """Where the table of extents begins."""
        return self.control_at + PAGE

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        end = max(column.offset + self.capacity * column.row_bytes for column in self.columns)
        return -(-end // PAGE) * PAGE

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all columns."""
        return sum(column.row_bytes for column in self.columns)


def lay_out(spec: SegmentSpec) -> SegmentSpec:
    """The same segment with an offset for every column, each on a page of its own."""
    # Offsets stand in the header, whose length depends on their digits: room is left for the longest.
    widest = tuple(msgspec.structs.replace(column, offset=1 << 50) for column in spec.columns)
    header = _HEAD.size + len(msgspec.json.encode(msgspec.structs.replace(spec, columns=widest)))
    at = _pages(header) + PAGE + _pages(MAX_EXTENTS * EXTENT.itemsize)
    columns = []
    for column in spec.columns:
        columns.append(msgspec.structs.replace(column, offset=at))
        at += _pages(spec.capacity * column.row_bytes)
    return msgspec.structs.replace(spec, columns=tuple(columns))


def meta_columns() -> tuple[Column, ...]:
    """The columns that every segment has."""
    return tuple(Column("meta", name, dtype, (), 0) for name, dtype in META)


# Made here and not with the first segment, which several threads see at once: see gateway/structs.py.
_SPEC = msgspec.json.Decoder(SegmentSpec)


def pack_header(spec: SegmentSpec) -> bytes:
    """The header, padded to where the control page begins."""
    text = msgspec.json.encode(spec)
    widest = tuple(msgspec.structs.replace(column, offset=1 << 50) for column in spec.columns)
    room = _pages(_HEAD.size + len(msgspec.json.encode(msgspec.structs.replace(spec, columns=widest))))
    return (_HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text).ljust(room, b"\0")


def unpack_header(data: bytes | memoryview) -> SegmentSpec:
    """Read a header. Raises ValueError in words."""
    if len(data) < _HEAD.size:
        raise ValueError("the header is cut")
    magic, length, checksum = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("it does not begin as a segment does")
    text = bytes(data[_HEAD.size : _HEAD.size + length])
    if len(text) < length or zlib.crc32(text) != checksum:
        raise ValueError("the checksum of the header does not fit")
    try:
        return _SPEC.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"the header is not valid: {error}") from None


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
