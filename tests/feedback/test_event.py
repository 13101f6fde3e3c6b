"""Events: what is written is read, ids are UUIDs, and the same key is the same id."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback.event import Event, IdClock, Source, decode, encode, is_id, keyed_id

TEXT = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=30)


@given(
    st.builds(
        Event,
        feedback_id=st.uuids().map(str),
        op=st.sampled_from(["put", "delete"]),
        received_ns=st.integers(0, 2**62),
        model=TEXT,
        name=TEXT,
        kind=st.sampled_from(["expectation", "feedback"]),
        value=st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXT, st.floats(-1e9, 1e9)),
        prediction_id=TEXT,
        row=st.one_of(st.none(), st.integers(0, 10**6)),
        source=st.builds(Source, type=st.sampled_from(["HUMAN", "SYSTEM", "MODEL"]), id=TEXT),
        observed_at_ns=st.integers(0, 2**62),
        rationale=TEXT,
        link=TEXT,
        digest=TEXT,
    )
)
def test_what_is_written_is_read(event: Event) -> None:
    found = decode(encode(event))
    assert found == event
    assert type(found.value) is type(event.value)


def test_members_of_a_later_version_are_passed_over() -> None:
    assert decode(b'{"feedback_id":"a","received_ns":1,"mood":"good"}') == Event(feedback_id="a", received_ns=1)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"\xff", b'{"feedback_id":1,"received_ns":1}'])
def test_what_is_no_event_is_refused_in_words(payload: bytes) -> None:
    with pytest.raises(ValueError, match="a feedback event is not valid"):
        decode(payload)


def test_the_time_of_an_event_is_when_it_was_observed_else_received() -> None:
    assert Event(feedback_id="a", received_ns=5).time_ns == 5
    assert Event(feedback_id="a", received_ns=5, observed_at_ns=3).time_ns == 3


def test_new_ids_are_uuids_of_version_7_and_never_the_same() -> None:
    ids = [IdClock.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(
        is_id(each) and uuid.UUID(each).version == 7 and uuid.UUID(each).variant == uuid.RFC_4122 for each in ids
    )
    stamps = [each[:13] for each in ids]
    assert stamps == sorted(stamps)


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_the_same_parts_make_the_same_id(parts: list[str]) -> None:
    first = keyed_id(*parts)
    assert first == keyed_id(*parts)
    assert first != keyed_id(*parts, "")
    assert is_id(first)
    assert (uuid.UUID(first).version, uuid.UUID(first).variant) == (8, uuid.RFC_4122)


@pytest.mark.parametrize(
    "text", ["", "x", "0" * 36, "0190a5e2-0000-7000-8000-00000000000G", "0190A5E2-0000-7000-8000-0" * 2]
)
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_id(text)
