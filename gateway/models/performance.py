"""PerformanceRule: which output is judged by which feedback: `[monitor.performance]` of a `model.toml`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.feedback.rules import FeedbackRule, Value

MOST_CLASSES = 200


class PerformanceRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is compared with what: the feedback name `label` says what was true, the output `score` what was said.

    A boolean or a category makes it a classification: `score` holds probabilities, one column a class, or one alone
    where there are two. `classes`: the values of the label in the order of those columns (default: false, true; or the
    values of the category, in the order of `outputs.NAME.labels` where these are the same). `positive`: which of two
    classes the figures are about. `threshold`: from which probability on it is what the model says. A number makes it a
    regression. `tolerance`: how much worse than in training, in points of a loss from 0 to 1, nobody wants to be told.
    `window_s`: what "now" means, by the time of the prediction; 0: a week more than labels take to be complete
    (`feedback.NAME.maturity`). `learn_labels`: of which the usual loss is learned where the baseline has no labels.
    `loss_detectors`: detectors that look at the losses one by one and report what they detect, without a budget.
    """

    label: str
    score: str
    classes: tuple[str | int, ...] = ()
    positive: Annotated[int, Meta(ge=0, le=1)] = 1
    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    tolerance: Annotated[float, Meta(ge=0, lt=1)] = 0.02
    window_s: Annotated[float, Meta(ge=0, le=315_576_000)] = 0.0
    learn_labels: Annotated[int, Meta(ge=100, le=10_000_000)] = 1000
    loss_detectors: tuple[
        Literal["adwin", "cusum", "ddm", "ewma", "hddm-a", "hddm-w", "kswin", "page-hinkley"], ...
    ] = ()


def classes_of(rule: PerformanceRule, feedback: FeedbackRule, labels: Sequence[str] = ()) -> tuple[Value, ...]:
    """The values of the label, in the order of the columns of the score; none for a regression.

    `labels`: the class names of the output.
    """
    if rule.classes:
        return rule.classes
    if feedback.type == "boolean":
        return (False, True)
    if feedback.type == "category":
        named = {str(value): value for value in feedback.values}
        return tuple(named[name] for name in labels) if set(labels) == set(named) else feedback.values
    return ()


def problem(rule: PerformanceRule, names: Mapping[str, FeedbackRule]) -> str | None:
    """What is wrong with a rule, in words that name the key; None if nothing is."""
    where = "monitor.performance"
    feedback = names.get(rule.label)
    if feedback is None:
        known = ", ".join(sorted(names)) or "none"
        return f"{where}.label {rule.label[:64]!r} is no name of [feedback]; there is {known}"
    if feedback.type == "text":
        return f"{where}.label: {rule.label!r} is a text, which no output can be compared with"
    if not rule.score:
        return f"{where}.score must name an output"
    if rule.classes:
        if not 2 <= len(rule.classes) <= MOST_CLASSES or len(set(rule.classes)) < len(rule.classes):
            return f"{where}.classes must be 2 to {MOST_CLASSES} different values"
        if feedback.type == "boolean":
            return f"{where}.classes is for categories and integers: those of a boolean are false and true"
        if wrong := [value for value in rule.classes if not feedback.accepts(value)]:
            return f"{where}.classes: {wrong[0]!r} is no value of {rule.label!r}, which is {feedback.describe()}"
    if feedback.type == "category" and not 2 <= len(feedback.values) <= MOST_CLASSES:
        return f"{where}.label: {rule.label!r} has {len(feedback.values)} values; 2 to {MOST_CLASSES} can be compared"
    return None
