"""Workers are killed while feedback arrives: what was acknowledged is in the logs, under one id however often sent."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gateway.feedback import log as logs
from gateway.feedback.event import Event
from gateway.journal.frames import Torn
from tests.onnx_models import identity, put
from tests.servers import Server

ROUNDS = 3
PAIRS = 6
MODEL = "[feedback.late]\ntype = 'boolean'\n"


class Client(threading.Thread):
    """Sends events one after another, each until it is answered; every key is also sent by another client."""

    def __init__(self, server: Server, name: str, stop: threading.Event) -> None:
        super().__init__()
        self.address = server.address
        self.key = name
        self.stopped = stop
        self.answers: dict[str, tuple[int, str]] = {}
        self.lost = 0
        self.error: str | None = None

    def run(self) -> None:
        """See Thread."""
        number = 0
        while not self.stopped.is_set():
            number += 1
            key = f"{self.key}/{number}"
            document = {"request_id": key, "name": "late", "value": number % 2 == 0}
            while key not in self.answers:
                try:
                    self._send(key, json.dumps(document))
                except (OSError, http.client.HTTPException):
                    self.lost += 1
                    time.sleep(0.005)

    def _send(self, key: str, body: str) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("POST", "/v1/feedback", body, {"Idempotency-Key": key})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status in (200, 202):
            self.answers[key] = (reply.status, answer["feedback_id"])
        elif reply.status != 503:
            self.error = f"{reply.status} {answer}"
            self.answers[key] = (reply.status, "")


def events_in(folder: Path) -> list[Event]:
    found: list[Event] = []
    for path in logs.files(folder):
        found += [item[1] for item in logs.read(path) if not isinstance(item, Torn)]
    return found


def test_no_acknowledged_feedback_is_lost_or_doubled_when_workers_are_killed(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    """1. Pairs of clients send the same keys to two workers. 2. Workers are killed with SIGKILL, again and again.
    3. The whole server is killed and another one started in its folder; some keys are sent once more.
    Result: each key has one id, that of every answer; each acknowledged event is in the logs; keys survive.
    """
    put(tmp_path / "models", "echo", 1, identity())
    (tmp_path / "models" / "echo" / "model.toml").write_text(MODEL)
    server = Server(tmp_path / "models", tmp_path / "server", "--quiet-s", "0", "--workers", "2")
    folder = tmp_path / "server" / "data" / "feedback"
    stop = threading.Event()
    clients = [Client(server, f"pair {n // 2}", stop) for n in range(2 * PAIRS)]
    try:
        for client in clients:
            client.start()
        for number in range(ROUNDS):
            role = f"worker {number % 2 + 1}"
            answered = sum(len(client.answers) for client in clients)
            goal = answered + 200
            server.wait_for(lambda goal=goal: sum(len(each.answers) for each in clients) > goal, 30, "they go on")
            pid = server.pid(role)
            os.kill(pid, signal.SIGKILL)
            server.wait_for(lambda role=role, pid=pid: server.pid(role) != pid, 30, "the worker was replaced")
    finally:
        stop.set()
        for client in clients:
            client.join(30)
        server.stop(signal.SIGKILL)
    assert [client.error for client in clients] == [None] * len(clients)
    assert sum(client.lost for client in clients) > 0

    found = events_in(folder)
    ids: dict[str, set[str]] = {}
    for event in found:
        ids.setdefault(event.idempotency_key, set()).add(event.feedback_id)
    assert {len(each) for each in ids.values()} == {1}
    statuses: dict[str, list[int]] = {}
    for client in clients:
        for key, (status, feedback_id) in client.answers.items():
            assert ids[key] == {feedback_id}
            statuses.setdefault(key, []).append(status)
    # Twice in the logs is only what was on its way when its worker was killed; it has the same id.
    doubled = Counter(event.feedback_id for event in found).most_common(1)[0][1]
    assert doubled <= 1 + ROUNDS
    assert sum(1 for each in statuses.values() if each.count(202) > 1) <= ROUNDS * PAIRS

    server = start_server(tmp_path / "models", "--data", str(tmp_path / "server" / "data"))
    before = len(events_in(folder))
    for key in list(statuses)[:: max(1, len(statuses) // 20)]:
        document = {"request_id": key, "name": "late", "value": int(key.rpartition("/")[2]) % 2 == 0}
        status, headers, body = server.request("POST", "/v1/feedback", document, {"Idempotency-Key": key})
        assert (status, headers["idempotency-replayed"]) == (200, "true")
        assert ids[key] == {json.loads(body)["feedback_id"]}
    assert len(events_in(folder)) == before


def test_feedback_survives_the_end_of_the_server(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    """The table of keys is taken away as after a restart of the machine: it is made again from the logs."""
    put(tmp_path / "models", "echo", 1, identity())
    (tmp_path / "models" / "echo" / "model.toml").write_text(MODEL)
    document = {"request_id": "order", "name": "late", "value": True}
    server = start_server(tmp_path / "models", "--data", str(tmp_path / "data"))
    first = server.json("POST", "/v1/feedback", document, {"Idempotency-Key": "k"})
    assert server.stop() == 0
    (tmp_path / "data" / "feedback" / "keys").unlink()
    server = start_server(tmp_path / "models", "--data", str(tmp_path / "data"))
    assert server.json("POST", "/v1/feedback", document, {"Idempotency-Key": "k"}) == first
    other = server.json("POST", "/v1/feedback", document | {"value": False}, {"Idempotency-Key": "k"})
    assert other["code"] == "conflict"
    assert [event.feedback_id for event in events_in(tmp_path / "data" / "feedback")] == [first["feedback_id"]]
