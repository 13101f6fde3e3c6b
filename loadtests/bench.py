"""The benchmark: Headgate beside a raw echo, onnxruntime alone and FastAPI, in interleaved rounds.

``make bench``, or ``python -m loadtests.bench``. Each round measures every row on both sides, one right after the
other and in turns first, so that whatever else the machine does meets both; a row's ratio is the median over the
rounds. Answers are compared with onnxruntime's before anything is timed, and one failed request fails its row.

Exit codes: 0 every row holds, 1 a row failed or is below what it must hold, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtests import bodies, check, facts, matrix, memory, models, report, wrk
from loadtests.cases import CASES, MEMORY, PRODUCTS, SHARED, Case
from loadtests.lineup import Lineup, NotOffered
from loadtests.processes import ROOT, Cores, Server, choose_cores, environment, pinned
from loadtests.report import Result, Sample

DOCUMENT = ROOT / "docs" / "performance.md"
JSON = ROOT / "reports" / "bench.json"
FAILURES = (wrk.RunFailed, check.WrongAnswer, RuntimeError, OSError, subprocess.SubprocessError)


class Bench:
    """One run of the benchmark over some rows."""

    def __init__(self, scratch: Path, lineup: Lineup, cores: Cores, seconds: float) -> None:
        self._scratch = scratch
        self._lineup = lineup
        self._cores = cores
        self._seconds = seconds
        self._oracle = check.Oracle(scratch / "models")

    def run(self, cases: Sequence[Case], rounds: int) -> list[Result]:
        """Prepare every row, then measure all of them round by round."""
        results: dict[str, Result] = {}
        for case in cases:
            results[case.key] = prepared = self._prepare(case)
            _tell(f"checked {case.key}{prepared.failure and ': FAILED: ' + prepared.failure}")
        for number in range(rounds):
            for case in cases:
                if not (results[case.key].failure or results[case.key].skipped):
                    results[case.key] = self._round(results[case.key], number)
                    _tell(f"round {number + 1} of {rounds}: {_progress(results[case.key])}")
        return list(results.values())

    def memory(self, requests: int) -> Result:
        """The row about memory, on a server of its own that has answered nothing else."""
        cores = self._cores
        with Lineup(self._scratch / "models", self._folder("memory"), cores) as lineup:
            server = lineup.get("product")
            return memory.measure(
                server,
                requests,
                lambda seconds: wrk.run(
                    server.url + MEMORY.path, self._bodies(MEMORY), MEMORY.connections, seconds, cores.generator
                ),
            )

    def _prepare(self, case: Case) -> Result:
        """Start what the row needs, check the answers and warm up."""
        try:
            requests = bodies.make(case.model, case.form, case.rows, case.bodies)
            bodies.write(self._bodies(case), requests)
            for name in self._sides(case):
                server = self._lineup.get(name)
                oracle = None if name == "echo" else self._oracle
                check.check(server.address, case.path, requests, case.connections, oracle)
                self._load(case, name, 1.0, 0)
        except NotOffered as error:
            return Result(case, skipped=str(error))
        except FAILURES as error:
            return Result(case, failure=str(error))
        return Result(case)

    def _round(self, result: Result, number: int) -> Result:
        """Measure both sides; odd rounds begin with the reference."""
        case = result.case
        found: dict[bool, Sample] = {}
        try:
            for is_product in (True, False) if number % 2 == 0 else (False, True):
                if is_product or case.reference != "onnxruntime":
                    found[is_product] = self._load(
                        case, self._sides(case)[not is_product], self._seconds * case.stretch, number
                    )
                else:
                    rate, batch = self._alone(case)
                    found[False] = Sample(rate)
                    result = replace(result, note=f"onnxruntime alone was best with batches of {batch}")
        except FAILURES as error:
            return replace(result, failure=f"in round {number + 1}: {error}")
        product, reference = (*result.product, found[True]), (*result.reference, found[False])
        return replace(result, product=product, reference=reference)

    def _sides(self, case: Case) -> tuple[str, ...]:
        """Names in the line-up: the product, and the reference where it is a server."""
        if case.reference in PRODUCTS:
            return (PRODUCTS[case.reference], case.reference)
        return ("product",) if case.reference == "onnxruntime" else ("product", case.reference)

    def _load(self, case: Case, name: str, seconds: float, number: int) -> Sample:
        """One run of the load generator."""
        server = self._lineup.get(name)
        cores = self._cores.both if case.reference in SHARED else self._cores.generator
        server.settle()
        before = server.cpu_s()
        try:
            url, file = server.url + case.path, self._bodies(case)
            ran = wrk.run(url, file, case.connections, seconds, cores, 7 * number, traced=case.traced)
        except wrk.RunFailed as error:
            raise wrk.RunFailed(f"{name}: {error}; {self._why(case, server)}") from None
        cpu_us = (server.cpu_s() - before) / ran.requests * 1e6
        value = float(ran.p50_us) if case.measure == "p50" else ran.rate * case.rows
        return Sample(value, ran.p50_us, ran.p99_us, cpu_us or None, ran.generator_share)

    def _why(self, case: Case, server: Server) -> str:
        """What the server says right after a run failed: the load generator only counts."""
        if not server.alive:
            return f"it ended: {server.last_words()}"
        try:
            requests = bodies.make(case.model, case.form, case.rows, case.bodies)
            check.check(server.address, case.path, requests, case.connections, None)
        except (*FAILURES, ValueError) as error:  # an answer that is no JSON, too
            return f"asked again: {error}"
        return "asked again, it answers"

    def _alone(self, case: Case) -> tuple[float, int]:
        """onnxruntime alone on the servers' core: rows per second at its best batch size, and that size.

        The sizes share the time of one run.
        """
        file = self._scratch / "models" / case.model / "1" / "model.onnx"
        command = [sys.executable, "-m", "loadtests.ort_alone", str(file)]
        seconds = self._seconds * case.stretch / len(case.batches)
        command += ["--batches", ",".join(map(str, case.batches)), "--seconds", str(seconds)]
        with pinned(self._cores.server):
            ran = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment(), timeout=300
            )
        return max((rate, int(batch)) for batch, rate in json.loads(ran.stdout).items())

    def _bodies(self, case: Case) -> Path:
        return self._folder("bodies") / f"{case.model}-{case.form}-{case.rows}-{case.bodies}"

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir(exist_ok=True)
        return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    args = _parser().parse_args(argv)
    offered = (*CASES, *matrix.missing(CASES)) if args.matrix else CASES
    cases = select(offered, args.only)
    grows = watches_memory(args)
    if not cases and not grows:
        keys = ", ".join(case.key for case in offered)
        print(f"bench: --only: no row matches {' or '.join(args.only)}; the rows are {keys}", file=sys.stderr)
        return 2
    if not wrk.installed():
        print("bench: wrk is missing; install the package of that name (apt-get install wrk)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = args.rounds or (3 if args.quick else 5)
    seconds = args.seconds or (2 if args.quick else 3)
    cores = choose_cores()
    began = facts.gather(cores, rounds, seconds, sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as name:
        scratch = Path(name)
        needed = {case.model for case in cases} | ({MEMORY.model} if grows else set())
        models.write(scratch / "models", ROOT / "examples", sorted(needed))
        with Lineup(scratch / "models", scratch, cores) as lineup:
            bench = Bench(scratch, lineup, cores, seconds)
            results = bench.run(cases, rounds)
            if grows:
                results.append(bench.memory(args.memory_requests))
    text = f"{facts.sentence(began)}\n\n{report.table(results)}"
    notes = report.remarks(results)
    print("\n".join([text, *notes]))
    document = {**began, "cases": [result.document() for result in results]}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document, indent=1) + "\n")
    if args.record:
        listed = "\n".join(f"* {note}" for note in notes)
        page = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(report.replace_between_markers(page, f"{text}\n\n{listed}"), encoding="utf-8")
    return int(any(result.is_bad for result in results))


def watches_memory(args: argparse.Namespace) -> bool:
    """Whether the row about memory is asked for. It takes minutes, so not where somebody wants a look or a few rows."""
    return bool(args.memory if args.memory is not None else not (args.quick or args.only))


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The rows whose key matches one of the patterns; all without patterns."""
    return [case for case in cases if not patterns or any(fnmatch.fnmatch(case.key, each) for each in patterns)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description="Measure Headgate beside a raw uvicorn echo, onnxruntime alone and FastAPI.",
        epilog=f"rows: {', '.join(case.key for case in CASES)}; and with --matrix: "
        f"{', '.join(case.key for case in matrix.missing(CASES))}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds of 2 s and no memory: whether it works, not how fast it is"
    )
    parser.add_argument("--matrix", action="store_true", help="also every other model x form x rows x connections")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="a row, or a pattern; repeatable")
    parser.add_argument("--rounds", type=_positive, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=_positive, help="length of each run in s (default: 3)")
    parser.add_argument(
        "--json", type=Path, default=JSON, metavar="FILE", help="where everything goes (default: reports/bench.json)"
    )
    parser.add_argument("--record", action="store_true", help="also write the table into docs/performance.md")
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="watch the worker's memory, which takes minutes (default: unless --quick or --only)",
    )
    parser.add_argument(
        "--memory-requests", type=_positive, default=10_000_000, metavar="N", help="requests of that (default: 10^7)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _progress(result: Result) -> str:
    if result.failure:
        return f"{result.case.key}: {result.failure}"
    ours, theirs = result.product[-1].value, result.reference[-1].value
    return f"{result.case.key}: {result.ratios[-1]:.3f} ({ours:,.0f} against {theirs:,.0f}), median {result.ratio:.3f}"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
