"""Addresses: finding predictions by the client's request id, or by an entity key and a time.

Only models that need it are indexed: those that declare an entity, and those about which feedback has come by request
id. An address is a 64-bit hash, so a row of the index is a few numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import xxhash
from sqlalchemy import Connection, select

from gateway.journal.frames import MAX_PAYLOAD, unpack
from gateway.journal.reader import Segment, tensors
from gateway.journal.schema import SIDE_SUFFIX, Form
from gateway.ledger.dialect import upsert
from gateway.ledger.tables import addresses, indexes, segments

REQUEST_IDS = ""
"""The field under which request ids are indexed."""

WHOLE = -1
"""The part of an address that names a whole request."""

CANDIDATES = 64
"""Predictions of one address that are looked at, the latest first."""

MAX_NS = (1 << 63) - 1
"""The latest time that a database has numbers for."""

_SIGN = 1 << 63


class Candidate(NamedTuple):
    """A prediction that an address may mean. `part` is None for a whole request."""

    prediction_id: str
    part: int | None
    predicted_ns: int


def of_request_id(request_id: str) -> int:
    """The address of a request id."""
    return _signed(xxhash.xxh3_64_intdigest(b"request id\0" + request_id.encode()))


def of_entity(field: str, key: str) -> int:
    """The address of an entity: the value `key` of the input or routing key `field`."""
    return _signed(xxhash.xxh3_64_intdigest(key.encode()) ^ _salt(field))


def _salt(field: str) -> int:
    return xxhash.xxh3_64_intdigest(b"entity\0" + field.encode())


def _signed(number: int) -> int:
    return (number ^ _SIGN) - _SIGN


def find(connection: Connection, address: int, around: tuple[int, int] | None = None) -> list[Candidate]:
    """Predictions of an address, the latest first; `around` is (time, distance): then the nearest first."""
    table = addresses.c
    statement = select(table.prediction_id, table.part, table.predicted_ns).where(table.address == address)
    if around is not None:
        time_ns, within_ns = around
        first, last = max(time_ns - within_ns, 0), min(time_ns + within_ns, MAX_NS)
        statement = statement.where(table.predicted_ns.between(first, last))
    statement = statement.order_by(table.predicted_ns.desc(), table.prediction_id, table.part)
    if around is None:
        statement = statement.limit(CANDIDATES)
    found = [Candidate(pid, None if part == WHOLE else part, at) for pid, part, at in connection.execute(statement)]
    if around is not None:
        found.sort(key=lambda each: (abs(each.predicted_ns - around[0]), each.predicted_ns, each.prediction_id))
    return found[:CANDIDATES]


def fields(connection: Connection) -> dict[str, set[str]]:
    """What is indexed, by model."""
    found: dict[str, set[str]] = {}
    for model, field in connection.execute(select(indexes.c.model, indexes.c.field)):
        found.setdefault(model, set()).add(field)
    return found


def begin(connection: Connection, model: str, field: str) -> None:
    """Index a field of a model from now on, and what the journal already holds."""
    upsert(connection, indexes, [{"model": model, "field": field}])
    connection.execute(segments.update().where(segments.c.model == model).values(indexed=0))


def add(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of the table; those that are there stay."""
    seen = {(row["address"], row["prediction_id"], row["part"]): row for row in rows}
    upsert(connection, addresses, list(seen.values()))


# -- from segments


def rows_of(segment: Segment, wanted: set[str], start: int, stop: int) -> list[dict[str, Any]]:
    """The rows of the index for rows `start` to `stop` of a segment, which begin with the first row of a request.

    A field that is no input is taken for the routing key.
    """
    wrote = segment.column("status")[start:stop] != 0
    first = _firsts(segment.column("span")[start:stop]) + start
    times = segment.column("time_ns")[start:stop]
    found: list[dict[str, Any]] = []

    def put(address: int, row: int, part: int) -> None:
        at = row - start
        if 0 <= at < stop - start and wrote[at]:
            name = f"{segment.spec.prefix}{first[at]:08x}"
            found.append({"address": address, "prediction_id": name, "part": part, "predicted_ns": int(times[at])})

    entities = wanted - {REQUEST_IDS}
    known = set(segment.inputs) | {column.name for column in segment.spec.side if column.group == "input"}
    for field in entities - known:
        keys = segment.column("key")[start:stop].tolist()
        for row, key in enumerate(keys, start):
            if key:
                put(_signed(key ^ _salt(field)), row, row - int(first[row - start]))
    for field in entities & set(segment.inputs):
        for row, value in enumerate(segment.inputs[field][start:stop], start):
            put(of_entity(field, key_text(value)), row, row - int(first[row - start]))
    in_frames = entities & known - set(segment.inputs)
    if not in_frames and REQUEST_IDS not in wanted:
        return found
    for frame in _frames(segment, start, stop):
        for slot, *names in frame.get("notes", ()) if REQUEST_IDS in wanted else ():
            for name in {text for text in names[:2] if text}:
                put(of_request_id(_text(name)), slot, WHOLE)
        values = tensors({name: frame.get("inputs", {}).get(name, []) for name in in_frames})
        loose = segment.column("form")[int(frame["row"])] == Form.FRAME
        for field, column in values.items():
            for index, value in enumerate(column):
                row = int(frame["row"]) + (0 if loose else index)
                put(of_entity(field, key_text(value)), row, index if loose else row - int(first[row - start]))
    return found


def _firsts(spans: Any) -> Any:
    """For each row the row at which its request begins."""
    marks = np.where(spans > 0, np.arange(len(spans)), 0)
    return np.maximum.accumulate(marks) if len(marks) else marks


def _frames(segment: Segment, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The frames of some rows, each once. One that is damaged is passed over: reading its record says so."""
    offsets = np.unique(segment.column("side")[start:stop])
    try:
        descriptor = os.open(segment.path.with_suffix(SIDE_SUFFIX), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for offset in offsets[offsets > 0].tolist():
            head = os.pread(descriptor, 8, offset)
            length = min(int.from_bytes(head[:4], "little"), MAX_PAYLOAD)
            frame = unpack(head + os.pread(descriptor, length, offset + 8), 0)
            if not isinstance(frame, str):
                yield msgspec.msgpack.decode(frame[0])
    finally:
        os.close(descriptor)


def key_text(value: Any) -> str:
    """A value of an input as the text of an entity key: numbers without a fraction as whole numbers."""
    if isinstance(value, np.ndarray):
        if value.size != 1:
            return "\0"
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).lower() if isinstance(value, bool) else str(value)
