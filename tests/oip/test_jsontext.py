"""The strict JSON parser, against Python's own as the oracle."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import InvalidJSON
from gateway.oip.jsontext import kind, parse_object, quote
from tests.oip import corpus

SYNTAX = json.loads((corpus.FOLDER.parent / "json_syntax.json").read_bytes())
DEPTH = 100

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(':"\\[]{},\x00\n/'), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(texts, values, max_size=5)
randoms = st.randoms(use_true_random=False)


class Pairs(list[tuple[str, Any]]):
    """An object as its pairs in order, in which a key may stand twice."""


def to_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, to_pairs(member)) for key, member in value.items())
    return [to_pairs(member) for member in value] if isinstance(value, list) else value


def spell(value: Any, rng: random.Random) -> str:
    """One of the many spellings of a value: white space, escapes and digits as `rng` has it."""
    space = "".join(rng.choices(" \t\r\n", k=rng.choice((0, 0, 0, 1, 3))))
    match value:
        case Pairs():
            text = "{" + ",".join(f"{spell(key, rng)}:{spell(member, rng)}" for key, member in value) + space + "}"
        case dict():
            return spell(to_pairs(value), rng)
        case list():
            text = "[" + ",".join(spell(member, rng) for member in value) + space + "]"
        case str():
            text = '"' + "".join(spell_character(character, rng) for character in value) + '"'
        case _:
            text = json.dumps(value)
    return space + text + space


def spell_character(character: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        units = character.encode("utf-16-be")
        form = rng.choice(("\\u{:04x}", "\\u{:04X}"))
        return "".join(form.format(int.from_bytes(units[i : i + 2], "big")) for i in range(0, len(units), 2))
    return json.dumps(character, ensure_ascii=False)[1:-1]


def oracle(text: bytes) -> Any:
    """What Python's parser makes of a text once its leniencies are taken away; raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        for key, _ in pairs:
            key.encode()
        return dict(pairs)

    def finite(digits: str) -> float:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise ValueError("not finite")
        return number

    def whole(digits: str) -> int | float:
        number = finite(digits) if len(digits) > 19 else int(digits)
        if len(digits) in (20, 19) and -(1 << 63) <= int(digits) < 1 << 64:
            return int(digits)
        return number if len(digits) > 19 else int(digits)

    def refuse(word: str) -> Any:
        raise ValueError(word)

    if text.startswith(b"\xef\xbb\xbf"):
        raise ValueError("byte-order mark")
    value = json.loads(
        text.decode(), object_pairs_hook=unique, parse_float=finite, parse_int=whole, parse_constant=refuse
    )
    if not isinstance(value, dict):
        raise ValueError("not an object")
    json.dumps(value, ensure_ascii=False).encode()
    return value


@pytest.mark.parametrize("name", SYNTAX["accept"])
def test_valid_syntax_is_read_as_python_reads_it(name: str) -> None:
    text = corpus.build(SYNTAX["accept"][name])
    assert parse_object(text, DEPTH) == oracle(text)


@pytest.mark.parametrize("name", SYNTAX["refuse"])
def test_invalid_syntax_is_refused_at_its_byte(name: str) -> None:
    case = SYNTAX["refuse"][name]
    text = corpus.build(case["text"])
    with pytest.raises(InvalidJSON) as refused:
        parse_object(text, DEPTH)
    assert refused.value.field is not None
    if "byte" in case:
        assert f"at byte {case['byte']}:" in refused.value.message
    with pytest.raises(ValueError):  # noqa: PT011  (the oracle must agree, with whatever text)
        oracle(text)


@given(objects, randoms)
def test_a_valid_document_parses_to_the_value_it_spells(value: dict[str, Any], rng: random.Random) -> None:
    text = spell(value, rng).encode()
    assert parse_object(text, DEPTH) == value == oracle(text)


@given(objects.filter(bool), randoms, values)
@example({"a": ":"}, random.Random(1), ":")
@example({":": {":": "\\"}}, random.Random(2), ["::", {"": ":"}])
def test_a_second_key_is_refused_wherever_it_stands_and_however_it_is_spelt(
    value: dict[str, Any], rng: random.Random, other: Any
) -> None:
    root = to_pairs(value)
    places: list[tuple[str, Pairs]] = []
    find_objects(root, "", places)
    steps, pairs = rng.choice([place for place in places if place[1]])
    path = steps.removeprefix(".") or "$"
    key = rng.choice(pairs)[0]
    pairs.insert(rng.randrange(len(pairs) + 1), (key, to_pairs(other)))
    text = spell(root, rng).encode()
    assert parse_leniently(text)
    with pytest.raises(InvalidJSON) as refused:
        parse_object(text, DEPTH)
    assert refused.value.field == path
    assert refused.value.message == f"key {quote(key)} stands twice in {path}"


