"""The review queue: who gets what, what an answer becomes, and how reviewers agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import app as application
from gateway import state
from gateway.errors import InvalidRequest
from gateway.http.reviews import Desk
from gateway.journal import archive
from gateway.journal.reader import Segment, segments
from gateway.ledger.agreement import cohen, fleiss, pairwise
from gateway.ledger.choosing import choose
from gateway.ledger.service import Writer
from gateway.settings import Settings
from gateway.telemetry.store import CounterStore
from tests.inference.fakes import table_of
from tests.ledger.rig import DAY, START, Rig, open_segment, write

MODEL_TOML = """
[feedback.late]
type = "boolean"
"""


class AtOnce:
    """A service that does each job when it is asked to."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def call(self, job: Callable[[Any], Any]) -> Future[Any]:
        """See Service."""
        future: Future[Any] = Future()
        try:
            future.set_result(job(self._rig.writer))
        except Exception as error:
            future.set_exception(error)
        return future


class Queue:
    """The admin port over a rig."""

    def __init__(self, rig: Rig, models: Path) -> None:
        # Feedback is received at the time of day.
        rig.clock.time_ns = time.time_ns()
        (models / "flights").mkdir(parents=True)
        (models / "flights" / "model.toml").write_text(MODEL_TOML)
        counters = CounterStore()
        self.gateway = state.assemble(
            *(Settings(models=models, data=rig.data), table_of(), cast(Any, None), lambda: True),
            *(counters, counters.snapshot),
        )
        desk = Desk(cast(Any, AtOnce(rig)))
        self.app = application.build(self.gateway, admin=True, more=desk.routes())

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        async def whole() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, json=body)

        return asyncio.run(whole())

    def fill(self, **wish: Any) -> Any:
        reply = self.ask("POST", "/v1/reviews", {"model": "flights", "name": "late"} | wish)
        assert reply.status_code == 201, reply.text
        return reply.json()

    def claim(self, reviewer: str, **wish: Any) -> Any:
        reply = self.ask("POST", "/v1/reviews:claim", {"reviewer": reviewer} | wish)
        assert reply.status_code in (200, 204), reply.text
        return reply.json() if reply.status_code == 200 else None

    def answer(self, claim: Any, value: Any) -> httpx.Response:
        return self.ask("POST", f"/v1/reviews/{claim['review_id']}:answer", {"claim": claim["claim"], "value": value})

    def shown(self) -> Any:
        return self.ask("GET", "/v1/reviews?model=flights&name=late").json()


@pytest.fixture
def queue(rig: Rig, tmp_path: Path) -> Iterator[Queue]:
    made = Queue(rig, tmp_path / "models")
    yield made
    made.gateway.feedback.close()


def predict(rig: Rig, *probabilities: float, rows: int = 1) -> list[str]:
    segment = open_segment(rig.data, capacity=max(10, len(probabilities)))
    written = [
        write(segment, rig.clock.time_ns - DAY, rows, probability=probabilities[at : at + rows])
        for at in range(0, len(probabilities), rows)
    ]
    rig.step()
    return written


def test_the_predictions_that_the_model_was_least_sure_of_come_first(rig: Rig, queue: Queue) -> None:
    made = predict(rig, 0.9, 0.45, 0.02, 0.6)
    assert queue.fill(strategy="low-confidence", count=3) == {"added": 3, "chosen": 3, "scanned": 4}
    claims = [queue.claim(f"reviewer {number}") for number in range(4)]
    assert [claim and claim["prediction"]["prediction_id"] for claim in claims] == [made[1], made[3], made[0], None]
    assert claims[0]["prediction"]["rows"][0]["outputs"]["p"] == [pytest.approx(0.45), pytest.approx(0.55)]
    assert queue.fill(strategy="low-confidence", count=3)["added"] == 0


