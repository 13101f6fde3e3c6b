"""FeedbackRule: the declaration of one feedback name, a table ``[feedback.NAME]`` of `model.toml`. Does no I/O."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Value = bool | int | float | str
"""What one feedback event says."""

Kind = Literal["expectation", "feedback"]

_DURATION = r"^[0-9]{1,9}(s|m|h|d)$"
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

Duration = Annotated[str, Meta(pattern=_DURATION, description="a whole number and s, m, h or d, such as 48h")]

MAX_INTEGER = 1 << 53
"""Integers beyond this are not exact in every JSON reader."""

MAX_DURATION_NS = 36_525 * 86_400 * 1_000_000_000
"""A hundred years: sums of it and of times of this century are numbers of 64 bits."""

MAX_VALUES = 1000
MAX_VALUE_CHARACTERS = 256
"""Of one category."""


def duration_ns(text: str) -> int:
    """A Duration in nanoseconds."""
    return int(text[:-1]) * _UNIT_S[text[-1]] * 1_000_000_000


class FeedbackRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a name may be used, and how its label is resolved from all events about one prediction.

    kind: expectation is the true value that the prediction was about, feedback an opinion about the answer.
    min, max: bounds of a number or integer, included; of a text, its characters. values: of a category.
    maturity: how long after its prediction a label is normally complete; coverage is judged from this age on.
    join_window: how long after its prediction a label is still joined (then it is late), and how long a label whose
    prediction is unknown waits for it (then it is an orphan).
    resolve: which event is the label: the one observed last, that of the first source in `sources` that spoke (the
    one observed last of it), or the value that most sources give (the last observed where two are level).
    sources: ids, the most trusted first; a source that is not listed comes after them.
    optimize: whether more or less of it is better, where that can be said.
    entity: the input whose value is the key by which a label may name its prediction, together with a time that lies at
    most `entity_within` from that of the prediction; a word that is no input stands for the client's routing key.
    Empty: this address is not offered.
    question: what the page of a feedback link asks.
    """

    type: Literal["boolean", "number", "integer", "category", "text"]
    kind: Kind = "expectation"
    values: tuple[str | int, ...] = ()
    min: int | float | None = None
    max: int | float | None = None
    maturity: Duration = "0s"
    join_window: Duration = "30d"
    resolve: Literal["latest", "source-precedence", "majority"] = "latest"
    sources: tuple[str, ...] = ()
    optimize: Literal["", "max", "min"] = ""
    entity: str = ""
    entity_within: Duration = "1h"
    question: str = ""

    @property
    def maturity_ns(self) -> int:
        """See `maturity`."""
        return duration_ns(self.maturity)

    @property
    def join_window_ns(self) -> int:
        """See `join_window`."""
        return duration_ns(self.join_window)

    @property
    def entity_within_ns(self) -> int:
        """See `entity`."""
        return duration_ns(self.entity_within)

    def describe(self) -> str:
        """The declaration in words, as an error message gives it: ``an integer from 1 to 5``."""
        if self.type == "boolean":
            return "a boolean, true or false"
        if self.type == "category":
            shown = ", ".join(_show(value) for value in self.values[:20])
            return f"one of {shown}" + (f" and {len(self.values) - 20} more" if len(self.values) > 20 else "")
        noun = {"number": "a number", "integer": "an integer", "text": "a text"}[self.type]
        unit = " characters" if self.type == "text" else ""
        joint = " of " if self.type == "text" else " "
        low, high = self.bounds
        if low is not None and high is not None:
            return f"{noun}{joint}{'' if unit else 'from '}{low} to {high}{unit}"
        if low is not None:
            return f"{noun}{joint}at least {low}{unit}"
        return f"{noun}{joint}at most {high}{unit}" if high is not None else noun

    @property
    def bounds(self) -> tuple[int | float | None, int | float | None]:
        """Least and greatest number, or characters of a text, which may always have at most 10,000."""
        if self.type == "text":
            return (1 if self.min is None else self.min), (10_000 if self.max is None else self.max)
        return self.min, self.max

    def accepts(self, value: object) -> bool:
        """True for a value that this declaration allows."""
        low, high = self.bounds
        if self.type == "boolean":
            return isinstance(value, bool)
        if self.type == "category":
            return not isinstance(value, bool | float) and value in self.values
        if self.type == "text":
            return isinstance(value, str) and _within(len(value), low, high)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.type == "integer":
            return isinstance(value, int) and abs(value) <= MAX_INTEGER and _within(value, low, high)
        return _is_finite(value) and _within(value, low, high)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _within(value: int | float, low: int | float | None, high: int | float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _show(value: str | int) -> str:
    return f'"{value[:64]}"' if isinstance(value, str) else str(value)


def problem(name: str, rule: FeedbackRule) -> str | None:
    """What is wrong with a declaration, in words that name the key; None if nothing is."""
    if not _NAME.fullmatch(name):
        return f"feedback name {name[:64]!r} must be a letter and up to 63 of A-Z a-z 0-9 _ . -"
    where = f"feedback.{name}"
    if rule.type == "category":
        # A form and a CSV file know texts alone: 1 and "1" would be the same there.
        if not rule.values or len(rule.values) > MAX_VALUES or len(set(map(str, rule.values))) < len(rule.values):
            return f"{where}: a category needs the list values, 1 to {MAX_VALUES} that are written differently"
        if any(isinstance(value, str) and not 0 < len(value) <= MAX_VALUE_CHARACTERS for value in rule.values):
            return f"{where}.values: each must have 1 to {MAX_VALUE_CHARACTERS} characters"
    elif rule.values:
        return f"{where}.values is for the type category, not {rule.type}"
    return _bounds_problem(where, rule) or _address_problem(where, rule)


def _bounds_problem(where: str, rule: FeedbackRule) -> str | None:
    given = [bound for bound in (rule.min, rule.max) if bound is not None]
    if given and rule.type in ("boolean", "category"):
        return f"{where}: min and max are for numbers, integers and texts, not {rule.type}"
    if not all(_is_finite(bound) for bound in given):
        return f"{where}: min and max must be finite"
    if rule.type in ("integer", "text") and not all(isinstance(bound, int) for bound in given):
        return f"{where}: min and max of type {rule.type} must be whole numbers"
    low, high = rule.bounds
    if low is not None and high is not None and low > high:
        return f"{where}: min {low} is above max {high}"
    if rule.type == "text" and low is not None and high is not None and (low < 0 or high > 10_000):
        return f"{where}: a text has 0 to 10000 characters"
    return None


def _address_problem(where: str, rule: FeedbackRule) -> str | None:
    if rule.resolve == "source-precedence" and not rule.sources:
        return f"{where}: resolve 'source-precedence' needs the list sources, the most trusted first"
    if len(set(rule.sources)) < len(rule.sources) or not all(0 < len(source) <= 128 for source in rule.sources):
        return f"{where}.sources must be different ids of 1 to 128 characters"
    if rule.optimize and rule.type not in ("boolean", "number", "integer"):
        return f"{where}.optimize is for booleans, numbers and integers, not {rule.type}"
    for key in ("maturity", "join_window", "entity_within"):
        if duration_ns(getattr(rule, key)) > MAX_DURATION_NS:
            return f"{where}.{key} must be at most 36525d, a hundred years, got {getattr(rule, key)}"
    if len(rule.entity) > 128 or len(rule.question) > 500:
        return f"{where}: entity has at most 128 characters, question at most 500"
    return None
