"""`headgate predictions`: writes logged predictions with their labels as a table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import settings
from gateway.errors import SettingError

if TYPE_CHECKING:
    from gateway.journal.export import LabelColumn

CSV, PARQUET = ".csv", ".parquet"


class SystemClock:
    """The time of day."""

    @staticmethod
    def now_ns() -> int:
        """Unix time in nanoseconds."""
        return time.time_ns()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Give `headgate` its command `predictions`."""
    predictions = commands.add_parser("predictions", help="export logged predictions")
    verbs = predictions.add_subparsers(title="commands", required=True, metavar="COMMAND")
    export = verbs.add_parser(
        "export",
        help="write predictions joined with their labels as Parquet or CSV",
        description="Write the logged predictions of a model, each row with its inputs, outputs and resolved labels. "
        "It may run beside a server.",
    )
    export.add_argument("model", help="name of the model")
    export.add_argument("out", type=Path, help="the file to write; its name ends in .parquet or .csv")
    settings.add_arguments(export, only=("data",))
    add_selection(export)
    export.add_argument(
        "--label", action="append", metavar="NAME", help="a feedback name; repeatable (default: all that have labels)"
    )
    export.add_argument(
        "--as-of", type=moment, metavar="TIME", help="the labels that were known then, of predictions made before it"
    )
    export.add_argument(
        "--matured", action="store_true", help="leave out predictions younger than the maturity of their labels"
    )
    export.add_argument("--labelled", action="store_true", help="leave out rows without any label")
    export.add_argument("--everything", action="store_true", help="also requests that failed or got no answer")
    export.add_argument("--no-outputs", action="store_true", help="leave out what the model answered")
    export.add_argument("--flat", action="store_true", help="a column for each element of a tensor; CSV always has it")
    export.add_argument("--json", action="store_true", help="print what was done as JSON")
    export.set_defaults(run=_export)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Flags that say which predictions are meant."""
    parser.add_argument("--version", action="append", type=int, metavar="N", help="repeatable (default: all)")
    parser.add_argument("--since", type=moment, default=0, metavar="TIME", help="made at or after, such as 2026-09-17")
    parser.add_argument("--until", type=moment, default=1 << 62, metavar="TIME", help="made before")


def moment(text: str) -> int:
    """A date or an RFC 3339 time as Unix nanoseconds; UTC where it says nothing else."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no date or time such as 2026-09-17 or 2026-09-17T10:00:00Z"
        raise argparse.ArgumentTypeError(message) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    since = found - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds) * 1000


def label_columns(
    data: Path,
    model: str,
    names: list[str] | None,
    versions: tuple[int, ...],
    span_ns: tuple[int, int],
    as_of_ns: int | None = None,
) -> list[LabelColumn]:
    """The labels of `names` (None: of all names that have any) for predictions of [start, stop).

    None of them where there is no ledger and no name is asked for. Raises LedgerUnavailable.
    """
    from gateway.journal.export import LabelColumn
    from gateway.ledger import dialect
    from gateway.ledger.reading import Ledger, LedgerUnavailable

    ledger = Ledger(dialect.location(data))
    if names is None:
        try:
            names = sorted({name for owner, name, _ in ledger.tallies() if owner == model and name})
        except LedgerUnavailable:
            return []
    found = []
    for name in names:
        start_ns, stop_ns = span_ns
        labels = (
            ledger.labels(model, name, versions=versions, start_ns=start_ns, stop_ns=stop_ns)
            if as_of_ns is None
            else (
                each
                for each in ledger.labels_known_at(model, name, as_of_ns)
                if start_ns <= each.predicted_ns < stop_ns and (not versions or each.version in versions)
            )
        )
        found.append(LabelColumn(name, ledger.rule(model, name), labels))
    return found


def _export(args: argparse.Namespace) -> int:
    # A server that only serves has no need of pyarrow's writers.
    import msgspec

    from gateway.journal.export import Wish, export
    from gateway.progress import Progress

    chosen = settings.load(vars(args), os.environ)
    if args.out.suffix not in (CSV, PARQUET):
        raise SettingError(f"out: {str(args.out)!r} must end in {PARQUET} or {CSV}")
    versions = tuple(args.version or ())
    until_ns = min(args.until, args.as_of) if args.as_of is not None else args.until
    span_ns = (args.since, until_ns)
    labels = label_columns(chosen.data, args.model, args.label, versions, span_ns, args.as_of)
    if args.matured:
        known_ns = args.as_of if args.as_of is not None else SystemClock.now_ns()
        until_ns = min(until_ns, known_ns - max((each.rule.maturity_ns for each in labels), default=0))
    wish = Wish(
        model=args.model,
        versions=versions,
        since_ns=args.since,
        until_ns=until_ns,
        labelled=args.labelled,
        everything=args.everything,
        outputs=not args.no_outputs,
        flat=args.flat or args.out.suffix == CSV,
    )
    with Progress(0, "rows", sys.stderr) as progress:
        told = export(chosen.data, wish, labels, args.out, progress)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return 1 if told.damaged else 0
    print(f"wrote {told.rows:,} rows of {len(told.columns)} columns to {args.out}")
    for name, count in told.labelled.items():
        unused = f"; {told.unused[name]:,} labels have no row in it" if told.unused[name] else ""
        print(f"  label {name}: {count:,} rows{unused}")
    if told.bare:
        print(f"  {told.bare:,} rows are past the age or space of inputs and have none")
    for words in told.damaged:
        print(f"  damaged: {words}")
    return 1 if told.damaged else 0
