"""Strict JSON (RFC 8259), with the two rules that fast parsers leave out: no duplicate keys, bounded depth.

orjson refuses NaN, Infinity, numbers beyond a double, byte-order marks, trailing bytes, invalid UTF-8 and lone
surrogates, but keeps the last of two equal keys without a word. Counting finds them cheaply: outside of strings every
colon belongs to one key, so a document without duplicates has exactly as many colons as the parsed value has keys
plus colons in its strings. Only when the two differ is the document read again, slowly, to name the key. Brackets are
counted in the same way, to know that no nested value was passed over when the depth was measured.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from gateway.errors import InvalidJSON


def parse_object(text: bytes, max_depth: int) -> dict[str, Any]:
    """Parse one JSON object.

    Raises InvalidJSON, naming the byte or the path, for anything that is not strict JSON, holds an object with two
    equal keys, or nests deeper than `max_depth` levels.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidJSON(_sentence(text, error, max_depth), field="$") from None
    if not isinstance(value, dict):
        raise InvalidJSON(f"the body must be a JSON object, got {kind(value)}", field="$")
    colons, containers = _survey(value, max_depth)
    if containers != text.count(b"{") + text.count(b"["):
        _check_depth(value, max_depth)
    if colons != text.count(b":") or b"\\u003" in text:
        _refuse_duplicates(text)
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


def _survey(root: dict[str, Any], max_depth: int) -> tuple[int, int]:
    """Keys and colons in strings of a parsed value, and its lists and objects; bounds the depth on the way.

    A list is taken for numbers by its first element. Where that is wrong the counts come out too small, never too
    large, so the slow readings decide.
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
            elif value and type(value[0]) not in (int, float):
                for member in value:
                    if type(member) is str:
                        count += member.count(":")
                    elif type(member) in (dict, list):
                        below.append(member)
        level = below
    return count, containers


def _check_depth(root: dict[str, Any], max_depth: int) -> None:
    """Bounds the depth of every value, also of those that stand in a list after a number."""
    level: list[Any] = [root]
    for _ in range(max_depth):
        level = [
            member
            for value in level
            for member in (value.values() if type(value) is dict else value)
            if type(member) in (dict, list)
        ]
        if not level:
            return
    raise InvalidJSON(_too_deep(max_depth), field="$")


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


def _refuse_duplicates(text: bytes) -> None:
    try:
        root = json.loads(text, object_pairs_hook=_object, parse_int=len, parse_float=len)
    except RecursionError:
        raise InvalidJSON("the JSON nests too deeply", field="$") from None
    stack: list[tuple[str, Any]] = [("$", root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, _Twice):
            raise InvalidJSON(f"key {quote(value.key)} stands twice in {path}", field=path)
        if isinstance(value, dict):
            prefix = "" if path == "$" else f"{path}."
            stack.extend((f"{prefix}{key[:64]}", member) for key, member in value.items())
        elif isinstance(value, list):
            stack.extend((f"{path}[{i}]", member) for i, member in enumerate(value) if isinstance(member, dict | list))
