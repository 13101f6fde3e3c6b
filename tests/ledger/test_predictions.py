"""GET /v1/predictions/{id}: the record with its labels, and the record without a ledger."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from gateway import app as application
from gateway.journal import archive
from gateway.journal.keep import JournalRule, KeepRule
from gateway.ledger.dialect import FILE
from gateway.models.config import ModelConfig
from tests.http.rig import Rig as Server
from tests.inference.fakes import ECHO, servable
from tests.journal.rig import Gateway, normal
from tests.journal.rig import document as inputs
from tests.ledger.rig import DAY, SECOND, START, Rig, open_segment, write


def get(data: Path, prediction_id: str) -> httpx.Response:
    """Ask a server over this data folder."""
    gateway = Server().gateway
    gateway.settings = dataclasses.replace(gateway.settings, data=data)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=application.build(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(f"/v1/predictions/{prediction_id.replace('#', '%23')}")

    return asyncio.run(ask())


def document(data: Path, prediction_id: str) -> Any:
    reply = get(data, prediction_id)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_prediction_is_shown_with_its_record_its_route_and_its_labels(rig: Rig) -> None:
    segment = open_segment(rig.data, version=3)
    prediction = write(
        segment, START - DAY + 1000, rows=2, customer=[7, 8], city=["Rom", "Köln"], request_id="order-17", key=1 << 63
    )
    rig.put(True, prediction_id=prediction, row=1, rationale="seen at the gate", observed_at_ns=START - SECOND)
    rig.put(False, prediction_id=prediction, row=0)
    rig.step()
    shown = document(rig.data, prediction)
    assert (shown["model_name"], shown["model_version"], shown["status"]) == ("flights", "3", 200)
    assert shown["time"] == "2026-09-20T14:13:20.000001Z"
    assert shown["route"] == {
        "reason": "direct", "arm": "stable", "propensity": 1.0, "sample_rate": 1.0, "key_hash": "8000000000000000"
    }  # fmt: skip
    assert shown["request"]["request_id"] == "order-17"
    assert [row["inputs"]["city"] for row in shown["rows"]] == ["Rom", "Köln"]
    assert [row["inputs"]["customer"] for row in shown["rows"]] == [[7], [8]]
    assert shown["rows"][0]["outputs"] == {"p": [0.5, 0.5]}
    assert shown["ledger"] == {"available": True}
    assert [(label["row"], label["value"]) for label in shown["labels"]] == [(0, False), (1, True)]
    assert {event["state"] for event in shown["feedback"]} == {"matched"}
    assert [event["rationale"] for event in shown["feedback"] if event["row"] == 1] == ["seen at the gate"]


def test_the_rules_by_which_it_was_kept_are_shown_wherever_it_is_kept(tmp_path: Path) -> None:
    """An input of which a quarter is kept: in the reply, in the archive's columns, and in what its reply says."""
    version = servable(contract=ECHO)
    rule = JournalRule(redaction_version="2026-11", tensors={"x": KeepRule("sampled", rate=0.25)})
    version.config = ModelConfig(journal=rule)
    gateway = Gateway(tmp_path, version)
    gateway.send([[inputs(x=normal(8, 2))]])
    (segment,) = gateway.close()
    for where in ("segment", "archive"):
        shown = document(tmp_path, gateway.ids[0])
        assert shown["kept_in"] == where
        assert shown["route"]["sample_rate"] == 0.25
        assert shown["redaction_version"] == "2026-11"
        assert shown["kept"] == {"x": "sampled 0.25", "y": "full"}
        if where == "segment":
            archive.write(segment, tmp_path / "archive")
            segment.path.unlink()
    table = pd.read_parquet(tmp_path / "archive")
    assert set(table["sample_rate"]) == {0.25}
    assert set(table["redaction_version"]) == {"2026-11"}


def test_one_row_of_a_request_is_shown_with_its_own_labels(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY, rows=3, customer=[1, 2, 3])
    for row in range(3):
        rig.put(row == 2, prediction_id=prediction, row=row)
    rig.step()
    shown = document(rig.data, f"{prediction}#2")
    assert [(row["row"], row["inputs"]["customer"]) for row in shown["rows"]] == [(2, [3])]
    assert [(label["row"], label["value"]) for label in shown["labels"]] == [(2, True)]
    assert [event["row"] for event in shown["feedback"]] == [2]
    reply = get(rig.data, f"{prediction}#3")
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown-prediction")
    assert "has 3 rows" in reply.json()["error"]


def test_a_record_is_shown_while_there_is_no_ledger(tmp_path: Path) -> None:
    prediction = write(open_segment(tmp_path), START)
    shown = document(tmp_path, prediction)
    assert shown["rows"]
    assert shown["labels"] == []
    assert shown["ledger"] == {"available": False, "reason": "the ledger cannot be read now: it is not there"}


def test_a_record_is_shown_while_the_ledger_is_locked(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    rig.put(True, prediction_id=prediction)
    rig.step()
    rig.writer.close()
    other = sqlite3.connect(rig.data / FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        shown = document(rig.data, prediction)
        assert shown["rows"]
        assert shown["ledger"] == {"available": False, "reason": "the ledger cannot be read now: it is locked"}
    finally:
        other.close()
    assert document(rig.data, prediction)["ledger"] == {"available": True}


@pytest.mark.parametrize("content", [b"no database at all" * 400, b""])
def test_a_record_is_shown_while_the_ledger_is_no_database(tmp_path: Path, content: bytes) -> None:
    prediction = write(open_segment(tmp_path), START)
    (tmp_path / FILE).write_bytes(content)
    shown = document(tmp_path, prediction)
    assert shown["rows"]
    assert shown["ledger"]["available"] is False
    assert str(tmp_path) not in shown["ledger"]["reason"]


def test_a_ledger_that_nobody_writes_can_be_read(rig: Rig) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    rig.put(True, prediction_id=prediction)
    rig.step()
    rig.writer.close()
    assert [label["value"] for label in document(rig.data, prediction)["labels"]] == [True]


def test_an_id_that_is_not_kept_is_told_from_one_that_cannot_be(rig: Rig) -> None:
    unknown = "01a2b3c4-d5e6-8fff-8abc-123400000000"
    assert get(rig.data, unknown).json()["error"] == f"no prediction {unknown} is kept here"
    rig.put(True, prediction_id=unknown)
    rig.step()
    reply = get(rig.data, unknown)
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown-prediction")
    assert reply.json()["error"] == f"no prediction {unknown} is kept here; feedback about it is kept: 1 pending"
    rig.clock.sleep(31 * 86400)
    rig.put(False, prediction_id=unknown)
    rig.step()
    assert get(rig.data, unknown).json()["error"].endswith("; feedback about it is kept: 1 orphan, 1 pending")
    reply = get(rig.data, "order-17")
    assert (reply.status_code, reply.json()["field"]) == (400, "prediction_id")


def test_a_damaged_segment_is_a_fault_of_ours_and_names_no_path(rig: Rig) -> None:
    segment = open_segment(rig.data)
    prediction = write(segment, START)
    content = bytearray(segment.path.read_bytes())
    content[40] ^= 1
    segment.path.write_bytes(content)
    reply = get(rig.data, prediction)
    assert (reply.status_code, reply.json()["code"]) == (500, "prediction-damaged")
    assert str(rig.data) not in reply.text
