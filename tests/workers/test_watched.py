"""A session under watch: the same results, notes of what it runs, and rows that are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.session import Session
from gateway.types import Array, Contract
from gateway.workers.notes import Culprit, Notes, VersionKey
from gateway.workers.watched import PayloadBlocked, WatchedSession, row_digests

KEY = VersionKey("m", 1, "f")


class Doubling:
    """A session that doubles x, remembers what the notes say while it runs, and fails for rows of 13."""

    contract, computes_alone = Contract((), ()), True

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.seen: list[tuple[Culprit, ...]] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        self.seen.append(self._notes.culprits())
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen")
        return tuple(inputs["x"] * 2 for _ in outputs)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def watched(notes: Notes, *, batched: bool = True) -> tuple[WatchedSession, Doubling]:
    inner = Doubling(notes)
    return WatchedSession(cast(Session, inner), notes.claim(KEY), batched=batched), inner


def column(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)[:, None]}


def test_a_run_is_noted_while_it_lasts_and_not_after_it_however_it_ends(notes: Notes) -> None:
    session, inner = watched(notes)
    assert session.run(column(1, 2), ["y"])[0].tolist() == [[2], [4]]
    assert inner.seen == [(Culprit(KEY, loading=False),)]
    assert notes.culprits() == ()
    with pytest.raises(ValueError, match="thirteen"):
        session.run(column(13), ["y"])
    assert notes.culprits() == ()


def test_a_suspect_runs_row_by_row_with_the_same_result_and_each_row_is_noted_alone(notes: Notes) -> None:
    session, inner = watched(notes)
    session.suspect = True
    rows = column(1, 2, 3)
    assert [array.tolist() for array in session.run(rows, ["y", "z"])] == [[[2], [4], [6]]] * 2
    assert [seen[0].digests for seen in inner.seen] == [(digest,) for digest in row_digests(rows)]
    with pytest.raises(ValueError, match="thirteen"):
        session.run(column(1, 13), ["y"])
    assert notes.culprits() == ()


def test_a_suspect_whose_rows_belong_together_runs_whole(notes: Notes) -> None:
    session, inner = watched(notes, batched=False)
    session.suspect = True
    rows = column(1, 2, 3)
    session.run(rows, ["y"])
    assert [seen[0].digests for seen in inner.seen] == [tuple(row_digests(rows))]


def test_a_refused_row_never_reaches_the_session_and_others_do(notes: Notes) -> None:
    session, inner = watched(notes)
    session.suspect, session.refused = True, frozenset(row_digests(column(7)))
    for rows in (column(7), column(1, 7)):
        with pytest.raises(PayloadBlocked):
            session.run(rows, ["y"])
    assert inner.seen == []
    assert session.run(column(1), ["y"])[0].tolist() == [[2]]


@given(st.lists(st.lists(st.text(max_size=4), min_size=2, max_size=2), min_size=1, max_size=6), st.data())
def test_rows_have_one_digest_each_that_depends_on_their_values_alone(rows: list[list[str]], data: Any) -> None:
    floats = data.draw(st.lists(st.floats(width=32), min_size=len(rows), max_size=len(rows)))
    texts = np.array(rows, object).reshape(len(rows), 2)
    numbers = np.array(floats, np.float32)
    digests = row_digests({"t": texts, "n": numbers})
    assert len(digests) == len(rows)
    for index, digest in enumerate(digests):
        # New objects of the same value: an address must not matter.
        again = np.array([["".join(list(text)) for text in rows[index]]], object)
        assert row_digests({"t": again, "n": numbers[index : index + 1].copy()}) == [digest]
        for other in range(index):
            same = rows[other] == rows[index] and numbers[other].tobytes() == numbers[index].tobytes()
            assert (digests[other] == digest) == same


def test_where_the_inputs_share_no_axis_there_is_one_digest_for_all() -> None:
    one = {"x": np.zeros((2, 3)), "scale": np.array(1.0)}
    assert len(row_digests(one)) == 1
    assert row_digests(one) != row_digests({**one, "scale": np.array(2.0)})
    assert len(row_digests({"x": np.zeros((2, 3)), "y": np.zeros((4, 3))})) == 1


def test_texts_that_are_cut_elsewhere_are_different_rows() -> None:
    def digest(*texts: str) -> list[int]:
        return row_digests({"t": np.array([texts], object)})

    assert digest("ab", "c") != digest("a", "bc")
    assert row_digests({"t": np.array(["ab"], object)}) != row_digests({"t": np.array(["ba"], object)})
