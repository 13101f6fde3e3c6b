"""Reviews: predictions that people look at, taken by one reviewer at a time, and how far the reviewers agree.

An answer is a feedback event like any other: it goes to the log first, and the fold that takes it in marks the review.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from gateway.errors import Conflict, NotFound
from gateway.feedback.event import keyed_id
from gateway.ledger.agreement import Agreement, fleiss, pairwise
from gateway.ledger.choosing import Chosen, Strategy
from gateway.ledger.dialect import upsert
from gateway.ledger.labels import slices
from gateway.ledger.tables import claims, reviews

ROWS = 1000


class Claim(NamedTuple):
    """A review that is a reviewer's for a while. `ticket` is what its answer must bring."""

    review_id: str
    ticket: str
    lease_ns: int
    model: str
    version: int
    name: str
    prediction_id: str
    part: int


class Due(NamedTuple):
    """What the answer to a review is to say, beside its value. `key` is its idempotency key."""

    model: str
    name: str
    prediction_id: str
    part: int
    reviewer: str
    key: str


def add(
    connection: Connection, model: str, name: str, why: Strategy, chosen: Sequence[Chosen], reviewers: int, now_ns: int
) -> int:
    """Put predictions into the queue; returns how many were not in it yet."""
    rows = [
        {
            "review_id": keyed_id("review", each.prediction_id, str(each.part), name),
            "model": model,
            "version": each.version,
            "name": name,
            "prediction_id": each.prediction_id,
            "part": each.part,
            "why": why,
            "score": each.score,
            "reviewers": reviewers,
            "answers": 0,
            "created_ns": now_ns,
            "state": "open",
        }
        for each in chosen
    ]
    with connection.begin():
        known: set[str] = set()
        for at in range(0, len(rows), 400):
            some = [row["review_id"] for row in rows[at : at + 400]]
            known |= set(connection.execute(select(reviews.c.review_id).where(reviews.c.review_id.in_(some))).scalars())
        fresh = [row for row in rows if row["review_id"] not in known]
        upsert(connection, reviews, fresh)
    return len(fresh)


def claim(connection: Connection, reviewer: str, model: str, name: str, lease_ns: int, now_ns: int) -> Claim | None:
    """Take the next review for a reviewer, None where none is left; one that is theirs already is given again.

    A review is open to as many reviewers as answers are missing; a lease that has run out counts no more.
    """
    mine = select(claims.c.review_id).where(claims.c.reviewer == reviewer)
    answered = mine.where(claims.c.value.is_not(None))
    others = (
        select(func.count())
        .where(
            claims.c.review_id == reviews.c.review_id,
            claims.c.reviewer != reviewer,
            (claims.c.lease_ns > now_ns) | claims.c.value.is_not(None),
        )
        .scalar_subquery()
    )
    wanted = select(reviews).where(reviews.c.state == "open", reviews.c.review_id.not_in(answered))
    wanted = wanted.where(others < reviews.c.reviewers)
    if model:
        wanted = wanted.where(reviews.c.model == model)
    if name:
        wanted = wanted.where(reviews.c.name == name)
    held = mine.where(claims.c.value.is_(None), claims.c.lease_ns > now_ns)
    in_turn = wanted.order_by(reviews.c.review_id.not_in(held), reviews.c.score, reviews.c.review_id).limit(1)
    with connection.begin():
        row = connection.execute(in_turn).first()
        if row is None:
            return None
        ticket = secrets.token_hex(16)
        taken = {"review_id": row.review_id, "reviewer": reviewer, "lease_ns": now_ns + lease_ns}
        upsert(connection, claims, [taken | {"key": _key(ticket), "value": None}])
    subject = (row.model, row.version, row.name, row.prediction_id, row.part)
    return Claim(row.review_id, ticket, now_ns + lease_ns, *subject)


def due(connection: Connection, review_id: str, ticket: str, now_ns: int) -> Due:
    """What an answer with this ticket is to say. Raises NotFound, Conflict."""
    joined = select(claims, reviews).join(reviews, reviews.c.review_id == claims.c.review_id)
    mine = joined.where(claims.c.review_id == review_id, claims.c.key == _key(ticket))
    with connection.begin():
        row = connection.execute(mine).first()
    if row is None:
        raise NotFound("there is no such claim; it may have been given again")
    if row.value is not None:
        raise Conflict("this claim has been answered")
    if row.state != "open" and row.lease_ns <= now_ns:
        raise Conflict("the lease has run out, and others have answered")
    return Due(row.model, row.name, row.prediction_id, row.part, row.reviewer, _key(ticket))


def listed(connection: Connection, model: str, name: str, state: str, limit: int) -> list[dict[str, Any]]:
    """Reviews in the order in which they are given out."""
    statement = select(reviews).order_by(reviews.c.score, reviews.c.review_id).limit(min(limit, ROWS))
    for column, value in ((reviews.c.model, model), (reviews.c.name, name), (reviews.c.state, state)):
        if value:
            statement = statement.where(column == value)
    with connection.begin():
        return [dict(row) for row in connection.execute(statement).mappings()]


def agreement(connection: Connection, model: str, name: str) -> tuple[Agreement, dict[tuple[str, str], Agreement]]:
    """How far reviewers agree about a name: Fleiss' kappa of all, and Cohen's of every two."""
    mine = (reviews.c.model == model) & (reviews.c.name == name) & claims.c.value.is_not(None)
    statement = select(claims.c.review_id, claims.c.reviewer, claims.c.value)
    answers: dict[str, dict[str, Hashable]] = {}
    with connection.begin():
        for review_id, reviewer, value in connection.execute(statement.join(reviews, _same()).where(mine)):
            answers.setdefault(review_id, {})[reviewer] = str(msgspec.json.decode(value))
    return fleiss([list(given.values()) for given in answers.values()]), pairwise(answers)


def _same() -> Any:
    return reviews.c.review_id == claims.c.review_id


def _key(ticket: str) -> str:
    return f"review/{ticket}"


def take_answers(connection: Connection, puts: Sequence[Mapping[str, Any]]) -> None:
    """Take note of the answers to reviews: their idempotency keys were settled when the reviews were claimed."""
    if connection.execute(select(claims.c.review_id).limit(1)).first() is None:
        return
    values = {row["idempotency_key"]: row["value"] for row in puts if row["idempotency_key"]}
    for some in slices(values):
        statement = select(claims).where(claims.c.key.in_(some), claims.c.value.is_(None))
        for claim in connection.execute(statement).all():
            mine = (claims.c.review_id == claim.review_id) & (claims.c.reviewer == claim.reviewer)
            connection.execute(claims.update().where(mine).values(value=values[claim.key]))
            review = reviews.c.review_id == claim.review_id
            connection.execute(reviews.update().where(review).values(answers=reviews.c.answers + 1))
            enough = review & (reviews.c.answers >= reviews.c.reviewers)
            connection.execute(reviews.update().where(enough).values(state="done"))
