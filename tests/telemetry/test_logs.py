"""Log lines: one JSON object each, whatever a client, a model or a file name puts into them."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.telemetry.logs import MAX_VALUE, JSONFormatter, configure


def line_of(message: str = "said", **extra: Any) -> str:
    """What is written for a record."""
    record = logging.makeLogRecord({"name": "headgate.test", "levelname": "INFO", "msg": message, "args": (), **extra})
    return JSONFormatter().format(record)


def strict(line: str) -> dict[str, Any]:
    """The line as strict JSON: the words NaN and Infinity are refused."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(line, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def test_a_line_has_time_level_event_message_and_what_the_event_brings() -> None:
    found = strict(line_of("version ready", event="version-ready", model="m", version=2, notes=["a", "b"]))
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "event": "version-ready",
        "message": "version ready",
        "model": "m",
        "version": 2,
        "notes": ["a", "b"],
    }


@pytest.mark.parametrize(
    "text",
    [
        'x"}\n{"level": "critical", "event": "forged"}',
        "a\r\nb\u2028c\u2029d\u0085e\vf\fg",
        "\x1b[2J\x1b]0;title\x07\x00\x08",
        "\ud800 alone",
        "%s %d {0} ${jndi:x}",
        "\\u000a\\",
    ],
)
def test_text_from_outside_stays_inside_its_value(text: str) -> None:
    line = line_of(text, path=text)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert all(character >= " " for character in line)
    found = strict(line)
    assert found["message"] == found["path"] == text
    assert found["event"] == "message"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.text(), values)
def test_any_message_and_value_is_one_line_of_strict_json(message: str, value: Any) -> None:
    line = line_of(message, value=value)
    assert len(line.splitlines()) == 1
    assert set(strict(line)) == {"time", "level", "event", "message", "value"}


def test_numbers_that_json_cannot_say_become_words_at_any_depth() -> None:
    found = strict(line_of(loss=float("nan"), metrics={"auc": float("inf"), "all": [1.5, float("-inf")]}))
    assert (found["loss"], found["metrics"]) == ("nan", {"auc": "inf", "all": [1.5, "-inf"]})


def test_long_values_are_cut() -> None:
    found = strict(line_of("x" * 100_000, path="y" * (MAX_VALUE + 1), short="z" * MAX_VALUE, notes=["n" * 10_000]))
    assert found["notes"] == ["n" * MAX_VALUE + "..."]
    assert found["message"] == "x" * MAX_VALUE + "..."
    assert found["path"] == "y" * MAX_VALUE + "..."
    assert found["short"] == "z" * MAX_VALUE


def test_an_exception_is_a_value_too_and_bounded() -> None:
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise ValueError('bad "input"\n' * 2000)

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.Logger("headgate.test")
    logger.addHandler(handler)
    try:
        deep(50)
    except ValueError:
        logger.exception("it failed", extra={"event": "internal-error"})
    (line,) = stream.getvalue().splitlines()
    found = strict(line)
    assert (found["level"], found["event"]) == ("error", "internal-error")
    assert found["traceback"].endswith('bad "input"\n')
    assert len(found["traceback"]) <= 8192


def test_configuring_sends_everything_from_a_level_up_to_one_stream() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure("warning", stream)
        logging.getLogger("headgate.test").info("not this")
        logging.getLogger("headgate.test").warning("but this", extra={"event": "seen"})
        logging.getLogger("uvicorn.error").info("nor this")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert [strict(line)["event"] for line in stream.getvalue().splitlines()] == ["seen"]
