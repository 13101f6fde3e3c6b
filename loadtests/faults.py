"""Faults: how long it takes until a killed process is replaced, and what a hundred swaps cost the requests meanwhile.

``python -m loadtests.faults [--kills 7] [--swaps 100]``. Two workers share the cores with a steady load, well below
what they can do. A worker is killed again and again, then the control process; the times are medians. Then the
champion moves between two versions: the p99 of the answers during the swaps is held against that of as many seconds
before and after them.

Exit codes: 0 everything holds, 1 something does not, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from gateway.workers.board import Board, RunFolder, worker_slots
from loadtests import bodies, lineup, models
from loadtests.processes import Server, choose_cores, pinned

REPLACED_S = 2.0
"""How long it may take until another process serves in the place of a killed one."""

SLOWER = 2.0
"""What the p99 during swaps may be of that without."""

WORKERS, CLIENTS, PAUSE_S = 2, 16, 0.01
PATIENCE_S = 60.0
MODEL = "trees"


@dataclass(slots=True)
class Load:
    """Clients that ask, wait a moment and ask again; a connection that breaks is opened anew.

    `times` are the seconds of all answers since the list was last cleared.
    """

    address: tuple[str, int]
    times: list[float] = field(default_factory=list)
    broken: int = 0
    failed: list[str] = field(default_factory=list)

    async def client(self, requests: Sequence[bodies.Body], first: int) -> None:
        """One of them; it runs until it is cancelled."""
        number = first
        while True:
            reader, writer = await asyncio.open_connection(*self.address)
            try:
                while True:
                    await self._ask(reader, writer, requests[number % len(requests)].content)
                    number += 1
                    await asyncio.sleep(PAUSE_S)
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        began = time.perf_counter()
        status, text = await exchange(reader, writer, "POST", f"/v2/models/{MODEL}/infer", body)
        self.times.append(time.perf_counter() - began)
        if status != 200:
            self.failed.append(f"{status} {text[:100]!r}")

    async def p99_ms(self, seconds: float) -> float:
        """That of the answers of the next seconds."""
        self.times.clear()
        await asyncio.sleep(seconds)
        return p99_ms(self.times)


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
) -> tuple[int, bytes]:
    """Send a request and read its reply. Raises IncompleteReadError or OSError where the connection breaks."""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: gate\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, rest = head.partition(b"content-length:")
    length = int(rest.split(b"\r\n", 1)[0]) if found else 0
    return int(head[9:12]), await reader.readexactly(length)


async def call(address: tuple[str, int], method: str, path: str, body: bytes = b"") -> int:
    """One request on a connection of its own; the status."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        return (await exchange(reader, writer, method, path, body))[0]
    finally:
        writer.close()


def p99_ms(times: Sequence[float]) -> float:
    """The 99th percentile in milliseconds; 0 for none."""
    return 1e3 * float(np.quantile(times, 0.99)) if times else 0.0


