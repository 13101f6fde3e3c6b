"""What events come to: by example, and for any set of events against an oracle that is written differently."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feedback.rules import FeedbackRule
from gateway.ledger.resolve import State, Statement, same, settle

DAY = 86400 * 1_000_000_000
LATEST = FeedbackRule(type="boolean", join_window="2d")
PRECEDENCE = FeedbackRule(type="boolean", join_window="2d", resolve="source-precedence", sources=("a", "b"))
MAJORITY = FeedbackRule(type="boolean", join_window="2d", resolve="majority")


def say(name: str, value: bool | int | str, source: str = "a", at: int = 1, **facts: object) -> Statement:
    facts = {"observed_ns": 0, "received_ns": at} | facts
    return Statement(name, value, ("SYSTEM", source), **facts)  # type: ignore[arg-type]


def outcome(statements: Sequence[Statement], rule: FeedbackRule = LATEST, deleted: Sequence[str] = ()) -> object:
    states, label = settle(statements, deleted, 0, rule)
    return {name: str(state) for name, state in states.items()}, None if label is None else label.statement.value


def test_nothing_said_is_no_label() -> None:
    assert outcome([]) == ({}, None)


def test_of_two_sources_the_one_that_observed_last_is_believed() -> None:
    later = say("1", True, "a", at=5, observed_ns=9)
    earlier = say("2", False, "b", at=6, observed_ns=8)
    assert outcome([later, earlier]) == ({"1": "matched", "2": "conflict"}, True)


def test_the_most_trusted_source_that_spoke_is_believed_whenever_it_spoke() -> None:
    said = [say("1", True, "b", at=1), say("2", False, "c", at=2)]
    assert outcome(said, PRECEDENCE) == ({"1": "matched", "2": "conflict"}, True)
    assert outcome([*said, say("0", False, "a", at=0)], PRECEDENCE) == (
        {"0": "matched", "1": "conflict", "2": "matched"},
        False,
    )


def test_each_source_has_one_vote_its_last_word() -> None:
    said = [say("1", True, "a", 1), say("2", False, "a", 2), say("3", False, "b", 3), say("4", True, "c", 4)]
    states, label = settle(said, (), 0, MAJORITY)
    assert label is not None
    assert (label.statement.value, label.voices, label.agreeing, label.first_ns) == (False, 3, 2, 1)
    assert states == {"1": "conflict", "2": "matched", "3": "matched", "4": "conflict"}


def test_where_votes_are_level_the_last_observed_is_believed() -> None:
    assert outcome([say("1", True, "a", 1), say("2", False, "b", 2)], MAJORITY)[1] is False  # type: ignore[index]


def test_the_same_again_is_a_duplicate_but_not_after_something_else() -> None:
    said = [say("1", True, at=1), say("2", True, at=2), say("3", False, at=3), say("4", True, at=4)]
    assert outcome(said) == ({"1": "matched", "2": "duplicate", "3": "conflict", "4": "matched"}, True)


def test_the_same_observed_again_at_another_time_is_news() -> None:
    said = [say("1", True, "a", 1, observed_ns=1), say("2", False, "b", 2), say("3", True, "a", 3, observed_ns=3)]
    assert outcome(said) == ({"1": "matched", "2": "conflict", "3": "matched"}, True)
    again = say("3", True, "a", 3, observed_ns=1)
    assert outcome([*said[:2], again]) == ({"1": "conflict", "2": "matched", "3": "duplicate"}, False)


def test_the_same_from_another_source_is_no_duplicate() -> None:
    assert outcome([say("1", True, "a"), say("2", True, "b", 2)]) == ({"1": "matched", "2": "matched"}, True)


def test_what_a_later_event_names_or_follows_through_its_link_is_superseded() -> None:
    assert outcome([say("1", True), say("2", False, "b", 2, supersedes="1")])[0] == {  # type: ignore[index]
        "1": "superseded",
        "2": "matched",
    }
    votes = [say("1", 1, "a", 1, link="x"), say("2", 5, "a", 3, link="x"), say("3", 2, "a", 2, link="x")]
    assert outcome(votes) == ({"1": "superseded", "3": "superseded", "2": "matched"}, 5)


def test_what_is_late_supersedes_nothing_and_an_event_does_not_supersede_itself() -> None:
    late = say("2", False, at=2 * DAY + 1, supersedes="1")
    assert outcome([say("1", True, supersedes="1"), late]) == ({"1": "matched", "2": "late"}, True)


def test_a_label_is_in_time_to_the_last_nanosecond_of_its_window() -> None:
    assert outcome([say("1", True, at=2 * DAY)]) == ({"1": "matched"}, True)
    assert outcome([say("1", True, at=2 * DAY + 1)]) == ({"1": "late"}, None)


def test_what_is_deleted_has_no_voice_and_brings_back_what_it_repeated_but_not_what_it_replaced() -> None:
    said = [say("1", True, at=1), say("2", True, at=2)]
    assert outcome(said, deleted=["1"]) == ({"1": "deleted", "2": "matched"}, True)
    said = [say("1", True, at=1), say("2", False, at=2, supersedes="1")]
    assert outcome(said, deleted=["2"]) == ({"1": "superseded", "2": "deleted"}, None)


@pytest.mark.parametrize(
    ("one", "other", "equal"), [(1, 1.0, True), (True, 1, False), ("1", 1, False), (0, False, False)]
)
def test_values_are_the_same_or_not(one: bool | int, other: bool | int, equal: bool) -> None:
    assert same(one, other) is equal


# --- any set of events ---


def oracle(said: Sequence[Statement], deleted: Sequence[str], rule: FeedbackRule) -> tuple[dict[str, str], object]:
    """The same rules as plain loops over all pairs."""
    states: dict[str, str] = {}
    inside = [s for s in said if s.received_ns <= rule.join_window_ns]

    def before(a: Statement, b: Statement) -> bool:
        return (a.received_ns, a.feedback_id) < (b.received_ns, b.feedback_id)

    def newer(a: Statement, b: Statement) -> bool:
        key = [(s.observed_ns or s.received_ns, s.received_ns, s.feedback_id) for s in (a, b)]
        return key[0] > key[1]

    for s in said:
        if s.feedback_id in deleted:
            states[s.feedback_id] = "deleted"
        elif s not in inside:
            states[s.feedback_id] = "late"
        elif any(o.supersedes == s.feedback_id and o is not s for o in inside) or any(
            o.link and o.link == s.link and before(s, o) for o in inside
        ):
            states[s.feedback_id] = "superseded"
    open_ = [s for s in said if s.feedback_id not in states]
    kept: list[Statement] = []
    while open_:
        first = next(s for s in open_ if not any(before(o, s) for o in open_))
        open_.remove(first)
        mine = [k for k in kept if k.source == first.source]
        last = next((k for k in mine if not any(before(k, o) for o in mine)), None)
        if last is not None and last.value == first.value and first.observed_ns in (0, last.observed_ns):
            states[first.feedback_id] = "duplicate"
        else:
            kept.append(first)
    words = [k for k in kept if not any(o.source == k.source and newer(o, k) for o in kept)]
    if not words:
        return states, None
    if rule.resolve == "majority":
        most = max(sum(o.value == w.value for o in words) for w in words)
        best = [w for w in words if sum(o.value == w.value for o in words) == most]
    elif rule.resolve == "source-precedence":
        listed = [w for source in rule.sources for w in words if w.source[1] == source]
        best = listed[:1] or words
        if listed:
            best = [w for w in listed if w.source[1] == listed[0].source[1]]
    else:
        best = words
    chosen = next(w for w in best if not any(newer(o, w) for o in best))
    for k in kept:
        states[k.feedback_id] = "matched" if k.value == chosen.value else "conflict"
    return states, chosen.feedback_id


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Statement], list[str]]:
    count = draw(st.integers(1, 9))
    names = [str(number) for number in range(count)]
    said = [
        Statement(
            name,
            draw(st.integers(0, 2)),
            ("SYSTEM", draw(st.sampled_from("abc"))),
            draw(st.sampled_from([0, 0, 1, 2])),
            draw(st.one_of(st.integers(1, 4), st.just(2 * DAY + 1))),
            draw(st.sampled_from(["", "", "", *names])),
            draw(st.sampled_from(["", "", "x", "y"])),
        )
        for name in names
    ]
    return said, draw(st.lists(st.sampled_from(names), max_size=2))


@settings(max_examples=250, deadline=None)
@given(conversations(), st.sampled_from([LATEST, PRECEDENCE, MAJORITY]), st.randoms(use_true_random=False))
def test_any_conversation_comes_to_what_the_oracle_says_in_any_order(
    conversation: tuple[list[Statement], list[str]], rule: FeedbackRule, shuffle: random.Random
) -> None:
    said, deleted = conversation
    expected = oracle(said, deleted, rule)
    for _ in range(3):
        states, label = settle(said, deleted, 0, rule)
        assert ({name: str(state) for name, state in states.items()}, label and label.statement.feedback_id) == expected
        assert states.keys() == {each.feedback_id for each in said}
        voices = [each for each in said if states[each.feedback_id] in (State.MATCHED, State.CONFLICT)]
        assert label is None or label.first_ns == min(each.received_ns for each in voices)
        shuffle.shuffle(said)
