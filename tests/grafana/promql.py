"""Reads what matters of a query: its series with their matchers, the labels it groups by, the ranges it looks over."""

from __future__ import annotations

import re
from typing import NamedTuple

SERIES = re.compile(r"\b(headgate_\w+|process_\w+|up|ALERTS|\w+:\w+:\w+)\b(?!\s*\()(?:\{([^}]*)\})?(?:\[([^\]]+)\])?")
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
GROUP = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
RANGED = re.compile(r"\b(rate|increase|irate|delta|deriv|\w+_over_time)\((?=[a-z])")


class Series(NamedTuple):
    """A selector. `within` is the function that is applied to it, "" if none is."""

    name: str
    matchers: dict[str, str]
    over: str
    within: str


def series(expr: str) -> list[Series]:
    """Every selector of a query."""
    found = []
    for match in SERIES.finditer(expr):
        before = re.search(r"(\w+)\($", expr[: match.start()])
        matchers = {name: value for name, _, value in MATCHER.findall(match[2] or "")}
        found.append(Series(match[1], matchers, match[3] or "", before[1] if before else ""))
    return found


def grouped(expr: str) -> set[str]:
    """The labels that a query groups by or joins on."""
    return {label.strip() for inside in GROUP.findall(expr) for label in inside.split(",") if label.strip()}


def metric_of(name: str) -> str:
    """The name of the family that a series belongs to, as a text exposition types it."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def filled_in(expr: str, **values: str) -> str:
    """A query with Grafana's variables replaced; the longest names first, so that none is part of another."""
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr
