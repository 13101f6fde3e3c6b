"""Does the worker grow? Its private memory after many requests, against that after the first hundredth of them."""

from __future__ import annotations

from collections.abc import Callable

from loadtests.cases import MEMORY
from loadtests.processes import Server, cpu_s, private_bytes
from loadtests.report import Result, Sample
from loadtests.wrk import Report, RunFailed

EARLY_SHARE = 100


def measure(server: Server, requests: int, load: Callable[[float], Report]) -> Result:
    """Send `requests` in all; `load` runs the load generator for some seconds.

    The worker is the process of the server's tree that used most CPU time on them.
    """
    before = {pid: cpu_s(pid) for pid in server.processes()}
    sent = 0

    def send_up_to(total: int, seconds: float) -> None:
        nonlocal sent
        while sent < total:
            sent += load(seconds).requests

    try:
        send_up_to(requests // EARLY_SHARE, 1)
        worker = max(server.processes(), key=lambda pid: cpu_s(pid) - before.get(pid, 0.0))
        first, early = sent, private_bytes(worker)
        send_up_to(requests, 10)
        late = private_bytes(worker)
    except (RunFailed, OSError) as error:
        return Result(MEMORY, failure=f"after {sent:,} requests: {error}")
    note = f"after {sent:,} requests against after {first:,}"
    return Result(MEMORY, (Sample(float(late)),), (Sample(float(early)),), note=note)
