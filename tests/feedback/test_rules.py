"""Declarations: what each type accepts, what a wrong declaration is told, and what an error says of a right one."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback.rules import FeedbackRule, duration_ns
from gateway.models.config import ModelConfig, parse

JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2)
)


def rule(text: str) -> FeedbackRule:
    return parse(f"[feedback.it]\n{text}".encode()).feedback["it"]


def test_a_whole_declaration_is_read() -> None:
    found = rule(
        """
        type = "integer"
        kind = "feedback"
        min = 1
        max = 5
        maturity = "48h"
        join_window = "30d"
        resolve = "source-precedence"
        sources = ["chargebacks", "analyst"]
        optimize = "max"
        entity = "flight"
        entity_within = "90m"
        question = "How good was this?"
        """
    )
    assert (found.type, found.kind, found.min, found.max, found.optimize) == ("integer", "feedback", 1, 5, "max")
    assert found.sources == ("chargebacks", "analyst")
    assert found.maturity_ns == 48 * 3600 * 10**9
    assert found.join_window_ns == 30 * 86400 * 10**9
    assert found.entity_within_ns == 90 * 60 * 10**9


def test_a_declaration_survives_the_serving_plan() -> None:
    config = parse(b"[feedback.x]\ntype = 'category'\nvalues = ['a', 1]\n[feedback.y]\ntype = 'number'\nmin = 0.5")
    assert msgspec.json.decode(msgspec.json.encode(config), type=ModelConfig) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "type", id="no type"),
        pytest.param("type = 'bool'", "feedback[...].type", id="an unknown type"),
        pytest.param("type = 'boolean'\nmaturty = '1h'", "maturty", id="a key that is spelt wrong"),
        pytest.param("type = 'boolean'\nmaturity = '2 days'", "maturity", id="a duration in words"),
        pytest.param("type = 'boolean'\nmaturity = -1", "maturity", id="a duration as a number"),
        pytest.param("type = 'category'", "feedback.it: a category needs the list values", id="a category of nothing"),
        pytest.param("type = 'category'\nvalues = ['a', 'a']", "written differently", id="a category twice"),
        pytest.param("type = 'category'\nvalues = [1, '1']", "written differently", id="one as number and as text"),
        pytest.param("type = 'category'\nvalues = ['']", "feedback.it.values", id="a category without a name"),
        pytest.param("type = 'category'\nvalues = [true]", "values", id="a boolean as a category"),
        pytest.param("type = 'text'\nvalues = ['a']", "feedback.it.values is for the type category", id="texts listed"),
        pytest.param("type = 'boolean'\nmin = 0", "feedback.it: min and max", id="bounds of a boolean"),
        pytest.param("type = 'number'\nmin = nan", "finite", id="a bound that is not a number"),
        pytest.param("type = 'number'\nmin = 2\nmax = 1", "min 2 is above max 1", id="bounds the wrong way round"),
        pytest.param("type = 'integer'\nmin = 0.5", "whole numbers", id="half an integer"),
        pytest.param("type = 'text'\nmax = 20000", "0 to 10000", id="a text that is too long"),
        pytest.param("type = 'text'\nmin = -1", "0 to 10000", id="a text of negative length"),
        pytest.param("type = 'text'\noptimize = 'max'", "feedback.it.optimize", id="more text is better"),
        pytest.param("type = 'boolean'\nresolve = 'source-precedence'", "sources", id="precedence of nobody"),
        pytest.param("type = 'boolean'\nsources = ['a', 'a']", "feedback.it.sources", id="a source twice"),
        pytest.param("type = 'boolean'\nresolve = 'newest'", "resolve", id="an unknown rule"),
        pytest.param("type = 'boolean'\njoin_window = '36526d'", "at most 36525d", id="more than a hundred years"),
        pytest.param("type = 'boolean'\nentity = '" + "x" * 129 + "'", "entity", id="a long entity"),
    ],
)
def test_a_wrong_declaration_is_refused_by_its_key(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="model.toml") as caught:
        rule(text)
    assert words in str(caught.value)


def test_a_name_that_is_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="feedback name '1st' must be a letter"):
        parse(b"[feedback.1st]\ntype = 'boolean'")


@pytest.mark.parametrize(
    ("text", "words", "good", "bad"),
    [
        ("type = 'boolean'", "a boolean, true or false", [True, False], [0, 1, "true", None, 1.0]),
        ("type = 'number'", "a number", [0, -1.5, 10**300], [math.nan, math.inf, True, "1", None, 10**400]),
        ("type = 'number'\nmin = 0", "a number at least 0", [0, 0.0, 1e300], [-0.001, -1]),
        ("type = 'number'\nmax = 1.5", "a number at most 1.5", [1.5, -7], [1.6, 2]),
        ("type = 'integer'\nmin = 1\nmax = 5", "an integer from 1 to 5", [1, 5], [0, 6, 1.0, "1", True]),
        ("type = 'integer'", "an integer", [-(2**53), 2**53], [2**53 + 1, 1e3]),
        ("type = 'category'\nvalues = ['a', 2]", 'one of "a", 2', ["a", 2], ["b", "2", 2.0, True, None, ["a"]]),
        ("type = 'text'\nmax = 3", "a text of 1 to 3 characters", ["abc", "\N{GRINNING FACE}"], ["", "abcd", 1, None]),
        ("type = 'text'\nmin = 0", "a text of 0 to 10000 characters", ["", "x" * 10000], ["x" * 10001]),
    ],
)
def test_a_declaration_takes_what_it_says(text: str, words: str, good: list[object], bad: list[object]) -> None:
    found = rule(text)
    assert found.describe() == words
    assert [value for value in good if not found.accepts(value)] == []
    assert [value for value in bad if found.accepts(value)] == []


@given(JSON_VALUES)
def test_one_as_a_category_is_neither_true_nor_a_float(value: object) -> None:
    found = FeedbackRule("category", values=("a", 1, 0))
    expected = type(value) in (int, str) and value in ("a", 1, 0)
    assert found.accepts(value) is expected


@given(JSON_VALUES)
def test_every_type_answers_to_any_value(value: object) -> None:
    """No value of any JSON type makes a declaration raise, and what an integer takes a number takes too."""
    integer, number = FeedbackRule("integer", min=-3), FeedbackRule("number", min=-3)
    assert number.accepts(value) or not integer.accepts(value)
    for other in (FeedbackRule("boolean"), FeedbackRule("text"), FeedbackRule("category", values=("a",))):
        assert other.accepts(value) in (True, False)


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90s", 90), ("15m", 900), ("48h", 172800), ("2d", 172800)])
def test_durations_have_units(text: str, seconds: int) -> None:
    assert duration_ns(text) == seconds * 10**9


def test_a_long_list_of_categories_is_cut_in_messages() -> None:
    found = FeedbackRule("category", values=tuple(range(30)))
    assert found.describe().endswith("18, 19 and 10 more")