def test_an_answer_is_a_feedback_event_of_its_reviewer_and_ends_the_review(rig: Rig, queue: Queue) -> None:
    made = predict(rig, 0.5, 0.5, 0.5, rows=3)
    queue.fill(count=10)
    claim = queue.claim("ana")
    reply = queue.answer(claim, True)
    assert (reply.status_code, reply.json()["status"]) == (201, "matched")
    (label,) = rig.ledger.prediction(made[0])["labels"]
    assert (label["part"], label["value"], label["source"]) == (claim["row"], True, ("HUMAN", "ana"))
    assert sorted(row["state"] for row in queue.shown()["reviews"]) == ["done", "open", "open"]
    again = queue.answer(claim, False)
    assert (again.status_code, again.json()["error"]) == (409, "this claim has been answered")
    assert {queue.claim("ana")["review_id"], queue.claim("bob")["review_id"]}.isdisjoint({claim["review_id"]})


def test_a_review_that_wants_two_answers_goes_to_two_people_and_neither_sees_the_other(rig: Rig, queue: Queue) -> None:
    predict(rig, 0.5)
    queue.fill(reviewers=2)
    ana = queue.claim("ana")
    assert queue.claim("ana")["review_id"] == ana["review_id"]
    ana = queue.claim("ana")
    assert queue.answer(ana, True).status_code == 201
    assert queue.claim("ana") is None
    bob = queue.claim("bob")
    assert bob["review_id"] == ana["review_id"]
    assert "feedback" not in bob["prediction"]
    assert "labels" not in bob["prediction"]
    assert queue.claim("eve") is None
    assert queue.answer(bob, False).status_code == 201
    shown = queue.shown()
    assert [(row["state"], row["answers"]) for row in shown["reviews"]] == [("done", 2)]
    assert shown["agreement"] == {
        "fleiss": {"kappa": -1.0, "items": 1},
        "cohen": [{"reviewers": ["ana", "bob"], "kappa": 0.0, "items": 1}],
    }


def test_a_claim_that_ran_out_goes_to_somebody_else(rig: Rig, queue: Queue) -> None:
    predict(rig, 0.5)
    queue.fill()
    slow = queue.claim("slow", lease_s=60)
    assert queue.claim("quick") is None
    rig.clock.sleep(61)
    quick = queue.claim("quick")
    assert quick["review_id"] == slow["review_id"]
    assert queue.answer(quick, True).status_code == 201
    late = queue.answer(slow, False)
    assert (late.status_code, late.json()["error"]) == (409, "the lease has run out, and others have answered")


def test_a_claim_that_was_given_again_has_another_ticket(rig: Rig, queue: Queue) -> None:
    predict(rig, 0.5)
    queue.fill()
    first, second = queue.claim("ana"), queue.claim("ana")
    assert first["claim"] != second["claim"]
    assert queue.answer(first, True).status_code == 404
    assert queue.answer(second, True).status_code == 201


def test_an_answer_that_the_declaration_does_not_allow_is_refused_and_the_claim_stays(rig: Rig, queue: Queue) -> None:
    predict(rig, 0.5)
    queue.fill()
    claim = queue.claim("ana")
    reply = queue.answer(claim, "perhaps")
    assert reply.status_code == 422
    assert "a boolean, true or false" in reply.json()["error"]
    assert queue.answer(claim, False).status_code == 201


