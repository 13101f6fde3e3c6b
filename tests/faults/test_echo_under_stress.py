"""Every answer belongs to its request, whatever the clients do: half of them leave when they please.

100,000 requests take about ten seconds on a machine that has nothing else to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop

from tests.faults.watch import logged, nothing_in_flight, total
from tests.onnx_models import identity, put
from tests.server.watching import holding
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow(20), pytest.mark.timeout(600)]

CONNECTIONS = 256
REQUESTS = 100_000
FEW = 8
"""Descriptors and threads that a busy server may have more of than one that has just begun: of journal segments, of
pools. What is left behind by a client would come to thousands."""

FORMS = ("plain", "chunked", "binary", "binary in chunks")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers with an identity model."""
    folder = tmp_path_factory.mktemp("stress")
    put(folder / "models", "echo", 1, identity())
    server = Server(folder / "models", folder / "server", "--quiet-s", "0", "--workers", "2")
    yield server
    server.stop()


class Stress:
    """The clients of one run. A value is sent once: an answer with another value is another's answer."""

    def __init__(self, server: Server, requests: int, seed: int) -> None:
        self._host, port = server.address.rsplit(":", 1)
        self._port = int(port)
        self._random = random.Random(seed)
        self._left = requests
        self._values = itertools.count(1)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self) -> None:
        async with asyncio.timeout(500), asyncio.TaskGroup() as group:
            for index in range(CONNECTIONS):
                group.create_task(self._client(leaves=index % 2 == 1))

    async def _client(self, *, leaves: bool) -> None:
        """One client on connection after connection; one that `leaves` does so at any moment."""
        while self._left > 0:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                for _ in range(self._random.randint(1, 40)):
                    if self._left <= 0 or not await self._exchange(reader, writer, leaves=leaves):
                        break
            finally:
                # abort sends a reset: what the server still writes meets nobody.
                writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, leaves: bool) -> bool:
        """Send one request, or several in a row, and read the answers; False where the client left instead."""
        pipelined = self._random.random() < 0.25
        rows = [self._row() for _ in range(self._random.randint(2, 6) if pipelined else 1)]
        forms = [self._random.choice(FORMS) for _ in rows]
        data = b"".join(request(form, row, self._random) for form, row in zip(forms, rows, strict=True))
        fate = self._random.random() if leaves else 1.0
        if fate < 0.1:
            writer.write(data[: self._random.randrange(len(data))])
            await asyncio.sleep(0)
            self.seen["left while sending"] += len(rows)
            return False
        self._left -= len(rows)
        if "chunk" in forms[0] and fate < 0.6:
            cut = self._random.randrange(1, len(data))
            writer.write(data[:cut])
            await asyncio.sleep(0)
            data = data[cut:]
        writer.write(data)
        if fate < 0.2:
            await asyncio.sleep(self._random.choice((0, 0, 0.001)))
            self.seen["left before the answer"] += len(rows)
            return False
        for row in rows:
            self._compare(row, *await read_reply(reader))
        self.seen.update(forms)
        self.seen["pipelined"] += len(rows) * pipelined
        return True

    def _row(self) -> list[float]:
        number = next(self._values)
        # Whole numbers below 2**24 are exact in FP32.
        return [float(number), float(number % 977), float(-number), 0.5]

    def _compare(self, row: list[float], status: int, headers: dict[str, str], body: bytes) -> None:
        if status != 200:
            self.wrong.append(f"{status} {body.decode(errors='replace')}")
            return
        length = int(headers.get("inference-header-content-length", len(body)))
        document = msgspec.json.decode(body[:length])
        data = np.frombuffer(body[length:], "<f4").tolist() or document["outputs"][0]["data"]
        if (document["id"], data) != (f"{row[0]:.0f}", row):
            self.wrong.append(f"{row} got {body!r}")
        if headers["x-request-id"] != f"r{row[0]:.0f}":
            self.wrong.append(f"{row} got the headers {headers}")


def request(form: str, row: list[float], rng: random.Random) -> bytes:
    """One request with this row and its own ids."""
    name = f"{row[0]:.0f}"
    tensor: dict[str, object] = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: gate.example\r\nX-Request-Id: r{name}\r\n"
    if "binary" in form:
        raw = np.array(row, "<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        text = msgspec.json.encode({"id": name, "inputs": [tensor], "parameters": {"binary_data_output": True}})
        head += f"Inference-Header-Content-Length: {len(text)}\r\n"
        body = text + raw
    else:
        body = msgspec.json.encode({"id": name, "inputs": [{**tensor, "data": row}]})
    if "chunk" not in form:
        return (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    pieces = []
    while body:
        size = rng.randint(1, len(body))
        pieces.append(b"%x\r\n%b\r\n" % (size, body[:size]))
        body = body[size:]
    return (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + b"".join(pieces) + b"0\r\n\r\n"


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next reply."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def test_every_answer_is_that_of_its_request_and_nothing_is_left_behind(pair: Server) -> None:
    """
    1. 256 connections send 100,000 requests to two workers, in JSON and binary, in one piece and in chunks, one by one
       and several at once, each with a value of its own; every second client leaves in the middle of a request or
       before its answer, again and again.
    2. Result: every answer that is read is that of its request, nothing is in flight after it, and no task,
       descriptor, thread, process or memory is left behind.
    """
    quiet = open_sockets(pair), tasks(pair)
    warm = Stress(pair, 5000, seed=1)
    uvloop.run(warm.run())
    assert warm.wrong == []
    pair.wait_for(lambda: nothing_in_flight(pair), 10, "nothing is in flight")
    pair.wait_for(lambda: is_quiet(pair, quiet), 10, "connections and tasks have ended")
    before = [holding(pid) for pid in workers(pair)]

    began = time.monotonic()
    stress = Stress(pair, REQUESTS, seed=2)
    uvloop.run(stress.run())
    print(f"\n{dict(stress.seen)} in {time.monotonic() - began:.1f} s")
    assert stress.wrong == []
    assert stress.seen.total() - stress.seen["pipelined"] - stress.seen["left while sending"] >= REQUESTS
    assert min(stress.seen[form] for form in (*FORMS, "pipelined")) > REQUESTS / 20
    assert stress.seen["left before the answer"] > REQUESTS / 100

    pair.wait_for(lambda: nothing_in_flight(pair), 10, "nothing is in flight")
    pair.wait_for(lambda: is_quiet(pair, quiet), 10, "connections and tasks have ended")
    after = [holding(pid) for pid in workers(pair)]
    for one, other in zip(before, after, strict=True):
        print(f"{one} {other}")
        assert other.descriptors <= one.descriptors + FEW
        assert other.threads <= one.threads + FEW
        assert other.resident_mib - one.resident_mib < 8
    assert logged(pair, "process-ended") == []
    assert [line for line in pair.log() if line["level"] in ("error", "critical")] == []


def workers(server: Server) -> list[int]:
    return [server.pid("worker 1"), server.pid("worker 2")]


def tasks(server: Server) -> float:
    """Tasks in the loops of the workers."""
    return total(server, "headgate_worker_tasks")


def is_quiet(server: Server, quiet: tuple[int, float]) -> bool:
    """Whether there are no more sockets and tasks than before, when who had waited for the server may have had one."""
    return open_sockets(server) <= quiet[0] and tasks(server) <= quiet[1]


def open_sockets(server: Server) -> int:
    """Sockets of the workers: the control process holds one for as long as it has a nursery."""
    found = 0
    for pid in workers(server):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(each).startswith("socket:")
    return found
