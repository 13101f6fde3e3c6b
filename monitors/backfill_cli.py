"""`headgate monitor backfill`: what monitors would have said of the predictions that are kept."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.errors import HeadgateError, SettingError
from gateway.journal.reader import Locator
from gateway.progress import Progress
from monitors.alarms import Alarm
from monitors.backfill import Backfill, Key, versions
from monitors.baseline.document import Baseline
from monitors.fetch import Fetcher
from monitors.labelled import Labelled
from monitors.labels import Changes, Labels
from monitors.report import plain, rows_report, table
from monitors.service import GRACE_S, Service, Subject
from monitors.turns import Turns
from monitors.watcher import Watcher

COLUMNS = (
    ("PSI", "psi", "debiased"),
    ("NOISE", "psi", "null_sd"),
    ("KS", "kolmogorov_smirnov", "value"),
    ("MISSING", "missing", "rate"),
    ("UNSEEN", "unseen", "rate"),
    ("OUT OF RANGE", "out_of_range", "rate"),
)
"""What the table shows of each feature: a heading, a statistic or rate, and its field."""


def run(
    args: argparse.Namespace,
    data: Path,
    subject: Callable[[str, int], Subject | None],
    now_ns: int,
    ledger: Changes | None = None,
) -> int:
    """Watch the predictions of the versions that are asked for, and print what was found.

    `subject`: how a version is watched. `now_ns`: blocks that ended by then are complete. `ledger`: where their labels
    are. With `args.write` nobody else may use the data folder. Raises SettingError, HeadgateError, OSError.
    """
    if args.write and args.baseline is not None:
        raise SettingError("write: the server goes on with the baseline of the version, not with that of --baseline")
    keys = versions(data, args.model, args.version)
    if not keys:
        of = "any model" if args.model is None else f"{args.model!r}"
        version = "" if args.version is None else f" version {args.version}"
        raise HeadgateError(f"there are no predictions of {of}{version}")
    baseline = _baseline(args.baseline)
    service = Service(data, subject, lambda alarm: None)
    told: list[dict[str, Any]] = []
    for key in keys:
        found = subject(*key)
        if found is None or not found.rule.enabled:
            print(f"headgate: {key[0]} version {key[1]} is not watched", file=sys.stderr)
            continue
        if baseline is not None:
            found = found._replace(baseline=baseline)
        try:
            watcher = Watcher(*key, found.rule, found.baseline, found.task)
        except ValueError as error:
            raise SettingError(f"{key[0]} version {key[1]}: {error}") from None
        backfill = Backfill(data, key)
        with Progress(backfill.rows, f"rows of {key[0]} {key[1]}", sys.stderr) as progress:
            alarms = backfill.run(watcher, now_ns - int(GRACE_S * 1e9), progress.advance)
        if ledger is not None and watcher.performance is not None:
            alarms += _judge(data, ledger, key, watcher.performance, now_ns)
        if args.write and watcher.baseline is not None:
            service.watchers[key] = watcher
        told.append(_found(key, backfill, watcher, alarms, written=key in service.watchers))
        if not args.json:
            print(_text(told[-1]))
    if service.watchers:
        service.checkpoint()
    if args.json:
        print(json.dumps(plain(told), indent=2))
    return 0


def _judge(data: Path, ledger: Changes, key: Key, performance: Labelled, now_ns: int) -> list[Alarm]:
    """Give a version all labels that the ledger has; the alarms that they raise. What a server has counted stays."""
    alarms: list[Alarm] = []
    with tempfile.TemporaryDirectory() as scratch:
        labels = Labels(Path(scratch), ledger, Fetcher(data, Locator(data)), Turns())
        try:
            while labels.step({key: performance}, now_ns - int(GRACE_S * 1e9), alarms.append):
                pass
        except HeadgateError as error:
            print(f"headgate: {key[0]} version {key[1]}: {error}", file=sys.stderr)
        finally:
            labels.close()
    return alarms


def _baseline(path: Path | None) -> Baseline | None:
    if path is None:
        return None
    try:
        return Baseline.load(path)
    except ValueError as error:
        raise SettingError(f"baseline: {str(path)!r} cannot be used: {error}") from None


def _found(key: Key, backfill: Backfill, watcher: Watcher, alarms: Sequence[Alarm], *, written: bool) -> dict[str, Any]:
    """All that was found of a version, ready for JSON but for NaN."""
    found = {
        "model": key[0],
        "version": key[1],
        **watcher.value(),
        "from_ns": backfill.first_ns,
        "to_ns": backfill.last_ns,
        "without_inputs": sum(backfill.bare.values()),
        "damaged": backfill.damaged,
        "operation": watcher.operation_value(),
        "performance": None if watcher.performance is None else watcher.performance.value(),
        "alarms": [alarm.explain() for alarm in alarms],
        "written": written,
    }
    if watcher.baseline is None:
        return found
    counted = watcher.counted()
    return {
        **found,
        "rows": counted.rows,
        **rows_report(watcher.baseline, counted),
        "window_features": table(watcher.baseline.state, watcher.window),
    }


def _text(found: Mapping[str, Any]) -> str:
    """What was found of a version, for people: rows, a table by feature with the most drift first, and alarms."""
    span = ""
    if found["from_ns"] is not None:
        span = f" from {_time(found['from_ns'])} to {_time(found['to_ns'])}"
    lines = [f"{found['model']} version {found['version']}: {found['rows']:,} rows{span}"]
    if found["learning"]:
        lines.append(f"  too few to learn a baseline from, which takes {found['needed']:,}")
    else:
        facts = found["baseline"]
        whence = "learned from the first of them" if facts["learned"] else f"from {facts['source']}"
        lines.append(f"  baseline of {facts['rows']:,} rows, {whence}")
    notes = {
        "without_inputs": "rows whose inputs are not kept any more were not counted",
        "loose": "requests have no columns and were not counted",
        "late": "rows came after the evidence of their time had been looked at",
    }
    lines += [f"  {found[name]:,} {words}" for name, words in notes.items() if found[name]]
    lines += [f"  segment {prefix}: {why}" for prefix, why in sorted(found["damaged"].items())]
    if not found["learning"]:
        lines += ["", *_table(found["features"], found["constant"]), "", *_whole_rows(found)]
        lines += [f"  alarm at {_time(alarm['raised_ns'])}: {alarm['sentence']}" for alarm in found["alarms"]]
        if not found["alarms"]:
            lines.append("  no alarm")
    if found["written"]:
        lines.append("  a server goes on from here")
    return "\n".join(lines)


def _whole_rows(found: Mapping[str, Any]) -> list[str]:
    joint, repeated, requests = found["joint"], found["repeated"]["share"], found["operation"]
    lines = []
    if joint is not None:
        lines.append(f"  whole rows: a discrepancy of {joint['value']:.5f}, by chance within {joint['null_sd']:.5f}")
    if repeated:
        lines.append(f"  {repeated:.2%} of the rows repeat another")
    if requests["requests"]:
        lines.append(
            f"  last window: {requests['requests']:,} requests, {requests['failed_share']:.2%} failed, "
            f"99 % within {requests['p99_s'] * 1000:.3g} ms"
        )
    lines += [
        f"  slice {column} = {value}: {own['share']:.1%} of the rows, {own['expected_share']:.1%} in the baseline"
        for column, values in found["slices"].items()
        for value, own in values.items()
        if own["share"] is not None
    ]
    return lines


def _table(features: Mapping[str, Mapping[str, Mapping[str, float]]], stuck: Sequence[str]) -> list[str]:
    order = sorted(features, key=lambda name: -features[name]["psi"]["debiased"])
    width = max([len("FEATURE"), *map(len, order)])
    lines = [f"  {'FEATURE':<{width}}" + "".join(f"{head:>14}" for head, _, _ in COLUMNS)]
    for name in order:
        cells = [_cell(features[name][statistic][field], field) for _, statistic, field in COLUMNS]
        note = "  constant" if name in stuck else ""
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>14}" for cell in cells) + note)
    return lines


def _cell(value: float, field: str) -> str:
    if value != value:
        return "-"
    return f"{value:.2%}" if field == "rate" else f"{value:.4f}"


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
