"""Strict JSON (RFC 8259), with the two rules that fast parsers leave out: no duplicate keys, bounded depth.

orjson refuses NaN, Infinity, numbers beyond a double, byte-order marks, trailing bytes, invalid UTF-8 and lone
surrogates, but keeps the last of two equal keys without a word. Counting finds them cheaply: every colon of a text
belongs to one key or stands in a string, so a document without duplicates has exactly as many colons, escaped ones
included, as the parsed value has keys plus colons in its strings. Only a document that has more is read again, slowly,
to name the key. Brackets are counted in the same way, to know that no nested value escaped the measuring of the depth.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import orjson

from gateway.errors import InvalidJSON

_T = TypeVar("_T")


def parse_object(text: bytes, max_depth: int) -> dict[str, Any]:
    """Parse one JSON object.

    Raises InvalidJSON, naming the byte or the path, for anything that is not strict JSON, holds an object with two
    equal keys, or nests deeper than `max_depth` levels.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _refusal(text, error, max_depth) from None
    if not isinstance(value, dict):
        raise InvalidJSON(f"the body must be a JSON object, got {kind(value)}", field="$")
    wanted = (_colons(text), text.count(b"{") + text.count(b"["))
    if _survey(value, max_depth, thorough=False) != wanted:
        colons, _ = _survey(value, max_depth, thorough=True)
        if colons != wanted[0]:
            del value  # the second reading takes as much memory
            raise _duplicate(text)
    return value


def kind(value: object) -> str:
    """What a parsed value is called in a message: ``a string``, ``null``, ``the number 1.5`` ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        digits = repr(value)
        return f"the number {digits}" if len(digits) <= 24 else "a number of many digits"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def quote(text: str, limit: int = 64) -> str:
    """Client text as it may stand in a message: escaped, and cut at `limit` characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."


def _refusal(text: bytes, error: orjson.JSONDecodeError, max_depth: int) -> InvalidJSON:
    """Why a text is no strict JSON, in words; of a number that is too large, also where it stands."""
    if "number is infinity" in error.msg and (steps := _steps_to_too_large(text)) is not None:
        path = steps.removeprefix(".") or "$"
        return InvalidJSON(f"{path} is a number beyond 1.8e308, which no datatype holds", field=path)
    return InvalidJSON(_sentence(text, error, max_depth), field="$")


def _sentence(text: bytes, error: orjson.JSONDecodeError, max_depth: int) -> str:
    reason = error.msg.partition(": line ")[0]
    if not text:
        return "the body is empty, expected a JSON object"
    if "depth limit" in reason:
        return _too_deep(max_depth)
    try:
        # orjson counts characters.
        at = len(text.decode()[: error.pos].encode())
    except UnicodeDecodeError as utf8:
        return f"the body is not valid JSON at byte {utf8.start}: it is not UTF-8"
    hint = ""
    if text[at : at + 8].lstrip(b"-").startswith((b"NaN", b"Inf")):
        hint = "; send NaN as null, or use the binary tensor format"
    return f"the body is not valid JSON at byte {at}: {reason}{hint}"


def _too_deep(max_depth: int) -> str:
    return f"the JSON nests deeper than {max_depth} levels"


def _colons(text: bytes) -> int:
    """Colons of a JSON text, those that are escaped included."""
    count = text.count(b":")
    if b"\\u003" in text:
        plain = text.replace(b"\\\\", b"")  # of an even run of backslashes none begins an escape
        count += plain.count(b"\\u003a") + plain.count(b"\\u003A")
    return count


def _survey(root: dict[str, Any], max_depth: int, *, thorough: bool) -> tuple[int, int]:
    """(keys and colons in strings, lists and objects) of a parsed value; bounds the depth on the way.

    Unless `thorough`, a list is taken for numbers by its first element. Where that is wrong the counts come out too
    small, never too large.
    """
    count = 0
    containers = 0
    level: list[Any] = [root]
    depth = 0
    while level:
        depth += 1
        if depth > max_depth:
            raise InvalidJSON(_too_deep(max_depth), field="$")
        containers += len(level)
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                count += len(value)
                for key, member in value.items():
                    if ":" in key:
                        count += key.count(":")
                    if type(member) is str:
                        count += member.count(":")
                    elif type(member) in (dict, list):
                        below.append(member)
            elif value and (thorough or type(value[0]) not in (int, float)):
                for member in value:
                    if type(member) is str:
                        count += member.count(":")
                    elif type(member) in (dict, list):
                        below.append(member)
        level = below
    return count, containers


class _Twice(dict[str, Any]):
    """An object in which a key stood twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen: set[str] = set()
    twice = _Twice(value)
    for key, _ in pairs:
        if key in seen:
            twice.key = key
            break
        seen.add(key)
    return twice


def _duplicate(text: bytes) -> InvalidJSON:
    """The refusal of a text in which some object has a key twice: names the first such object."""
    try:
        found = _find(json.loads(text, object_pairs_hook=_object, parse_int=len, parse_float=len), _Twice)
    except RecursionError:
        return InvalidJSON("the JSON nests too deeply", field="$")
    assert found is not None, "there are more colons than keys"
    steps, twice = found
    path = steps.removeprefix(".") or "$"
    return InvalidJSON(f"key {quote(twice.key)} stands twice in {path}", field=path)


class _TooLarge:
    """A number beyond the range of a double."""


def _number(digits: str) -> _TooLarge | None:
    return _TooLarge() if math.isinf(float(digits)) else None


def _steps_to_too_large(text: bytes) -> str | None:
    """The steps to the first number beyond a double; None where what comes behind it is not JSON either."""
    try:
        found = _find(json.loads(text, parse_int=_number, parse_float=_number), _TooLarge)
    except (ValueError, RecursionError):
        return None
    return found[0] if found is not None else None


def _find(value: Any, kind: type[_T]) -> tuple[str, _T] | None:
    """The steps to the first value of a kind, and that value. Spelt on the way back, so as to make one path."""
    if isinstance(value, kind):
        return "", value
    if isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, dict | list | kind) and (found := _find(member, kind)):
                return f".{name[:64]}{found[0]}", found[1]
    elif isinstance(value, list):
        for index, member in enumerate(value):
            if isinstance(member, dict | list | kind) and (found := _find(member, kind)):
                return f"[{index}]{found[0]}", found[1]
    return None
