"""The part of the command line that builds baselines: `headgate baseline build VERSION DATA`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.models.config import parse
from gateway.models.package import add_file
from monitors.baseline import usual
from monitors.baseline.build import Progress, build
from monitors.baseline.document import FILE, Baseline
from monitors.baseline.layout import Category, Layout, Numeric
from monitors.baseline.source import Roles, TableFile
from monitors.learnt import PART, Learner
from monitors.options import baseline_arguments as add_arguments
from monitors.task import Task
from monitors.types import Monitor

__all__ = ["add_arguments", "labels_of", "progress_bar", "run", "summary", "task_of"]


def run(args: argparse.Namespace) -> int:
    """Build the baseline and add it to the version folder; 2 where the data or the options are wrong.

    Raises LoadRejected where the manifest of the folder cannot be read; OSError.
    """
    if not args.folder.is_dir():
        print(f"headgate: {args.folder} is no folder", file=sys.stderr)
        return 2
    try:
        roles = Roles(args.features, dict(args.input), args.outputs, dict(args.label), args.time, args.exclude)
        source = TableFile(args.data, roles)
        live = roles.live()
        categorical, slices = ([live.get(name, name) for name in names] for names in (args.categorical, args.slice))
        progress = progress_bar(source.rows)
        monitors = labels_of(task_of(args.folder), source) if args.label else {}
        baseline = build(source, categorical=categorical, slices=slices, progress=progress, monitors=monitors)
    except ValueError as error:
        print(f"\rheadgate: {error}", file=sys.stderr)
        return 2
    add_file(args.folder, FILE, baseline.to_bytes())
    print(summary(baseline))
    return 0


def task_of(folder: Path) -> Task | None:
    """What the `model.toml` beside a version folder says about labels; None where it says nothing.

    Raises ValueError where it cannot be understood.
    """
    try:
        return Task.of(parse((folder.parent / "model.toml").read_bytes()))
    except FileNotFoundError:
        return None


def labels_of(task: Task | None, source: TableFile) -> dict[str, Callable[[Layout], Monitor]]:
    """What is learnt from the labels of the data, as makers of monitors; nothing where no label is the task's.

    Raises ValueError where the label is there and the output that it is about is not.
    """
    if task is None or task.label not in source.roles.labels:
        return {}
    learner = Learner.of(task, source)
    return {PART: lambda layout: learner}


def summary(baseline: Baseline) -> str:
    """What was built, for people: rows, method, kinds of features, bytes, and all that was left out."""
    features = baseline.layout.features
    numbers = [feature for feature in features if isinstance(feature, Numeric)]
    grids = sum(feature.grid is not None for feature in numbers)
    lines = [
        f"baseline of {baseline.facts.rows:,} rows from {baseline.facts.source}",
        f"  {len(numbers)} numbers ({grids} counted on a grid), {len(features) - len(numbers)} categories",
        f"  quantiles: {baseline.facts.quantiles}",
        f"  a state takes {baseline.state.state_bytes:,} bytes",
    ]
    if baseline.hours is not None:
        lines.append("  counts by hour of the week (UTC)")
        lines += [f"    {line}" for line in usual.summary(usual.Usual.of(baseline.parts), baseline.layout)]
    if PART in baseline.parts:
        lines.append("  how often the score is right, from the labels")
    lines += [f"  counts by {name}: {', '.join(values)}" for name, values in baseline.slices.items()]
    lines += [f"  {f.name}: more values than can be told from unseen ones" for f in features if _is_open(f)]
    lines += [f"  left out: {name} ({reason})" for name, reason in sorted(baseline.facts.left_out.items())]
    return "\n".join(lines)


def progress_bar(rows: int | None) -> Progress | None:
    """A line on standard error that counts rows; None where nobody would see it."""
    if not sys.stderr.isatty():
        return None

    def show(phase: str, done: int) -> None:
        if rows:
            filled = done * 30 // rows
            print(f"\r{phase:8} [{'#' * filled:30}] {done:,} of {rows:,}", end="", file=sys.stderr, flush=True)
            if done >= rows:
                print(file=sys.stderr)
        else:
            print(f"\r{phase:8} {done:,} rows", end="", file=sys.stderr, flush=True)

    return show


def _is_open(feature: Numeric | Category) -> bool:
    return isinstance(feature, Category) and feature.open_ended
