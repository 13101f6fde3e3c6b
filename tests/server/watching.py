"""Watching a server from outside: a client that never stops asking, and what the processes hold."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.processes import family
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


class Answer(NamedTuple):
    """One answer: `version` is what it says of itself, `value` what the model made of the row."""

    status: int
    version: str
    value: float
    text: str


class SteadyClient:
    """Sends to one URL over kept connections, from several threads, until it is left; remembers every answer."""

    def __init__(self, server: Server, path: str, threads: int = 3, pause_s: float = 0.012) -> None:
        self._server = server
        self._path = path
        self._pause_s = pause_s
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    def __enter__(self) -> SteadyClient:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def latest(self) -> str:
        """The version that gave the last answer."""
        return self.answers[-1].version if self.answers else ""

    def _send(self) -> None:
        connection = http.client.HTTPConnection(self._server.address, timeout=30)
        body = json.dumps(ROW).encode()
        try:
            while not self._ending.is_set():
                connection.request("POST", self._path, body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                text = reply.read()
                document: dict[str, Any] = json.loads(text)
                if reply.status == 200:
                    value = document["outputs"][0]["data"][0]
                    self.answers.append(Answer(200, document["model_version"], value, ""))
                else:
                    self.failures.append(f"{reply.status} {text.decode()}")
                time.sleep(self._pause_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.failures.append(repr(error))
        finally:
            connection.close()


class Holding(NamedTuple):
    """What a family of processes holds."""

    resident_mib: float
    descriptors: int
    threads: int


def kib_of(pid: int, row: str) -> int:
    """A row of /proc/PID/status, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(row + ":")), 0)


def holding(pid: int) -> Holding:
    """What a server holds, all its processes together."""
    members = family(pid)
    # Pages of the journal's segments are the file's: what a process needs for itself is its anonymous memory.
    anonymous = sum(kib_of(each, "RssAnon") for each in members)
    descriptors = sum(len(os.listdir(f"/proc/{each}/fd")) for each in members)
    threads = sum(len(os.listdir(f"/proc/{each}/task")) for each in members)
    return Holding(anonymous / 1024, descriptors, threads)
