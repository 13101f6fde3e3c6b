"""How much feedback one worker on one core acknowledges per second, each event on disk before its answer.

``python -m loadtests.feedback``. Every event has an idempotency key of its own and is about a prediction that the
server has made, hardly ever one that has a label already. After each run the logs are read: what was answered must be
there, once. The control process shares the core and folds the events into the ledger meanwhile. Exit codes: 0 it holds
HOLD_PER_S, 1 it does not or an event is missing, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.feedback import log as logs
from gateway.journal.frames import Torn
from loadtests import wrk
from loadtests.lineup import serve_command, serve_flags, wait_ready
from loadtests.models import write
from loadtests.processes import ROOT, Cores, Server, choose_cores, cpu_s, pinned

HOLD_PER_S = 5000
CLIENTS = 64
REQUESTS, ROWS = 200, 1000
"""Predictions to give feedback about: so many that hardly one gets two labels, as it is with users."""

SCRIPT = Path(__file__).with_name("feedback.lua")
DECLARATION = '\n[feedback.late]\ntype = "boolean"\n'


class EventsMissing(Exception):
    """The logs do not hold what was acknowledged."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wrk's report, the events that it left in the logs, and the CPU seconds of the worker and of the others.

    The others are the supervisor and the control process, which folds the events into the ledger meanwhile.
    """

    clients: int
    report: wrk.Report
    events: int
    worker_s: float
    others_s: float

    @property
    def line(self) -> str:
        """The run for people. Where worker and others had less than a core, the machine had other things to do."""
        report = self.report
        share, others = (seconds / report.duration_s for seconds in (self.worker_s, self.others_s))
        return (
            f"{self.clients:>3} clients {report.rate:>8.0f} events/s  p50 {report.p50_us / 1000:6.2f} ms  "
            f"p99 {report.p99_us / 1000:6.2f} ms  {self.events} events in the logs  "
            f"{self.worker_s / self.events * 1e6:.0f} us each, core: worker {share:.0%}, others {others:.0%}"
        )


class Bench:
    """A server with one worker on the servers' core, and predictions to give feedback about."""

    def __init__(self, scratch: Path, cores: Cores) -> None:
        self._cores = cores
        self._ids = scratch / "ids"
        self._logs = scratch / "data" / "feedback"
        models = scratch / "models"
        models.mkdir()
        write(models, ROOT / "examples", ["tiny"])
        toml = models / "tiny" / "model.toml"
        toml.write_text((toml.read_text() if toml.exists() else "") + DECLARATION)
        command = serve_command(serve_flags(), models, scratch / "data", 1)
        self.server = Server("feedback", command, cores.server, scratch / "log")
        try:
            wait_ready(self.server, ["tiny"])
            self._ids.write_text("\n".join(predict(self.server)) + "\n")
        except BaseException:
            self.server.stop()
            raise

    def run(self, clients: int, seconds: float, word: str) -> Run:
        """Load it, then look into the logs. Raises RunFailed, EventsMissing."""
        before = self._count()
        worker_s, others_s = self._cpu_s()
        command = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{max(1, round(seconds))}s"]
        command += ["--timeout", f"{wrk.TIMEOUT_S}s", "--script", str(SCRIPT), self.server.url + "/v1/feedback"]
        with pinned(self._cores.generator):
            ran = subprocess.run(
                [*command, "--", str(self._ids), word],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds + wrk.GRACE_S,
            )
        if ran.returncode:
            raise wrk.RunFailed(f"wrk ended with {ran.returncode}: {ran.stdout.strip()[-300:]}")
        report = wrk.parse(ran.stdout, 0.0)
        worker_after_s, others_after_s = self._cpu_s()
        self.server.settle()
        events = self._count() - before
        # What was on its way when the time was over is in the logs too, and was not counted by wrk.
        if not report.requests <= events <= report.requests + clients:
            raise EventsMissing(f"{report.requests} events were acknowledged, the logs have {events} new ones")
        return Run(clients, report, events, worker_after_s - worker_s, others_after_s - others_s)

    def _cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of the worker, and of the other processes of the server."""
        processes = self.server.processes()
        (worker,) = (pid for pid in processes if Path(f"/proc/{pid}/comm").read_text() == "headgate-1\n")
        worker_s = cpu_s(worker)
        return worker_s, sum(map(cpu_s, processes)) - worker_s

    def _count(self) -> int:
        """Different events in the logs. Raises EventsMissing where one is torn."""
        seen: set[str] = set()
        for path in logs.files(self._logs):
            for item in logs.read(path):
                if isinstance(item, Torn):
                    raise EventsMissing(f"a log is torn at byte {item.offset}")
                seen.add(item[1].feedback_id)
        return len(seen)


def predict(server: Server) -> list[str]:
    """Make predictions; returns their ids, ``id#row`` each."""
    tensor = {"name": "x", "shape": [ROWS, 30], "datatype": "FP32", "data": [0.5] * (30 * ROWS)}
    body = json.dumps({"inputs": [tensor]})
    found: list[str] = []
    with closing(http.client.HTTPConnection(*server.address, timeout=30)) as link:
        for _ in range(REQUESTS):
            link.request("POST", "/v2/models/tiny/infer", body)
            name = json.loads(link.getresponse().read())["parameters"]["prediction_id"]
            found += [f"{name}#{row}" for row in range(ROWS)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; see the module for the exit codes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="runs, of which the median counts (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="one run of a second: whether it works, not how fast it is"
    )
    args = parser.parse_args(arguments)
    if args.quick:
        args.seconds, args.rounds = 1.0, 1
    if not wrk.installed():
        print("wrk is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), choose_cores())
        try:
            bench.run(CLIENTS, 1, "warm-")
            runs = [bench.run(CLIENTS, args.seconds, f"r{number}-") for number in range(args.rounds)]
            alone = bench.run(1, args.seconds, "alone-")
        except (wrk.RunFailed, EventsMissing) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
        finally:
            bench.server.stop()
    rate = statistics.median(run.report.rate for run in runs)
    for run in (*runs, alone):
        print(run.line)
    print(f"feedback, {CLIENTS} clients, one core: {rate:.0f}/s, hold {HOLD_PER_S}/s")
    return 0 if rate >= HOLD_PER_S else 1


if __name__ == "__main__":
    raise SystemExit(main())