class Faults:
    """One run against one server, whose files lie in `folder`."""

    def __init__(self, server: Server, folder: RunFolder, admin: tuple[str, int]) -> None:
        self.load = Load(server.address)
        self._server = server
        self._board = Board(folder.board)
        self._admin = admin
        self.below: list[str] = []

    async def run(self, kills: int, swaps: int) -> int:
        """Everything, under one load; the exit code."""
        requests = bodies.make(MODEL, "json", 1, 64)
        clients = [asyncio.create_task(self.load.client(requests, index * 4)) for index in range(CLIENTS)]
        try:
            await asyncio.sleep(2)
            await self._kills("worker", kills, worker_slots(WORKERS), self._worker_serves)
            await self._kills("control process", kills, [0], self._control_answers)
            await self._swaps(swaps)
        finally:
            for client in clients:
                client.cancel()
        if self.load.failed:
            self.below.append(f"{len(self.load.failed)} requests were refused, the first with {self.load.failed[0]}")
        for each in self.below:
            print(f"BELOW ITS HOLD: {each}")
        print("holds" if not self.below else f"{len(self.below)} below")
        return int(bool(self.below))

    async def _kills(
        self, what: str, kills: int, slots: Sequence[int], is_back: Callable[[int, int], Awaitable[bool]]
    ) -> None:
        times = []
        broken = self.load.broken
        for number in range(kills):
            there = [slot for slot in slots if self._board.pid(slot)]
            slot = there[number % len(there)]
            pid = self._board.pid(slot)
            os.kill(pid, signal.SIGKILL)
            began = time.perf_counter()
            while not await is_back(slot, pid):
                if time.perf_counter() - began > PATIENCE_S:
                    raise RuntimeError(f"no other {what} after {PATIENCE_S:g} s: {self._server.last_words()}")
                await asyncio.sleep(0.005)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(1)
        print(
            f"{what} killed {kills} times: another one serves after {median(times):.2f} s median, {min(times):.2f} to "
            f"{max(times):.2f} (hold {REPLACED_S:g}); connections that broke: {self.load.broken - broken}"
        )
        if median(times) > REPLACED_S:
            self.below.append(f"a killed {what} was replaced after {median(times):.2f} s")

    async def _worker_serves(self, slot: int, killed: int) -> bool:
        """It says so when it has loaded everything and begins to accept connections."""
        return self._board.pid(slot) not in (0, killed) and self._board.is_ready(slot)

    async def _control_answers(self, slot: int, killed: int) -> bool:
        if self._board.pid(slot) in (0, killed):
            return False
        try:
            return await call(self._admin, "GET", "/v2/health/live") == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def _swaps(self, swaps: int) -> None:
        """The champion moves; the p99 of all answers meanwhile against that of as long before and after."""
        await self._swap(1)
        probe = time.perf_counter()
        for number in range(4):
            await self._swap(number)
        seconds = max(3.0, (time.perf_counter() - probe) / 4 * swaps)
        before = await self.load.p99_ms(seconds / 2)
        self.load.times.clear()
        for number in range(swaps):
            await self._swap(number)
        during, answers = p99_ms(self.load.times), len(self.load.times)
        steady = (before + await self.load.p99_ms(seconds / 2)) / 2
        ratio = during / steady
        print(
            f"{swaps} swaps under load: p99 of {answers} answers {during:.2f} ms, {steady:.2f} without swaps, "
            f"ratio {ratio:.2f} (hold {SLOWER:g})"
        )
        if ratio > SLOWER:
            self.below.append(f"the p99 during swaps was {ratio:.2f} times that without")

    async def _swap(self, number: int) -> None:
        body = json.dumps({"version": str(1 + number % 2)}).encode()
        status = await call(self.load.address, "PUT", f"/v2/repository/models/{MODEL}/aliases/champion", body)
        if status not in (200, 204):
            raise RuntimeError(f"the champion did not move: {status}")


def admin_of(log: Path) -> tuple[str, int]:
    """Where the control process answers, from the server's log."""
    started = (json.loads(line) for line in log.read_text().splitlines())
    url = next(str(line["admin"]) for line in started if line.get("event") == "started")
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=7, help="how often each process is killed (default: 7)")
    parser.add_argument("--swaps", type=int, default=100, help="how often the champion moves (default: 100)")
    parser.add_argument("--quick", action="store_true", help="3 kills and 20 swaps: whether it works")
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.swaps = min(args.kills, 3), min(args.swaps, 20)
    cores = choose_cores()
    with tempfile.TemporaryDirectory(prefix="headgate-faults-") as name:
        scratch = Path(name)
        for version in (1, 2):
            folder = scratch / "models" / MODEL / str(version)
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(models.trees())
        (scratch / "models" / MODEL / "model.toml").write_text(models.TOML + '[versions]\npolicy = "all"\n')
        command = lineup.serve_command(lineup.serve_flags(), scratch / "models", scratch / "data", WORKERS)
        try:
            with Server("headgate", command, cores.both, scratch / "log") as server:
                lineup.wait_ready(server, [MODEL])
                faults = Faults(server, RunFolder(scratch / "data"), admin_of(scratch / "log"))
                with pinned(cores.both):
                    return uvloop.run(faults.run(args.kills, args.swaps))
        except (RuntimeError, OSError) as error:
            print(f"cannot run: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main())
