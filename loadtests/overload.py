"""Overload: what is left of a server's best rate when five times as much is asked of it, and how fast it refuses.

``python -m loadtests.overload [--seconds 10] [--times 5]``. First a closed loop finds the best rate of answers; then
requests are sent at a fixed rate, whatever comes back; then the closed loop again. The model takes some milliseconds
for a row and is not batched, so that the server is full and the generator, which needs the other core, is not.

Exit codes: 0 the server holds what it must, 1 it does not, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from onnx import TensorProto, helper, numpy_helper

from loadtests import lineup, models
from loadtests.processes import Server, choose_cores, pinned

GOODPUT = 0.9
"""The share of the best rate that must be left."""

REFUSAL_S = 0.05
"""How long the slowest of a hundred refusals may take."""

CLIENTS = 32
MAX_CONNECTIONS = 4000
WIDTH, LAYERS = 1024, 48
BODY = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}]}'
REQUEST = b"POST /v2/models/deep/infer HTTP/1.1\r\nHost: gate\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def deep() -> bytes:
    """x FP32[n,16] through 48 times the same layer of 1024 to y FP32[n,1]: small to send, long to compute."""
    random = np.random.default_rng(5)
    shapes = {"first": (16, WIDTH), "layer": (WIDTH, WIDTH), "last": (WIDTH, 1)}
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    names = ["first", *["layer"] * LAYERS, "last"]
    values = ["x", *(f"h{index}" for index in range(LAYERS + 1)), "y"]
    nodes = [helper.make_node("MatMul", [values[i], name], [values[i + 1]]) for i, name in enumerate(names)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", width)) for name, width in (("x", 16), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@dataclass(slots=True)
class Tally:
    """What came back, by status, with the seconds from sending to the last byte."""

    times: dict[int, list[float]] = field(default_factory=dict)
    unsent: int = 0
    broken: int = 0

    def add(self, status: int, seconds: float) -> None:
        """A reply came."""
        self.times.setdefault(status, []).append(seconds)

    def count(self, status: int) -> int:
        """Replies with a status."""
        return len(self.times.get(status, []))

    @property
    def replies(self) -> int:
        """All replies."""
        return sum(map(len, self.times.values()))

    def refusals(self) -> list[float]:
        """Seconds of all replies that are no answers."""
        return [each for status, times in self.times.items() if status != 200 for each in times]


class Connection(asyncio.Protocol):
    """One request at a time; the reply goes to the tally, and the connection back to those that are free."""

    def __init__(self, tally: Tally, free: list[Connection]) -> None:
        self._tally = tally
        self._free = free
        self._buffer = b""
        self._sent_at = 0.0
        self.transport: asyncio.Transport | None = None
        self.replied: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send a request."""
        assert self.transport is not None
        self._sent_at = time.perf_counter()
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        self._tally.add(int(head[9:12]), time.perf_counter() - self._sent_at)
        self._buffer = b""
        self._sent_at = 0.0
        self._free.append(self)
        if self.replied is not None:
            self.replied.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. Between two requests a connection may be closed."""
        if self._sent_at:
            self._tally.broken += 1
        elif self in self._free:
            self._free.remove(self)


class Generator:
    """The connections to one server."""

    def __init__(self, server: Server) -> None:
        self._address = server.address
        self.tally = Tally()
        self._free: list[Connection] = []
        self._all: list[Connection] = []

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self.tally, self._free), *self._address)
        self._all.append(connection)
        return connection

    async def closed(self, seconds: float) -> float:
        """Each client sends when it was answered; answers per second."""
        ends = time.perf_counter() + seconds

        async def client() -> None:
            connection = await self._open()
            while time.perf_counter() < ends:
                connection.replied = asyncio.get_running_loop().create_future()
                connection.send()
                await asyncio.wait_for(connection.replied, 60)
            connection.replied = None

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return self.tally.count(200) / (time.perf_counter() - began)

    async def open(self, rate: float, seconds: float) -> float:
        """`rate` requests per second whatever comes back; answers per second, those that come late included."""
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter()) < began + seconds:
            while sent < (now - began) * rate:
                sent += 1
                if self._free:
                    self._free.pop().send()
                elif len(self._all) < MAX_CONNECTIONS:
                    (await self._open()).send()
                else:
                    self.tally.unsent += 1
            await asyncio.sleep(0.001)
        answered = self.tally.count(200)
        while self.tally.replies + self.tally.broken < sent - self.tally.unsent and time.perf_counter() < began + 60:
            await asyncio.sleep(0.01)
        return answered / seconds

    def close(self) -> None:
        """Close every connection."""
        for connection in self._all:
            if connection.transport is not None:
                connection.transport.abort()


def percentile(times: list[float], share: float) -> float:
    """The value below which this share lies; 0 for none."""
    return float(np.quantile(times, share)) if times else 0.0


def faults(tally: Tally, goodput: float, best: float) -> list[str]:
    """What of an overload is not as it must be, a sentence each. `goodput` and `best` are answers per second."""
    found = []
    strange = tally.times.keys() - {200, 429, 503, 504}
    if strange or tally.broken:
        found.append(f"neither answers nor refusals: statuses {sorted(strange)}, {tally.broken} broken connections")
    if not tally.refusals():
        found.append("nothing was refused, so this was no overload and shows nothing")
    if goodput < GOODPUT * best:
        found.append(f"answers fell to {goodput / best:.2f} of the best rate (hold {GOODPUT})")
    p99 = percentile(tally.refusals(), 0.99)
    if p99 > REFUSAL_S:
        found.append(f"refusals took {1e3 * p99:.1f} ms at their p99 (hold {1e3 * REFUSAL_S:g})")
    return found


async def measure(server: Server, seconds: float, times: float) -> int:
    """Run the three parts and print them; the exit code."""
    rates = []
    for _ in range(2):  # the first one warms up
        generator = Generator(server)
        rates.append(await generator.closed(max(2.0, seconds / 3)))
        generator.close()
    before = rates[-1]
    flood = Generator(server)
    goodput = await flood.open(times * before, seconds)
    tally = flood.tally
    flood.close()
    again = Generator(server)
    after = await again.closed(2.0)
    again.close()

    # The machine may do other things as well: what it did before and after meets both.
    best = (before + after) / 2
    refused = tally.refusals()
    served = tally.times.get(200, [])
    statuses = dict(sorted(Counter({status: len(found) for status, found in tally.times.items()}).items()))
    p99 = percentile(refused, 0.99)
    print(
        f"best rate              {best:8.0f} answers/s with {CLIENTS} clients: {before:.0f} before, {after:.0f} after"
    )
    print(f"asked for              {times * before:8.0f} requests/s for {seconds:g} s")
    print(f"answers                {goodput:8.0f} /s, {goodput / best:.2f} of the best rate (hold {GOODPUT})")
    print(
        f"answered after         {1e3 * percentile(served, 0.5):8.1f} ms p50, {1e3 * percentile(served, 0.99):.1f} p99"
    )
    print(f"refused after          {1e3 * percentile(refused, 0.5):8.1f} ms p50, {1e3 * p99:.1f} p99 (hold 50)")
    print(f"replies by status      {statuses}, broken {tally.broken}, not sent for want of connections {tally.unsent}")
    found = faults(tally, goodput, best)
    print("\n".join(f"BELOW ITS HOLD: {each}" for each in found) or "holds")
    return int(bool(found))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the overload")
    parser.add_argument("--times", type=float, default=5.0, help="how many times the best rate is asked for")
    parser.add_argument("--quick", action="store_true", help="3 s of it: whether it works, not how fast it is")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 3.0
    cores = choose_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "models" / "deep" / "1").mkdir(parents=True)
        (folder / "models" / "deep" / "1" / "model.onnx").write_bytes(deep())
        (folder / "models" / "deep" / "model.toml").write_text(models.TOML + "[batching]\nenabled = false\n")
        command = lineup.serve_command(lineup.serve_flags(), folder / "models", folder / "data", 1)
        try:
            with Server("product", command, cores.server, folder / "server.log") as server:
                lineup.wait_ready(server, ["deep"])
                with pinned(cores.generator):
                    return uvloop.run(measure(server, args.seconds, args.times))
        except (RuntimeError, OSError) as error:
            print(f"cannot run: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main())
