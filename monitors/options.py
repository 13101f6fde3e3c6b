"""The options of the commands `headgate baseline` and `headgate monitor`: apart, because every command reads them."""

from __future__ import annotations

import argparse
from pathlib import Path


def baseline_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `headgate baseline build`."""
    parser.add_argument("folder", type=Path, help="a version folder, such as models/flights/2")
    parser.add_argument("data", type=Path, help="the training data: a .parquet or .csv file of any size")
    parser.add_argument("--features", type=_names, default=(), metavar="A,B", help="the features (default: the rest)")
    parser.add_argument(
        "--input",
        type=_input,
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="the columns that are the values of an input tensor, in their order",
    )
    parser.add_argument("--categorical", type=_names, default=(), metavar="A,B", help="numbers that are categories")
    parser.add_argument("--outputs", type=_names, default=(), metavar="A,B", help="the model's answers on the data")
    parser.add_argument("--label", type=_pair, action="append", default=[], metavar="NAME=COLUMN", help="what happened")
    parser.add_argument("--time", metavar="COLUMN", help="when each row was, for baselines by hour of the week")
    parser.add_argument("--slice", type=_names, default=(), metavar="A,B", help="columns to count apart by value")
    parser.add_argument("--exclude", type=_names, default=(), metavar="A,B", help="columns to leave out")


def backfill_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `headgate monitor backfill`, beside those that say where models and data are."""
    parser.add_argument("model", nargs="?", help="name of the model (default: all of which there are predictions)")
    parser.add_argument("--version", type=int, metavar="N", help="one version (default: all)")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="compare with this one, not with the version's own"
    )
    parser.add_argument(
        "--write", action="store_true", help="let the server, which must be stopped, go on from what was counted"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _input(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, columns = text.partition("=")
    if not name or not _names(columns):
        raise argparse.ArgumentTypeError(f"NAME=COLUMN,COLUMN expected, got {text!r}")
    return name, _names(columns)


def _pair(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"NAME=COLUMN expected, got {text!r}")
    return name, column or name
