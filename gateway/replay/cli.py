"""`headgate replay`: runs logged requests again and says whether the same came out."""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gateway import settings
from gateway.errors import SettingError
from gateway.journal.cli import add_selection, label_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from gateway.feedback.rules import FeedbackRule
    from gateway.replay.replay import Judge, Load, Score
    from gateway.replay.report import Answers, Report, Wish
    from gateway.settings import Settings
    from gateway.types import Array, Contract


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Give `headgate` its command `replay`."""
    replay = commands.add_parser(
        "replay",
        help="run logged requests again and compare the answers",
        description="Run logged requests again: with the versions that answered, to reproduce every answer bit for "
        "bit, or with another version, to see where it differs and, where labels are known, which is better. It may "
        "run beside a server. Exit code 0: all is the same or within the tolerance; 1: it is not, or not all could be "
        "run.",
    )
    replay.add_argument("model", help="name of the model")
    settings.add_arguments(replay, only=("models", "data", "intra_op_threads", "providers", "max_model_bytes"))
    add_selection(replay)
    replay.add_argument("--against", type=int, metavar="N", help="run this version instead of those that answered")
    replay.add_argument("--rtol", type=float, default=0.0, help="relative tolerance (default: 0, the same bits)")
    replay.add_argument("--atol", type=float, default=0.0, help="absolute tolerance (default: 0, the same bits)")
    replay.add_argument("--label", default="", metavar="NAME", help="also compare the quality against these labels")
    replay.add_argument(
        "--score", default="", metavar="OUTPUT[:INDEX]", help="what of an answer is held against the labels"
    )
    replay.add_argument(
        "--report", type=Path, help="JSON file for all that is found; with one that is there already, go on from it"
    )
    replay.add_argument("--json", action="store_true", help="print the report as JSON")
    replay.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    # A server that only serves has no need of these.
    import msgspec

    from gateway.progress import Progress
    from gateway.replay.compare import Tolerance
    from gateway.replay.replay import Replayer
    from gateway.replay.report import Report, Wish, resume
    from gateway.replay.version import load

    chosen = settings.load(vars(args), os.environ)
    for name in ("rtol", "atol"):
        if not 0 <= getattr(args, name) < math.inf:
            raise SettingError(f"{name} must be a finite number, 0 or above, got {getattr(args, name)}")
    if not chosen.data.is_dir():
        raise SettingError(f"data: there is no folder {chosen.data}")
    wish = Wish(
        model=args.model,
        versions=tuple(args.version or ()),
        since_ns=args.since,
        until_ns=args.until,
        against=args.against,
        tolerance=Tolerance(args.rtol, args.atol),
        label=args.label,
        score=args.score,
    )
    report = resume(args.report, wish) if args.report is not None else Report(wish)
    loader = partial(load, chosen, args.model)
    judge = _judge(chosen, wish, loader) if wish.label else None

    def save() -> None:
        if args.report is not None:
            report.save(args.report)

    with Progress(0, "rows", sys.stderr) as progress:
        Replayer(chosen.data, loader, report, progress, judge, save).run()
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        print("\n".join(lines(report)))
    return 0 if report.reproduced else 1


def lines(report: Report) -> list[str]:
    """A report in words."""
    found = []
    for each in report.answers:
        found += _answers(each, report.wish)
    found += [f"damaged: {words}" for words in report.damaged]
    if report.figures:
        names = [name for name in next(iter(report.figures.values())) if name != "auc_error"]
        found.append(f"quality against label {report.wish.label}: " + ", ".join(report.figures))
        for name in names:
            values = "  ".join(f"{figures.get(name, float('nan')):.6g}" for figures in report.figures.values())
            found.append(f"  {name:<24} {values}")
    rows = sum(each.rows for each in report.answers)
    rate = f", {rows / report.seconds:,.0f} rows/s" if report.seconds > 0 else ""
    kind = "reproduced" if report.wish.against is None else "the same within the tolerance"
    found.append(f"{kind if report.reproduced else 'not ' + kind}: {rows:,} rows in {report.seconds:.1f} s{rate}")
    return found


def _answers(answers: Answers, wish: Wish) -> list[str]:
    with_what = f", run with version {wish.against}" if wish.against is not None else ""
    found = [
        f"version {answers.version} ({answers.digest[:12]}){with_what}: {answers.rows:,} rows in {answers.runs:,} runs",
        f"  {answers.same:,} the same bit for bit, {answers.beyond:,} beyond the tolerance",
    ]
    if answers.altered and wish.against is None:
        found.append(
            f"  altered: the file of version {answers.version} is {answers.file[:12]}, not the one that answered"
        )
    if answers.missing:
        found.append(f"  not run: {answers.missing}")
    if answers.failed:
        found.append(f"  {answers.failed:,} rows: the model failed on them")
    found += [f"  {rows:,} rows were not run: {why}" for why, rows in answers.skipped.items()]
    for name, each in answers.outputs.items():
        if each.differing:
            mean = each.sum_abs / max(1, each.elements)
            found.append(
                f"  {name}: {each.differing:,} rows differ, {each.beyond:,} beyond the tolerance, by at most "
                f"{each.max_abs:.6g}, on average {mean:.3g}"
            )
    for example in answers.examples[:3]:
        found.append(f"  {example.prediction_id} {example.output}: {example.logged} was {example.replayed} now")
    return found


def _judge(chosen: Settings, wish: Wish, load: Load) -> Judge:
    """Labels, and what to hold against them. Raises SettingError, LoadRejected, LedgerUnavailable."""
    from gateway.journal.export import Join
    from gateway.ledger import dialect
    from gateway.ledger.reading import Ledger
    from gateway.replay.replay import Judge

    span_ns = (wish.since_ns, wish.until_ns)
    (column,) = label_columns(chosen.data, wish.model, [wish.label], wish.versions, span_ns)
    used = {name for owner, name, _ in Ledger(dialect.location(chosen.data)).tallies() if owner == wish.model and name}
    if wish.label not in used:
        there = ", ".join(sorted(used)) or "none"
        raise SettingError(f"label: model {wish.model!r} has no feedback named {wish.label!r}; there is {there}")
    number = wish.against if wish.against is not None else next(iter(wish.versions), None)
    if number is None:
        raise SettingError("label: quality needs --against or one --version")
    score = choose_score(load(number).session.contract, column.rule, wish)
    return Judge(Join(column), score, partial(_truth, column.rule))


def choose_score(contract: Contract, rule: FeedbackRule, wish: Wish) -> Score:
    """The element of an output that answers what a label asks. Raises SettingError where it has to be said."""
    from gateway.oip.datatypes import DATATYPES, is_float
    from gateway.replay.replay import Score

    if rule.type == "text":
        raise SettingError(f"label: {wish.label} is a text, and no answer can be held against that")
    yes_no = rule.type == "boolean" or (rule.type == "category" and len(rule.values) == 2)
    kind = "boolean" if yes_no else "number" if rule.type in ("number", "integer") else "class"
    widths = {
        spec.name: math.prod(spec.shape[1:]) for spec in contract.outputs if spec.shape and -1 not in spec.shape[1:]
    }
    name, _, element = wish.score.partition(":")
    if wish.score:
        if name not in widths or not (element or "0").isdecimal() or int(element or 0) >= widths[name]:
            raise SettingError(f"score: {wish.score!r} is no element of an output; there are {widths}")
        return Score(name, int(element or 0), kind)
    for spec in contract.outputs:
        width = widths.get(spec.name)
        if kind == "class":
            if width == 1 and not is_float(spec.datatype) and DATATYPES[spec.datatype].size:
                return Score(spec.name, 0, kind)
        elif is_float(spec.datatype) and spec.datatype != "BF16":
            if width == 1:
                return Score(spec.name, 0, kind)
            if width == 2 and yes_no:
                return Score(spec.name, 1, kind)
    raise SettingError(f"score: say with --score which output answers {wish.label}, a {rule.type}")


def _truth(rule: FeedbackRule, labels: pa.Array) -> Array:
    """Labels as numbers: of two values the last is 1; of several, the place in the declaration where they are texts."""
    values = labels.to_pylist()
    if rule.type == "category" and (len(rule.values) == 2 or isinstance(rule.values[0], str)):
        places = {str(value): place for place, value in enumerate(rule.values)}
        values = [places[str(value)] for value in values]
    return np.array(values, np.float64)
