"""What a gateway left behind three hours ago: predictions of a model whose labels take their time to come."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from gateway.feedback.event import FOLDER, Event, Source, keyed_id
from gateway.feedback.log import Log
from gateway.journal import ids, schema
from gateway.journal.schema import Column, SegmentSpec
from gateway.journal.segment import Segment

MODEL = "slow"
LABEL = "paid"
TOML = f"""
[feedback.{LABEL}]
type = "boolean"
[monitor]
enabled = false
"""
ROWS = 200
HOURS = 3
"""So long ago, that the whole hour of the predictions is of the first age at which coverage is told."""

MINUTE_NS = 60_000_000_000


def predicted(data: Path) -> list[str]:
    """A sealed segment of single predictions below `data`; gives their ids."""
    began_ns = time.time_ns() - HOURS * 60 * MINUTE_NS
    folder = data / "journal"
    folder.mkdir(parents=True, exist_ok=True)
    columns = (Column("input", "x", "<f4", (4,), 0), Column("output", "y", "<f4", (1,), 0))
    prefix = ids.new_prefix().decode()
    head = (prefix, MODEL, 1, "00" * 32, began_ns, "", ROWS)
    segment = Segment(folder, SegmentSpec(*head, columns=schema.meta_columns() + columns))
    segment._fill = ROWS
    segment.time_ns[:] = began_ns + np.arange(ROWS)
    segment.span[:] = segment.batch[:] = 1
    segment.status[:] = 200
    segment.finish()
    return [str(ids.PredictionId(prefix, row)) for row in range(ROWS)]


def labelled(data: Path, predictions: list[str]) -> None:
    """A log of labels that came within ten minutes of these predictions."""
    received_ns = time.time_ns() - HOURS * 60 * MINUTE_NS + 5 * MINUTE_NS
    log = Log(data / FOLDER, 1 << 30, 1e18)
    log.write(
        [
            Event(
                feedback_id=keyed_id("past", each),
                received_ns=received_ns,
                model=MODEL,
                name=LABEL,
                value=True,
                prediction_id=each,
                source=Source("SYSTEM", "past"),
            )
            for each in predictions
        ]
    )
    log.close()