def test_an_answer_that_was_kept_counts_although_nobody_came_to_mark_the_review(
    rig: Rig, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A reviewer answers; the process ends between the log and the ledger. 2. Another one folds the log.
    Result: the review is done.
    """
    predict(rig, 0.5)
    queue.fill()
    claim = queue.claim("ana")
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "step", lambda self: 0)
        assert queue.answer(claim, True).status_code == 201
    assert queue.shown()["reviews"][0]["state"] == "open"
    rig.reopen()
    rig.step()
    assert queue.shown()["reviews"][0]["state"] == "done"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/reviews", {"name": "late"}, None),
        ("POST", "/v1/reviews", {"model": "flights", "name": "late", "count": 0}, "count"),
        ("POST", "/v1/reviews", {"model": "flights", "name": "late", "strategy": "all"}, "strategy"),
        ("POST", "/v1/reviews", {"model": "flights", "name": "late", "speed": 1}, None),
        ("POST", "/v1/reviews:claim", {"reviewer": ""}, "reviewer"),
        ("GET", "/v1/reviews?limit=-1", None, "limit"),
        ("GET", "/v1/reviews?state=lost", None, "state"),
    ],
)
def test_a_wrong_wish_is_told_what_is_wrong(queue: Queue, method: str, path: str, body: Any, field: str | None) -> None:
    reply = queue.ask(method, path, body)
    assert (reply.status_code, reply.json().get("field")) == (400, field), reply.text


def test_a_name_that_the_model_does_not_declare_is_refused_with_those_that_it_does(rig: Rig, queue: Queue) -> None:
    predict(rig, 0.5)
    reply = queue.ask("POST", "/v1/reviews", {"model": "flights", "name": "lat"})
    assert (reply.status_code, reply.json()["field"]) == (422, "name")
    assert reply.json()["error"] == "model 'flights' declares no feedback named 'lat'; it declares 'late'"
    assert queue.ask("POST", "/v1/reviews", {"model": "nobody", "name": "late"}).status_code == 422
    assert queue.shown()["reviews"] == []


def test_a_sample_is_also_of_predictions_that_are_archived(rig: Rig, queue: Queue) -> None:
    segment = open_segment(rig.data, capacity=4)
    archived = [write(segment, rig.clock.time_ns - DAY, probability=[0.5], city=["Rom"]) for _ in range(3)]
    segment.finish()
    archive.write(Segment.open(segment.path), rig.data / "archive")
    assert queue.fill(count=10)["scanned"] == 3
    segment.path.unlink()
    segment.path.with_suffix(".side").unlink()
    present = predict(rig, 0.5)
    assert queue.fill(count=10) == {"added": 1, "chosen": 4, "scanned": 4}
    assert queue.fill(strategy="low-confidence")["scanned"] == 1
    claims = [queue.claim(f"reviewer {number}") for number in range(4)]
    assert {claim["prediction"]["prediction_id"] for claim in claims} == {*archived, *present}
    assert sorted(claim["prediction"]["kept_in"] for claim in claims) == ["archive"] * 3 + ["segment"]


# --- choosing ---


def opened(rig: Rig) -> list[Segment]:
    return [Segment.open(path) for path in reversed(segments(rig.data / "journal"))]


def test_a_sample_is_fair_and_always_the_same(rig: Rig) -> None:
    for _ in range(4):
        segment = open_segment(rig.data, capacity=500)
        for _ in range(500):
            write(segment, START)
    chosen, scanned = choose(opened(rig), "sampled", 400)
    assert scanned == 2000
    assert choose(list(reversed(opened(rig))), "sampled", 400) == (chosen, 2000)
    assert len({each.prediction_id for each in chosen}) == 400
    # 100 of each segment are expected with a standard deviation of 8; a fifth of all scores is below 0.2.
    counts = np.unique([each.prediction_id[:28] for each in chosen], return_counts=True)[1]
    assert all(65 < count < 135 for count in counts)
    assert 0.16 < max(each.score for each in chosen) < 0.24


def test_only_answered_rows_of_the_wanted_version_and_time_are_chosen(rig: Rig) -> None:
    segment = open_segment(rig.data, version=2)
    write(segment, START - 2)
    write(segment, START, status=500)
    wanted = write(segment, START, rows=2)
    write(open_segment(rig.data, version=1), START)
    chosen, scanned = choose(opened(rig), "sampled", 10, version=2, since_ns=START)
    assert scanned == 2
    assert {(each.prediction_id, each.part) for each in chosen} == {(wanted, 0), (wanted, 1)}


def test_outputs_that_are_no_probabilities_tell_no_confidence(rig: Rig) -> None:
    segment = open_segment(rig.data)
    write(segment, START, probability=[3.5])
    with pytest.raises(InvalidRequest, match="no output is kept as probabilities"):
        choose(opened(rig), "low-confidence", 10)
    with pytest.raises(InvalidRequest, match="output 'q' is kept"):
        choose(opened(rig), "low-confidence", 10, output="q")


def test_what_is_no_number_is_looked_at_first(rig: Rig) -> None:
    made = predict(rig, 0.9, float("nan"), 0.5)
    chosen, _ = choose(opened(rig), "low-confidence", 3)
    assert [each.prediction_id for each in chosen] == [made[1], made[2], made[0]]


# --- agreement ---


def test_cohens_kappa_of_fifty_grants_is_that_of_the_textbooks() -> None:
    """Two readers say yes to 20 grants and no to 15; 5 and 10 divide them: kappa is 0.4."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen(pairs).kappa == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_cohens_kappa_is_what_the_table_of_both_reviewers_gives(pairs: list[tuple[int, int]]) -> None:
    found = cohen(pairs)
    assert found.items == len(pairs)
    table = np.zeros((4, 4))
    np.add.at(table, tuple(np.array(pairs).T), 1)
    by_chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    off = 1 - np.eye(4)
    if not (off * by_chance).any():
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(1 - (off * table).sum() / (off * by_chance).sum(), abs=1e-9)


def test_fleiss_kappa_is_that_of_his_table() -> None:
    """30 patients, six psychiatrists each, five diagnoses: the table of his paper gives 0.430."""
    table = """
    0 0 0 6 0/0 3 0 0 3/0 1 4 0 1/0 0 0 0 6/0 3 0 3 0/2 0 4 0 0/0 0 4 0 2/2 0 3 1 0/2 0 0 4 0/0 0 0 0 6
    1 0 0 5 0/1 1 0 4 0/0 3 3 0 0/1 0 0 5 0/0 2 0 3 1/0 0 5 0 1/3 0 0 1 2/5 1 0 0 0/0 2 0 4 0/1 0 2 0 3
    0 0 0 0 6/0 1 0 5 0/0 2 0 1 3/2 0 0 4 0/1 0 0 4 1/0 5 0 1 0/4 0 0 0 2/0 2 0 4 0/1 0 5 0 0/0 0 0 0 6
    """
    rows = [
        [int(count) for count in row.split()] for line in table.split("\n") for row in line.split("/") if row.strip()
    ]
    items = [[kind for kind, count in enumerate(row) for _ in range(count)] for row in rows]
    assert len(items) == 30
    found = fleiss(items)
    assert found.kappa == pytest.approx(0.430, abs=0.0005)
    assert found.items == 30


@given(st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=5), max_size=30))
def test_fleiss_kappa_is_what_counting_pairs_gives(items: list[list[int]]) -> None:
    shared = [answers for answers in items if len(answers) > 1]
    found = fleiss(items)
    assert found.items == len(shared)
    if not shared or len({value for answers in shared for value in answers}) == 1:
        assert found.kappa is None
        return
    shares = []
    for answers in shared:
        pairs = [one == other for i, one in enumerate(answers) for other in answers[i + 1 :]]
        shares.append(sum(pairs) / len(pairs))
    every = [value for answers in shared for value in answers]
    chance = sum((every.count(value) / len(every)) ** 2 for value in set(every))
    assert found.kappa == pytest.approx((np.mean(shares) - chance) / (1 - chance), abs=1e-9)


def test_every_two_reviewers_are_compared_on_what_both_answered() -> None:
    answers = {"1": {"ana": 1, "bob": 1, "eve": 0}, "2": {"bob": 0, "ana": 0}, "3": {"eve": 1}}
    found = pairwise(answers)
    assert {names: each.items for names, each in found.items()} == {
        ("ana", "bob"): 2,
        ("ana", "eve"): 1,
        ("bob", "eve"): 1,
    }
    assert found["ana", "bob"].kappa == 1
