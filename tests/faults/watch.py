"""Good clients around a fault: every answer is checked, every broken connection is remembered with its owner."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from tests.servers import Server


class Crowd:
    """Clients of an identity model on kept connections, each value sent once; a broken connection is opened anew.

    `answers` counts what came back right. `wrong` and `errors` are never right; `refused` are connects that failed;
    `broken` are the local ports of connections that ended in the middle of a request, or between two.
    """

    def __init__(self, server: Server, clients: int = 6, model: str = "echo", pause_s: float = 0.012) -> None:
        self._server, self._model, self._pause_s = server, model, pause_s
        self._ending = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.ports: set[int] = set()
        self.answers = 0
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.refused: list[str] = []
        self.broken: list[int] = []

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        self._server.wait_for(lambda: self.answers > 4 * len(self._threads), 20, "the clients are answered")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Let every client finish what it has begun."""
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client waits for an answer that does not come"

    def goes_on(self, more: int = 50) -> None:
        """Wait until so many more requests were answered."""
        count = self.answers
        deadline = time.monotonic() + 20
        while self.answers < count + more:
            assert time.monotonic() < deadline, "the clients are not answered any more"
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._ending.is_set():
            connection = http.client.HTTPConnection(self._server.address, timeout=20)
            try:
                connection.connect()
            except OSError as error:
                self.refused.append(repr(error))
                time.sleep(0.05)
                continue
            port = int(connection.sock.getsockname()[1])
            self.ports.add(port)
            try:
                while not self._ending.is_set():
                    self._ask(connection)
                    time.sleep(self._pause_s)
            except (OSError, http.client.HTTPException):
                self.broken.append(port)
            finally:
                self.ports.discard(port)
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        row = [float(next(self._numbers)), 2.0, 3.0, 4.0]
        document = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}]}
        connection.request("POST", f"/v2/models/{self._model}/infer", json.dumps(document).encode())
        reply = connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            self.errors.append(f"{reply.status} {text.decode(errors='replace')}")
        elif json.loads(text)["outputs"][0]["data"] != row:
            self.wrong.append(f"{row} became {text.decode()}")
        else:
            self.answers += 1

    def assert_unharmed(self) -> None:
        """Nothing went wrong, and no connection broke."""
        self.assert_answered()
        assert self.broken == []

    def assert_answered(self) -> None:
        """Nothing went wrong on any connection that held."""
        assert self.wrong == []
        assert self.errors == []
        assert self.refused == []
        assert self.answers


class Totals:
    """Scrapes both ports over and over; a total that falls is remembered. A scrape may end with its worker."""

    def __init__(self, server: Server) -> None:
        self._urls = (f"{server.url}/metrics", f"{server.admin_url}/metrics")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.scrapes = [0, 0]
        self.fell: list[str] = []
        self.lost = 0

    def __enter__(self) -> Totals:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        highest: dict[str, float] = {}
        while not self._ending.is_set():
            for index, url in enumerate(self._urls):
                try:
                    with urlopen(url, timeout=10) as reply:
                        text = reply.read().decode()
                except (URLError, OSError, http.client.HTTPException):
                    self.lost += 1
                    continue
                self.scrapes[index] += 1
                for series, value in counters(text).items():
                    if value < highest.get(series, 0.0):
                        self.fell.append(f"{series}: {highest[series]} then {value}")
                    highest[series] = max(value, highest.get(series, 0.0))
            time.sleep(0.02)


def counters(text: str) -> dict[str, float]:
    """Every counter and every part of a histogram in an exposition, but for those of the scraped process itself.

    The monitors live in the control process, and what they count of themselves begins anew with it.
    """
    found = re.findall(
        r"^(headgate_(?!monitor_)\w+(?:_total|_bucket|_sum|_count)(?:\{.*\})?) (\S+)$", text, re.MULTILINE
    )
    return {series: float(value) for series, value in found}


def total(server: Server, prefix: str) -> float:
    """The sum of the series that begin so, from the data port."""
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(prefix))


def nothing_in_flight(server: Server) -> bool:
    return total(server, "headgate_requests_in_flight{") == 0


def logged(server: Server, event: str, **facts: object) -> list[dict[str, object]]:
    """Lines of the log with this event and these facts."""
    lines = [line for line in server.log() if line["event"] == event]
    return [line for line in lines if all(line.get(key) == value for key, value in facts.items())]


def ports_of(pid: int, server: Server) -> set[int]:
    """The client ports of the connections that a worker holds."""
    sockets = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(each))
        except FileNotFoundError:
            continue
    own = f"{int(server.address.rsplit(':', 1)[1]):04X}"
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{own}") and f"socket:[{fields[9]}]" in sockets:
            found.add(int(fields[2].rpartition(":")[2], 16))
    # The socket that it listens on has nobody at its other end.
    return found - {0}
