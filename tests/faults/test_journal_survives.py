"""What was answered is in the journal, whatever is killed and whenever: real processes, `kill -9`, real traffic."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.journal.reader import Locator, Segment, segments
from gateway.journal.segment import is_orphan
from gateway.ledger.dialect import location
from gateway.ledger.reading import Ledger
from tests.faults.watch import total
from tests.onnx_models import identity, put
from tests.servers import Server

WORKERS = 3
KILLS = ["worker 1", "control", "worker 2", "worker 3"] * 5
"""Who is killed in turn, for each flush policy. One that is killed again soon is started after a longer pause."""

PAUSE_S = 0.12
"""Between the requests of a client: every one of them is looked up afterwards."""

PATIENCE_S = 90
"""Three processes start again and again, on a machine that may have other things to do."""

TOML = "[monitor]\nlearn_rows = 200\nblock_s = 1\n[feedback.late]\ntype = 'boolean'\n"


class Clients:
    """Clients that send values which occur once, and feedback about every other answer, until that is acknowledged.

    They remember what they were answered: the value by prediction id, the feedback id by the prediction it is about.
    """

    def __init__(self, server: Server, count: int = 6) -> None:
        self._server = server
        self._ending = threading.Event()
        self._numbers = itertools.count(1)
        self.answered: dict[str, float] = {}
        self.said: dict[str, str] = {}
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every client finish what it has begun."""
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def go_on(self, more: int = 20) -> None:
        """Wait until so many more requests and half as many events have been answered."""
        answered, said = len(self.answered) + more, len(self.said) + more // 2
        self._server.wait_for(
            lambda: len(self.answered) > answered and len(self.said) > said, PATIENCE_S, "clients are answered"
        )

    def _run(self, index: int) -> None:
        connection = http.client.HTTPConnection(self._server.address, timeout=10)
        about = ""
        while about or not self._ending.is_set():
            time.sleep(PAUSE_S)
            try:
                if about:
                    self._say(connection, about)
                    about = ""
                else:
                    about = self._ask(connection, index)
            except (OSError, http.client.HTTPException):
                connection.close()
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, index: int) -> str:
        """Returns the prediction that something is to be said about, empty for none."""
        value = float(next(self._numbers))
        item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, -value, 0.5, index]}
        document: dict[str, Any] = {"inputs": [item]}
        if index % 3 == 0:
            # Records with a name have a frame beside their row.
            document["id"] = f"request-{value:.0f}"
        connection.request("POST", "/v2/models/echo/infer", json.dumps(document))
        reply = connection.getresponse()
        body = json.loads(reply.read())
        if reply.status != 200 or body["outputs"][0]["data"][0] != value:
            self.wrong.append(f"{reply.status} {body}")
            return ""
        prediction_id = str(body["parameters"]["prediction_id"])
        self.answered[prediction_id] = value
        return prediction_id if int(value) % 2 else ""

    def _say(self, connection: http.client.HTTPConnection, prediction_id: str) -> None:
        """Send feedback once, under a key that is the same each time. Raises OSError where it is to be sent again."""
        document = json.dumps({"prediction_id": prediction_id, "name": "late", "value": True})
        connection.request("POST", "/v1/feedback", document, {"Idempotency-Key": f"about {prediction_id}"})
        reply = connection.getresponse()
        body = json.loads(reply.read())
        if reply.status == 503:
            raise ConnectionError("not now")
        if reply.status not in (200, 201, 202):
            self.wrong.append(f"{reply.status} {body}")
        self.said[prediction_id] = str(body.get("feedback_id"))


def record_row(prediction_id: str) -> int:
    """The row that an id names."""
    return int(prediction_id[-8:], 16)


def find_all(data: Path, answered: dict[str, float]) -> list[str]:
    """The ids of answered predictions that are not in the journal as they were answered."""
    locator = Locator(data, keep=4096)
    lost = []
    for prediction_id, value in answered.items():
        record = locator.record(prediction_id)
        if record is None or record.inputs["x"][0] != value or record.outputs["y"][0] != value:
            lost.append(prediction_id)
            continue
        names = [name for row, _, name, _ in record.frame.get("notes", []) if row == record_row(prediction_id)]
        if record.inputs["x"][3] in (0, 3) and names != [f"request-{value:.0f}"]:
            lost.append(prediction_id)
    return lost


