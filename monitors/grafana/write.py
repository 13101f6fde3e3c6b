"""Write: every dashboard and rule file as text, by the name that it has in a folder. Does no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monitors.grafana import operations, overview, performance, versions
from monitors.grafana.board import Board
from monitors.grafana.objectives import Objectives
from monitors.grafana.rules import alerts, recording

MADE = "# Made by `headgate dashboards write`; change monitors/grafana instead.\n"


def boards(goals: Objectives) -> tuple[Board, ...]:
    """Every dashboard."""
    return (overview.board(goals), versions.board(goals), performance.board(goals), operations.board(goals))


def files(goals: Objectives) -> dict[str, str]:
    """Every file by its path below the folder that is written."""
    found = {
        f"grafana/dashboards/{board.uid}.json": json.dumps(board.document(), indent=2, ensure_ascii=False) + "\n"
        for board in boards(goals)
    }
    for name, rules in (("recording", recording(goals)), ("alerts", alerts(goals))):
        found[f"prometheus/headgate-{name}.rules.yml"] = MADE + yaml(rules)
    return found


def yaml(value: Mapping[str, Any]) -> str:
    """YAML of mappings, lists and texts, as rule files have them: lists of mappings only."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Mapping[str, Any]) -> Iterator[str]:
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield f"{key}:"
            yield from (f"  {line}" for line in _lines(each))
        elif isinstance(each, Sequence) and not isinstance(each, str):
            yield f"{key}:"
            for item in each:
                for index, line in enumerate(_lines(item)):
                    yield f"  {'  ' if index else '- '}{line}"
        else:
            yield f"{key}: {_scalar(str(each))}"


def _scalar(text: str) -> str:
    """A text without quotes where it cannot be taken for anything else; in single quotes only those are doubled."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_:./#-]*[A-Za-z0-9]", text)
    return text if plain else "'" + text.replace("'", "''") + "'"
