"""One prediction, looked up: its record, where it was routed and why, and what was said about it since."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import HeadgateError, InvalidRequest, NotFound, ServerError
from gateway.http.messages import json_response
from gateway.journal import ids
from gateway.journal.reader import Damaged, Locator, Record
from gateway.oip.jsontext import quote
from gateway.state import gateway_of
from gateway.types import Array

if TYPE_CHECKING:
    from gateway.ledger.reading import Ledger

MAX_ROWS = 100
"""Rows of a request that are shown; each can be asked for as ``id#row``."""

MAX_ELEMENTS = 4096
"""A tensor with more elements is shown by its shape."""

_DIRECT = {"reason": "direct", "arm": "stable", "propensity": 1.0}
"""What a record means that names no route: the client, or the default version, decided."""


class UnknownPrediction(NotFound):
    """No prediction of that id is kept."""

    code = "unknown-prediction"


class DamagedPrediction(ServerError):
    """What is kept of a prediction cannot be read."""

    code = "prediction-damaged"


async def prediction(request: Request) -> Response:
    """``GET /v1/predictions/{prediction_id}``, where the id may end in ``%23row``.

    The record comes from the journal alone: with the ledger away the reply has it, and says that labels are missing.
    """
    data = gateway_of(request).settings.data
    text = request.path_params["prediction_id"]
    name = ids.parse(text.lower())
    if name is None:
        expected = "a UUID of version 8 as replies carry it, or that and %23row"
        raise InvalidRequest(f"prediction_id must be {expected}, got {quote(text)}", field="prediction_id")
    state = request.app.state
    return json_response(await asyncio.to_thread(lambda: _document(name, data, state)))


def _document(name: ids.PredictionId, data: Path, state: State) -> dict[str, Any]:
    base = str(name._replace(part=None))
    try:
        document = record(name, data)
    except UnknownPrediction as error:
        try:
            states = Counter(row["state"] for row in _ledger(state).prediction(base)["feedback"])
        except HeadgateError:
            states = Counter()
        if states:
            told = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
            error.message += f"; feedback about it is kept: {told}"
        raise
    return document | _said(base, name.part, state)


def record(name: ids.PredictionId, data: Path) -> dict[str, Any]:
    """The record of a prediction as JSON shows it. Raises UnknownPrediction, DamagedPrediction."""
    base = str(name._replace(part=None))
    locator = Locator(data, keep=1)
    try:
        found = locator.find(base)
        if found is None:
            raise UnknownPrediction(f"no prediction {base} is kept here")
        if name.part is not None and name.part >= found.span:
            raise UnknownPrediction(f"prediction {base} has {found.span} rows, there is no row {name.part}")
        parts = range(min(found.span, MAX_ROWS)) if name.part is None else (name.part,)
        records = [locator.record(str(name._replace(part=part))) for part in parts]
    except Damaged as error:
        defect = DamagedPrediction("the record of this prediction is damaged; the log has the details")
        raise defect from error
    whole = [record for record in records if record is not None]
    if not whole:
        raise UnknownPrediction(f"no prediction {base} is kept here")
    document = _record(whole[0], base, found.span, found.where)
    document["rows"] = [
        {"row": part, "inputs": _values(one.inputs), "outputs": _values(one.outputs)}
        for part, one in zip(parts, whole, strict=False)
    ]
    return document


def _record(record: Record, prediction_id: str, span: int, where: str) -> dict[str, Any]:
    """What holds for the whole request."""
    meta, frame = record.meta, record.frame
    document: dict[str, Any] = {
        "prediction_id": prediction_id,
        "model_name": record.model,
        "model_version": str(record.version),
        "model_digest": record.digest,
        "time": utc(meta["time_ns"]),
        "status": meta["status"],
        "row_count": span,
        "latency_ms": round(meta["latency_ns"] / 1e6, 6),
        "queue_ms": round(meta["queue_ns"] / 1e6, 6),
        "run_ms": round(meta["run_ns"] / 1e6, 6),
        "batch_rows": meta["batch"],
        "route": _route(record),
        "kept_in": where,
        "kept": record.spec.kept,
        "redaction_version": record.spec.redaction_version or None,
    }
    if frame.get("damaged"):
        document["damaged"] = True
    if "code" in frame:
        document["code"] = frame["code"]
    row = ids.parse(prediction_id)
    for slot, request_id, own_id, trace in frame.get("notes", ()):
        if row is not None and slot == row.row:
            document["request"] = {"request_id": request_id, "id": own_id, "traceparent": trace}
    return document


def _route(record: Record) -> dict[str, Any]:
    """Where a request was routed, and why. Routes other than the direct one stand in the record's frame."""
    route: dict[str, Any] = _DIRECT | {"sample_rate": record.spec.sample_rate} | record.frame.get("route", {})
    if record.meta["key"]:
        route["key_hash"] = f"{record.meta['key'] & (1 << 64) - 1:016x}"
    return route


def _values(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in values.items()}


def _value(value: Any) -> Any:
    """A value as JSON can carry it: numbers as they are, NaN and infinities as null, bytes as text."""
    if isinstance(value, np.ndarray | np.generic):
        array: Array = np.asarray(value)
        if array.size > MAX_ELEMENTS:
            return {"shape": list(array.shape), "elements": array.size}
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        return _value(array.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_value(each) for each in value]
    return _values(value) if isinstance(value, dict) else value


def _said(prediction_id: str, part: int | None, state: State) -> dict[str, Any]:
    """What the ledger has about it, and if it cannot be read, that."""
    try:
        about = _ledger(state).prediction(prediction_id)
    except HeadgateError as error:
        return {"labels": [], "feedback": [], "ledger": {"available": False, "reason": error.message}}
    labels, feedback = (
        [row for row in about[name] if part is None or row["part"] in (part, None)] for name in ("labels", "feedback")
    )
    return {
        "labels": [_label(row) for row in labels],
        "feedback": [_event(row) for row in feedback],
        "ledger": {"available": True},
    }


def _ledger(state: State) -> Ledger:
    """The reader of this application, made when it is first needed."""
    if not hasattr(state, "ledger"):
        # SQLAlchemy takes 20 MB and half a second: only the workers that are asked for labels load it.
        from gateway.ledger.dialect import location
        from gateway.ledger.reading import Ledger

        state.ledger = Ledger(location(state.gateway.settings.data))
    ledger: Ledger = state.ledger
    return ledger


def _label(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": row["part"],
        "name": row["name"],
        "value": row["value"],
        "feedback_id": row["feedback_id"],
        "source": {"type": row["source"][0], "id": row["source"][1]},
        "observed_at": utc(row["observed_ns"]),
        "received_at": utc(row["received_ns"]),
        "lag_s": round((row["first_ns"] - row["predicted_ns"]) / 1e9, 3) if row["first_ns"] else None,
        "voices": row["voices"],
        "agreeing": row["agreeing"],
    }


def _event(row: dict[str, Any]) -> dict[str, Any]:
    event = {
        "feedback_id": row["feedback_id"],
        "state": row["state"],
        "op": row["op"],
        "name": row["name"],
        "kind": row["kind"],
        "value": row["value"],
        "row": row["part"],
        "source": {"type": row["source_type"], "id": row["source_id"]},
        "observed_at": utc(row["observed_ns"]),
        "received_at": utc(row["received_ns"]),
    }
    return event | {name: row[name] for name in ("rationale", "supersedes", "link", "actor", "reason") if row[name]}


def utc(time_ns: int) -> str | None:
    """RFC 3339 with microseconds; None for a time that nobody gave."""
    if not time_ns:
        return None
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 1_000_000_000 // 1000:06d}Z"
