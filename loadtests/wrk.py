"""wrk, the load generator: one run in a closed loop, and what it reported."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from loadtests.processes import pinned

SCRIPT = Path(__file__).with_name("rotate.lua")
ERRORS = ("connect", "read", "write", "status", "timeout")
TIMEOUT_S = 30
GRACE_S = 60


class RunFailed(Exception):
    """A run that must not be counted; the text says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """One run: answered requests, what it took, and the share of its core that wrk itself needed (near 1: it was the
    limit)."""

    requests: int
    duration_s: float
    p50_us: int
    p99_us: int
    generator_share: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.duration_s


def installed() -> bool:
    """Whether the command is there."""
    return shutil.which("wrk") is not None


def run(
    url: str,
    bodies: Path,
    connections: int,
    seconds: float,
    cores: Collection[int],
    first: int = 0,
    *,
    traced: bool = False,
) -> Report:
    """Load `url` for whole `seconds` with the requests of the file `bodies`, beginning at number `first`.

    `traced` gives every request a header that none had before.
    Raises RunFailed where any request got no reply or one that is not a success.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT), url, "--", str(bodies), str(first)]
    command += ["traced"] if traced else []
    before = _children_cpu_s()
    with pinned(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=seconds + GRACE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise RunFailed(f"wrk ended with {process.returncode}: {output.strip()[-300:]}")
    return parse(output, _children_cpu_s() - before)


def parse(output: str, cpu_s: float) -> Report:
    """Read the line of rotate.lua. Raises RunFailed for errors, or where nothing was answered."""
    line = re.search(r"^measured (.+)$", output, re.MULTILINE)
    if line is None:
        raise RunFailed(f"wrk reported nothing: {output.strip()[-300:]}")
    values = {key: int(value) for key, value in (pair.split("=") for pair in line[1].split())}
    errors = [f"{values[kind]} {kind} errors" for kind in ERRORS if values[kind]]
    if errors:
        raise RunFailed(f"of {values['requests']} requests: {', '.join(errors)}")
    if not values["requests"]:
        raise RunFailed("no request was answered")
    duration_s = values["duration_us"] / 1e6
    return Report(values["requests"], duration_s, values["p50_us"], values["p99_us"], cpu_s / duration_s)


def _children_cpu_s() -> float:
    """CPU seconds of the children that have ended; the servers, still running, are not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
