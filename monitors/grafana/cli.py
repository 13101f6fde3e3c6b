"""The part of the command line that writes dashboards and rules: `headgate dashboards write DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monitors.grafana.objectives import LATENCIES_S, Objectives
from monitors.grafana.write import files


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dashboards` to the commands."""
    usual = Objectives()
    dashboards = commands.add_parser("dashboards", help="Grafana dashboards and Prometheus rules")
    verbs = dashboards.add_subparsers(title="commands", required=True, metavar="COMMAND")
    write = verbs.add_parser(
        "write",
        help="write dashboards and rules into a folder",
        description="Write DIR/grafana/dashboards/*.json and DIR/prometheus/*.rules.yml.",
    )
    write.add_argument("folder", type=Path, metavar="DIR", help="where to write; made where it is not there")
    write.add_argument("--job", default=usual.job, help="scrape job of the data port (default: %(default)s)")
    write.add_argument("--control-job", default=usual.control, help="of the admin port (default: %(default)s)")
    write.add_argument(
        "--availability", type=float, default=usual.availability, metavar="SHARE",
        help="share of requests to be answered (default: %(default)s)",
    )  # fmt: skip
    write.add_argument(
        "--latency", type=float, default=usual.latency, metavar="SHARE",
        help="share of requests to be answered in time (default: %(default)s)",
    )  # fmt: skip
    write.add_argument(
        "--latency-s", type=float, default=usual.latency_s, metavar="SECONDS",
        help=f"what is in time: one of {', '.join(map(str, LATENCIES_S))} (default: %(default)s)",
    )  # fmt: skip
    write.add_argument("--docs", default=usual.docs, metavar="URL", help="where runbooks.md is (default: %(default)s)")
    write.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write every file and name it; 2 where an option is wrong. Raises OSError."""
    try:
        goals = Objectives(
            args.job, args.control_job, args.availability, args.latency, args.latency_s, args.docs.rstrip("/")
        )
    except ValueError as error:
        print(f"headgate: {error}", file=sys.stderr)
        return 2
    for name, text in files(goals).items():
        path = args.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0