def find_objects(value: Any, path: str, places: list[tuple[str, Pairs]]) -> None:
    """Every object under `value` with the steps to it."""
    if isinstance(value, Pairs):
        places.append((path, value))
        for key, member in value:
            find_objects(member, f"{path}.{key}", places)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            find_objects(member, f"{path}[{index}]", places)


def parse_leniently(text: bytes) -> bool:
    return isinstance(json.loads(text), dict)


OPENERS = ("[", "[1,", '["a:[",', "[null,", '{"k":', '{"a":1,"k":', "[[],", "[1,{},")


@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.sampled_from(OPENERS), min_size=60, max_size=60))
@example(100, 100, ["[1,"] * 100)
@example(101, 100, ["[1,"] * 101)
@example(900, 100, ["[1,"] * 900)
@example(60, 60, ["[1,{},"] * 60)
def test_depth_is_bounded_exactly_whatever_nests(depth: int, limit: int, openers: list[str]) -> None:
    # `depth` levels in all: the root, and what is opened under it.
    opened = openers[: depth - 1]
    body = "".join(opened) + "2" + "".join("}" if each.startswith("{") else "]" for each in reversed(opened))
    text = ('{"r":' + body + "}").encode()
    inner = depth + 1 if opened and opened[-1] in ("[[],", "[1,{},") else depth
    if inner <= limit:
        assert parse_object(text, limit)
        return
    with pytest.raises(InvalidJSON, match=f"deeper than {limit} levels"):
        parse_object(text, limit)


@given(
    objects, randoms, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.sampled_from(["set", "cut", "add"])))
)
def test_a_damaged_document_is_read_as_python_reads_it_or_refused(
    value: dict[str, Any], rng: random.Random, damages: list[tuple[float, int, str]]
) -> None:
    text = bytearray(spell(value, rng).encode())
    for place, byte, how in damages:
        at = int(place * (len(text) - 1)) if text else 0
        if how == "set" and text:
            text[at] = byte
        elif how == "cut":
            del text[at : at + 1]
        else:
            text.insert(at, byte)
    agree(bytes(text))


@given(st.binary(max_size=40) | st.text('{}[]:,"\\u0123abef.-+ \n', max_size=40).map(str.encode))
def test_random_bytes_are_read_as_python_reads_them_or_refused(text: bytes) -> None:
    agree(b'{"a":' + text + b"}")
    agree(text)


def agree(text: bytes) -> None:
    """Both parsers refuse, or both give the same value."""
    try:
        expected = oracle(text)
    except ValueError:
        with pytest.raises(InvalidJSON) as refused:
            parse_object(text, DEPTH)
        assert refused.value.field is not None
        refused.value.message.encode()
        return
    assert parse_object(text, DEPTH) == expected


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"inputs": [{"shape": [1, 2]}, {"shape": [1, %s]}]}', "inputs[1].shape[1]"),
        ('{"a": {"": [[], [0, %s, 1e999]]}}', "a.[1][1]"),
        ("%s", "$"),
        ('{"a": %s, "b": }', "$"),
        ("[" * 90 + "%s" + "]" * 90, "[0]" * 90),
    ],
)
@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 310, "1e309"])
def test_a_number_beyond_a_double_is_named_by_its_path_where_the_rest_is_json(
    text: str, path: str, number: str
) -> None:
    with pytest.raises(InvalidJSON) as refused:
        parse_object((text % number).encode(), 1000)
    assert refused.value.field == path
    assert "beyond 1.8e308" in refused.value.message or path == "$"


def test_values_are_named_in_few_words() -> None:
    assert [kind(value) for value in (None, True, False, "x", [], {}, 1, -1.5)] == [
        *("null", "true", "false", "a string", "a list", "an object", "the number 1", "the number -1.5")
    ]
    assert kind(10**30) == "a number of many digits"
    assert quote("a" * 64) == repr("a" * 64)
    assert quote("a" * 65) == repr("a" * 64) + "..."
    assert "\n" not in quote("a\nb\x1b")
