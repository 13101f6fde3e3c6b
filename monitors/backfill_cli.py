"""`headgate monitor backfill`: what monitors would have said of the predictions that are kept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.errors import HeadgateError, SettingError
from gateway.progress import Progress
from monitors.alarms import Alarm
from monitors.backfill import Backfill, Key, versions
from monitors.baseline.document import Baseline
from monitors.quality.report import constant
from monitors.report import plain, table
from monitors.service import GRACE_S, Service, Subject
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


def run(args: argparse.Namespace, data: Path, subject: Callable[[str, int], Subject | None], now_ns: int) -> int:
    """Watch the predictions of the versions that are asked for, and print what was found.

    `subject`: how a version is watched. `now_ns`: blocks that ended by then are complete. With `args.write` nobody else
    may use the data folder. Raises SettingError, HeadgateError, OSError.
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
        "alarms": [alarm.explain() for alarm in alarms],
        "written": written,
    }
    if watcher.baseline is None:
        return found
    counted, reference = watcher.counted(), watcher.baseline.state
    stuck = constant(reference, counted)
    return {
        **found,
        "rows": counted.rows,
        "features": table(reference, counted),
        "window_features": table(reference, watcher.window),
        "constant": [name for name, is_stuck in zip(reference.layout.names, stuck, strict=True) if is_stuck],
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
        lines += ["", *_table(found["features"], found["constant"]), ""]
        lines += [f"  alarm at {_time(alarm['raised_ns'])}: {alarm['sentence']}" for alarm in found["alarms"]]
        if not found["alarms"]:
            lines.append("  no alarm")
    if found["written"]:
        lines.append("  a server goes on from here")
    return "\n".join(lines)


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
