"""``make loadtest``: a server with the example models, locust's users, and a report in reports/.

Exit codes: 0 every request was answered, 1 some were not, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtests import environments
from loadtests.lineup import serve_command, serve_flags, wait_ready
from loadtests.processes import ROOT, Server, choose_cores, environment, pinned
from loadtests.shapes import SHAPES

GRACE_S = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load test."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.users", description="Users with think time, by locust.")
    parser.add_argument("--pattern", choices=SHAPES, default="step", help="step: up in five steps; soak: steady")
    parser.add_argument("--users", type=int, default=100, metavar="N", help="at the peak (default: 100)")
    parser.add_argument("--seconds", type=int, default=60, metavar="S", help="how long (default: 60)")
    parser.add_argument("--host", metavar="URL", help="a server that runs already, with the example models")
    parser.add_argument("--report", type=Path, default=ROOT / "reports" / "loadtest.html", help="the HTML report")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = run(args.host, args.pattern, args.users, args.seconds, args.report.absolute())
    except (environments.NotMade, RuntimeError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    print(f"report: {args.report}")
    return int(code != 0)


def run(host: str | None, pattern: str, users: int, seconds: int, report: Path) -> int:
    """Load `host`, or a server started for it; returns locust's exit code.

    Raises NotMade without locust, RuntimeError where the server does not start.
    """
    python = environments.ensure(*environments.LOCUST)
    report.parent.mkdir(parents=True, exist_ok=True)
    cores = choose_cores()
    with ExitStack() as stack:
        url = host
        if url is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-loadtest-")))
            command = serve_command(serve_flags(), ROOT / "examples", scratch / "data", 1)
            server = stack.enter_context(Server("headgate", command, cores.server, scratch / "log"))
            wait_ready(server, ["flights", "tiny"])
            url = server.url
        command = [str(python), "-m", "locust", "--locustfile", "loadtests/locustfile.py", "--headless"]
        command += ["--only-summary", "--host", url, "--pattern", pattern, "--users", str(users)]
        command += ["--run-time", f"{seconds}s", "--html", str(report)]
        with pinned(cores.generator):
            process = subprocess.Popen(command, cwd=ROOT, env=environment())
        try:
            return process.wait(seconds + GRACE_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
