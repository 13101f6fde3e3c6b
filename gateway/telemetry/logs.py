"""Logs: one JSON object per line on standard error. Values are escaped and cut; tensor contents never get here."""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_VALUE = 512
"""Characters of one value; longer ones are cut."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JSONFormatter(logging.Formatter):
    """``{"time", "level", "event", "message", ...}``; `extra` members become members of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a newline inside: JSON escapes control characters."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "message",
            "message": _cut(record.getMessage()),
        }
        line.update({key: _cut(value) for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-8192:]
        return json.dumps(line, default=str)


def _cut(value: Any) -> Any:
    """A value with long texts cut, and no number that JSON has no word for, at any depth."""
    if isinstance(value, str) and len(value) > MAX_VALUE:
        return value[:MAX_VALUE] + "..."
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_cut(each) for each in value]
    if isinstance(value, dict):
        return {str(key)[:MAX_VALUE]: _cut(each) for key, each in value.items()}
    return value


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the root logger's records of `level` and above to `stream` (standard error) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn logs "Started server process" and its like at this level; Headgate has its own lines for these.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