def look_up(server: Server, clients: Clients) -> list[str]:
    """The ids of answered predictions that GET does not give as they were answered, with their feedback once."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    lost = []
    for prediction_id, value in clients.answered.items():
        connection.request("GET", f"/v1/predictions/{prediction_id}")
        found = json.loads(connection.getresponse().read())
        events = [event["feedback_id"] for event in found.get("feedback", ())]
        expected = [clients.said[prediction_id]] if prediction_id in clients.said else []
        if "rows" not in found or found["rows"][0]["inputs"]["x"][0] != value or events != expected:
            lost.append(f"{prediction_id} {value} {expected}: {found}")
    connection.close()
    return lost


@pytest.mark.faults
@pytest.mark.slow(35)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flush", ["process", "interval", "commit"])
def test_what_was_answered_is_found_and_what_was_acknowledged_is_there_once_after_twenty_kills(
    tmp_path: Path, start_server: Callable[..., Server], flush: str
) -> None:
    """1. Clients send predictions and feedback about them. 2. Workers and the control process are killed in turn, 20
    times in all. Result: every answered prediction is found as it was answered, every acknowledged event is in the
    ledger once, every row is counted once by the monitors, nothing is lost or damaged, and everything is sealed.
    """
    put(tmp_path / "models", "echo", 1, identity(), TOML)
    options = ("--workers", str(WORKERS), "--journal-flush", flush, "--no-journal-archive")
    server = start_server(tmp_path / "models", *options)
    data = tmp_path / "server0" / "data"
    clients = Clients(server)
    try:
        for role in KILLS:
            clients.go_on()
            pid = server.pid(role)
            os.kill(pid, signal.SIGKILL)
            server.wait_for(lambda pid=pid, role=role: server.pid(role) != pid, PATIENCE_S, "it is replaced")
        clients.go_on()
    finally:
        clients.stop()
    assert clients.wrong == []
    assert find_all(data, clients.answered) == []
    ledger = Ledger(location(data))
    server.wait_for(
        lambda: sum(ledger.tallies().values()) == len(clients.said), PATIENCE_S, "each event is there, and once"
    )
    # The monitors, whose process was killed five times, have counted every row once.
    server.wait_for(lambda: watched_rows(server) == answered_rows(data), PATIENCE_S, "every row is counted, and once")
    assert look_up(server, clients) == []
    server.wait_for(lambda: all(map(is_kept_well, segments(data / "journal"))), PATIENCE_S, "what was left is sealed")
    for name in ('lost_total{reason="dropped"}', 'lost_total{reason="cut"}', 'lost_total{reason="damaged"}'):
        assert total(server, f"headgate_journal_{name}") == 0
    assert total(server, "headgate_journal_errors_total") == 0
    assert total(server, "headgate_journal_segments_recovered_total") > 0
    assert server.stop() == 0
    left = segments(data / "journal")
    assert find_all(data, clients.answered) == []
    assert [Segment.open(path).verify() for path in left] == [[]] * len(left)
    assert all(Segment.open(path).sealed for path in left)
    # Rows are records once: as many as were answered, and those whose clients were cut off with their worker.
    rows = answered_rows(data)
    assert len(clients.answered) <= rows <= len(clients.answered) + 6 * len(KILLS)
    assert "damaged" not in {line["event"] for line in server.log()}


def answered_rows(data: Path) -> int:
    """Rows with an answer that are in the journal."""
    return sum(int(np.count_nonzero(Segment.open(path).column("status") == 200)) for path in segments(data / "journal"))


def watched_rows(server: Server) -> int:
    """Rows that the monitors have counted, those included that they learned from."""
    with urllib.request.urlopen(server.admin_url + "/api/monitors", timeout=60) as reply:
        found = json.loads(reply.read())
    return sum(int(each["rows"]) + int(each.get("baseline", {}).get("rows", 0)) for each in found)


def is_kept_well(path: Path) -> bool:
    """Sealed, or written by a worker that lives (which holds its lock)."""
    try:
        return Segment.open(path).sealed or not is_orphan(path)
    except FileNotFoundError:
        return True


def test_a_torn_frame_and_a_flipped_bit_are_reported_and_the_rest_is_kept(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    put(tmp_path / "models", "echo", 1, identity())
    server = start_server(tmp_path / "models")
    data = tmp_path / "server0" / "data"
    answered = {}
    for value in range(1, 60):
        item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 0, 0, 0]}
        reply = server.infer("echo", {"id": f"request-{value}", "inputs": [item]})
        answered[reply["parameters"]["prediction_id"]] = float(value)
    (path,) = segments(data / "journal")
    server.wait_for(lambda: Segment.open(path).protected == 59, 10, "what was answered has a checksum")
    for role in ("control", "worker 1"):
        os.kill(server.pid(role), signal.SIGSTOP)
    server.process.kill()
    for role in ("control", "worker 1"):
        os.kill(server.pid(role), signal.SIGKILL)
    server.process.wait()
    spec = Segment.open(path).spec
    column = spec.group("input")[0]
    content = bytearray(path.read_bytes())
    content[column.offset + 20 * column.row_bytes] ^= 0x10
    path.write_bytes(content)
    side = path.with_suffix(".side")
    side.write_bytes(side.read_bytes() + b"\x40\x00\x00\x00torn")

    again = start_server(tmp_path / "models", "--data", str(data))
    again.wait_for(lambda: any(line["event"] == "journal-damaged" for line in again.log()), 20, "it is reported")
    (line,) = [line for line in again.log() if line["event"] == "journal-damaged"]
    assert (line["rows"], line["cut"], line["torn_bytes"]) == (59, 0, 8)
    assert "do not fit their checksum" in line["damage"][0]
    metrics = again.request("GET", "/metrics")[2].decode()
    assert 'headgate_journal_lost_total{reason="damaged"} 1.0' in metrics
    lost = find_all(data, answered)
    assert lost == [list(answered)[20]], "only the row with the flipped bit reads otherwise than it was answered"
