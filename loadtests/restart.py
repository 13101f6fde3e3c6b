"""How long a server takes to start on a journal whose writer was killed, beside the same start on an empty one.

``python -m loadtests.restart DATA MODELS BYTES`` is the writer: it fills segments of the model tiny as a worker does,
seals none of them, and kills itself. A worker leaves one or two for each version: this is the worst that there can be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from gateway.journal.reader import Segment, segments
from loadtests.lineup import serve_command, serve_flags, wait_ready
from loadtests.made import TINY, segments_of
from loadtests.processes import ROOT, Cores, Server, environment

SEALED_S = 120.0


class Start(NamedTuple):
    """Seconds from the start of a server to its first answers, and until all that was left is verified and sealed."""

    ready_s: float
    sealed_s: float


def start(models: Path, data: Path, log: Path, cores: Cores) -> Start:
    """Start a server on a data folder, wait, and end it."""
    command = serve_command(serve_flags(), models, data, 1) + ["--no-journal-archive"]
    left = segments(data / "journal")
    began = time.perf_counter()
    with Server("product", command, cores.server, log) as server:
        wait_ready(server, [TINY])
        ready_s = time.perf_counter() - began
        while not all(Segment.open(path).sealed for path in left):
            if time.perf_counter() - began > SEALED_S:
                raise RuntimeError(f"the journal was not recovered: {server.last_words()}")
            time.sleep(0.05)
        return Start(ready_s, time.perf_counter() - began)


def leave(models: Path, data: Path, size: int) -> int:
    """Have a writer killed that has written so many bytes; returns how many it left."""
    command = [sys.executable, "-m", "loadtests.restart", str(data), str(models), str(size)]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if ran.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer was not killed: {ran.stderr[-300:]}")
    left = segments(data / "journal")
    if any(Segment.open(path).sealed for path in left):
        raise RuntimeError("the writer sealed what it should have left open")
    return sum(path.stat().st_size for path in left)


def main(data: Path, models: Path, size: int) -> None:
    """Write, and end as nobody should."""
    written = 0
    kept = []
    for segment, _ in segments_of(data, models, TINY, sys.maxsize):
        # What is let go of gives up its lock.
        kept.append(segment)
        segment.settle()
        segment.protect()
        written += segment.spec.size
        if written >= size:
            break
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
