"""Resolving: what each event about one prediction comes to, and the label that follows. Pure.

The result depends on the set of events alone, never on the order in which they came to the ledger: everything here goes
by what the events themselves say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.feedback.rules import FeedbackRule, Value


class State(StrEnum):
    """What an event came to. Only `matched` and `conflict` events have a voice in the label."""

    MATCHED = "matched"
    """It says what the label says. Of a tombstone: what it withdraws is known."""

    PENDING = "pending"
    """Its prediction is not known yet."""

    LATE = "late"
    """It came after the join window of its prediction: kept, without a voice."""

    ORPHAN = "orphan"
    """Its prediction did not come within the join window."""

    DUPLICATE = "duplicate"
    """Its source had said the same before."""

    CONFLICT = "conflict"
    """It says something else than the label."""

    SUPERSEDED = "superseded"
    """A later event names it, or came through the same link."""

    DELETED = "deleted"
    """A tombstone names it."""


class Statement(NamedTuple):
    """One event about one row of a prediction, as far as resolving needs it. Times are Unix nanoseconds.

    `observed_ns` is 0 where nobody said when it was observed.
    """

    feedback_id: str
    value: Value
    source: tuple[str, str]
    observed_ns: int
    received_ns: int
    supersedes: str = ""
    link: str = ""

    @property
    def order(self) -> tuple[int, str]:
        """Events in the order in which they were received."""
        return self.received_ns, self.feedback_id

    @property
    def recency(self) -> tuple[int, int, str]:
        """Events in the order in which they were observed."""
        return self.observed_ns or self.received_ns, self.received_ns, self.feedback_id


class Label(NamedTuple):
    """The resolved value: the statement that gives it, when the first one with a voice came, and who agrees.

    `voices` counts the sources that were heard, `agreeing` those whose last word is this value.
    """

    statement: Statement
    first_ns: int
    voices: int
    agreeing: int


def settle(
    statements: Iterable[Statement], deleted: Collection[str], predicted_ns: int, rule: FeedbackRule
) -> tuple[dict[str, State], Label | None]:
    """States by feedback_id of all statements about one row and name, and their label, None where none has a voice.

    `deleted` holds the feedback_ids that tombstones name.
    """
    received = sorted(statements, key=lambda each: each.order)
    states = {each.feedback_id: State.DELETED for each in received if each.feedback_id in deleted}
    timely: list[Statement] = []
    for each in received:
        if each.received_ns - predicted_ns <= rule.join_window_ns:
            timely.append(each)
        else:
            states.setdefault(each.feedback_id, State.LATE)
    replaced = _replaced(timely)
    voiced: list[Statement] = []
    last: dict[tuple[str, str], Statement] = {}
    for each in timely:
        if each.feedback_id in states:
            continue
        if each.feedback_id in replaced:
            states[each.feedback_id] = State.SUPERSEDED
        elif (before := last.get(each.source)) is not None and _repeats(before, each):
            states[each.feedback_id] = State.DUPLICATE
        else:
            last[each.source] = each
            voiced.append(each)
    if not voiced:
        return states, None
    words = _last_words(voiced)
    chosen = _choose(words, rule)
    for each in voiced:
        states[each.feedback_id] = State.MATCHED if same(each.value, chosen.value) else State.CONFLICT
    agreeing = sum(same(each.value, chosen.value) for each in words)
    return states, Label(chosen, voiced[0].received_ns, len(words), agreeing)


def same(one: Value, other: Value) -> bool:
    """Whether two values are the same: true is not 1, but 1 is 1.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _replaced(timely: Sequence[Statement]) -> set[str]:
    """What was superseded: named by another statement, or followed by one through the same link."""
    replaced = {each.supersedes for each in timely if each.supersedes != each.feedback_id}
    through: dict[str, str] = {}
    for each in timely:
        if each.link:
            if each.link in through:
                replaced.add(through[each.link])
            through[each.link] = each.feedback_id
    return replaced


def _repeats(before: Statement, after: Statement) -> bool:
    """The same value again is no news, unless it was observed at another time."""
    return same(before.value, after.value) and after.observed_ns in (0, before.observed_ns)


def _last_words(voiced: Sequence[Statement]) -> list[Statement]:
    """Of each source what it observed last."""
    words: dict[tuple[str, str], Statement] = {}
    for each in sorted(voiced, key=lambda each: each.recency):
        words[each.source] = each
    return list(words.values())


def _choose(words: Sequence[Statement], rule: FeedbackRule) -> Statement:
    """The statement that a rule makes the label, from the last word of each source."""
    if rule.resolve == "source-precedence":
        ranks = {source: rank for rank, source in enumerate(rule.sources)}
        best = min(ranks.get(each.source[1], len(ranks)) for each in words)
        words = [each for each in words if ranks.get(each.source[1], len(ranks)) == best]
    elif rule.resolve == "majority":
        votes = [sum(same(each.value, other.value) for other in words) for each in words]
        words = [each for each, count in zip(words, votes, strict=True) if count == max(votes)]
    return max(words, key=lambda each: each.recency)


__all__ = ["Label", "State", "Statement", "same", "settle"]
