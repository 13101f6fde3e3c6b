"""The review queue, on the admin port: predictions for people to check, one claim at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import HeadgateError, InvalidRequest, NotReady
from gateway.feedback.intake import time_of
from gateway.feedback.rules import Value
from gateway.http import predictions
from gateway.http.messages import json_response, read_document
from gateway.http.predictions import utc
from gateway.journal import ids
from gateway.journal.reader import INDEX_FOLDER, Damaged, Segment, segments
from gateway.ledger import reviews
from gateway.ledger.agreement import Agreement
from gateway.ledger.choosing import Chosen, choose
from gateway.ledger.service import Service, Writer
from gateway.state import gateway_of

log = logging.getLogger("headgate.ledger")

MAX_COUNT = 10_000
MAX_BYTES = 64 << 10
LEASE_S = 600

Name = Annotated[str, Meta(min_length=1, max_length=128)]

T = TypeVar("T")


class Wish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/reviews``: how many predictions of a model, chosen how, are to be checked for a name.

    output: the one that holds probabilities, for low-confidence. reviewers: answers that each of them wants.
    """

    model: Name
    name: Name
    strategy: Literal["sampled", "low-confidence"] = "sampled"
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 100
    reviewers: Annotated[int, Meta(ge=1, le=100)] = 1
    version: Annotated[int, Meta(ge=0)] = 0
    output: str = ""
    since: str = ""


class ClaimWish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/reviews:claim``. Without a model or a name any will do."""

    reviewer: Name
    model: str = ""
    name: str = ""
    lease_s: Annotated[int, Meta(ge=1, le=86_400)] = LEASE_S


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/reviews/{review_id}:answer``; `claim` is what the claim was answered with."""

    claim: Name
    value: Value
    rationale: str = ""


class Desk:
    """The endpoints of the queue; `service` is the one that writes the ledger."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> tuple[Route, ...]:
        """What the admin port offers."""
        return (
            Route("/v1/reviews", self.show),
            Route("/v1/reviews", self.fill, methods=["POST"]),
            Route("/v1/reviews:claim", self.claim, methods=["POST"]),
            Route("/v1/reviews/{review_id}:answer", self.answer, methods=["POST"]),
        )

    async def _do(self, job: Callable[[Writer], T]) -> T:
        """Have the thread that writes do something. Raises NotReady while it cannot."""
        try:
            return await asyncio.wrap_future(self._service.call(job))
        except SQLAlchemyError as error:
            log.error("review queue failed", exc_info=error, extra={"event": "reviews-failed"})
            raise NotReady("the review queue cannot be used now") from None

    async def fill(self, request: Request) -> Response:
        """``POST /v1/reviews``: put predictions into the queue. 422: the model does not declare the name."""
        wish = await _read(request, Wish)
        since_ns = time_of(wish.since, "since") if wish.since else 0
        gateway = gateway_of(request)
        await gateway.feedback.check_declared(wish.model, wish.name)
        chosen, scanned = await asyncio.to_thread(_choose, gateway.settings.data, wish, since_ns)
        added = await self._do(
            lambda writer: reviews.add(
                writer.connection, wish.model, wish.name, wish.strategy, chosen, wish.reviewers, writer.clock.now_ns()
            ),
        )
        return json_response({"added": added, "chosen": len(chosen), "scanned": scanned}, 201)

    async def show(self, request: Request) -> Response:
        """``GET /v1/reviews?model=&name=&state=&limit=``: the queue; of one model and name also the agreement."""
        query = request.query_params
        model, name, state = (query.get(key, "") for key in ("model", "name", "state"))
        limit = query.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= reviews.ROWS:
            raise InvalidRequest(f"limit must be a whole number from 1 to {reviews.ROWS}", field="limit")
        if state not in ("", "open", "done"):
            raise InvalidRequest("state must be open or done", field="state")
        rows = await self._do(lambda writer: reviews.listed(writer.connection, model, name, state, int(limit[:9])))
        document: dict[str, Any] = {"reviews": [_review(row) for row in rows]}
        if model and name:
            whole, pairs = await self._do(lambda writer: reviews.agreement(writer.connection, model, name))
            document["agreement"] = {"fleiss": _agreement(whole), "cohen": []}
            document["agreement"]["cohen"] = [
                {"reviewers": list(names), **_agreement(each)} for names, each in pairs.items()
            ]
        return json_response(document)

    async def claim(self, request: Request) -> Response:
        """``POST /v1/reviews:claim``: the next review for a reviewer, with the record; 204 where none is left.

        What others answered is not shown: it would decide the answer.
        """
        wish = await _read(request, ClaimWish)
        data = gateway_of(request).settings.data
        lease_ns = wish.lease_s * 1_000_000_000
        taken = await self._do(
            lambda writer: reviews.claim(
                writer.connection, wish.reviewer, wish.model, wish.name, lease_ns, writer.clock.now_ns()
            ),
        )
        if taken is None:
            return Response(status_code=204)
        document: dict[str, Any] = {
            "review_id": taken.review_id,
            "claim": taken.ticket,
            "lease_until": utc(taken.lease_ns),
            "model": taken.model,
            "name": taken.name,
            "row": taken.part,
        }
        name = ids.parse(taken.prediction_id)
        assert name is not None
        try:
            document["prediction"] = await asyncio.to_thread(predictions.record, name._replace(part=taken.part), data)
        except HeadgateError as error:
            document |= {"prediction": {"prediction_id": taken.prediction_id}, "note": error.message}
        return json_response(document)

    async def answer(self, request: Request) -> Response:
        """``POST /v1/reviews/{review_id}:answer``: kept as a feedback event of its reviewer. 409: too late."""
        given = await _read(request, Answer)
        review_id = request.path_params["review_id"]
        due = await self._do(
            lambda writer: reviews.due(writer.connection, review_id, given.claim, writer.clock.now_ns())
        )
        post = {
            "model": due.model,
            "name": due.name,
            "value": given.value,
            "prediction_id": due.prediction_id,
            "row": due.part,
            "source": {"type": "HUMAN", "id": due.reviewer},
            "rationale": given.rationale,
        }
        outcome = await gateway_of(request).feedback.put(msgspec.json.encode(post), due.key)
        if isinstance(outcome, HeadgateError):
            raise outcome
        # The event is on disk: the review is marked by the fold, now or after whatever may happen now.
        with suppress(NotReady):
            await self._do(Writer.step)
        return json_response({"feedback_id": outcome.feedback_id, "status": outcome.status}, 201)


def _choose(data: Path, wish: Wish, since_ns: int) -> tuple[list[Chosen], int]:
    folders = [data / "journal"]
    if wish.strategy == "sampled":
        # What is left of archived segments is enough for a fair sample; it has no outputs.
        folders.append(data / "archive" / INDEX_FOLDER)
    mine = _segments(folders, wish.model)
    return choose(mine, wish.strategy, wish.count, output=wish.output, version=wish.version, since_ns=since_ns)


def _segments(folders: Iterable[Path], model: str) -> Iterator[Segment]:
    """The readable segments of a model, the newest first; of one that is in several folders that of the first."""
    found = {path.name: path for folder in reversed([*folders]) for path in segments(folder)}
    for _, path in sorted(found.items(), reverse=True):
        try:
            segment = Segment.open(path)
        except (Damaged, OSError):
            continue
        if segment.spec.model == model:
            yield segment


async def _read(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.convert(await read_document(request, MAX_BYTES), kind)
    except msgspec.ValidationError as error:
        _, found, path = str(error).rpartition("`$.")
        raise InvalidRequest(f"the body is not valid: {error}", field=path.rstrip("`") if found else None) from None


def _review(row: dict[str, Any]) -> dict[str, Any]:
    shown = ("review_id", "model", "name", "prediction_id", "why", "score", "reviewers", "answers", "state")
    found = {name: row[name] for name in shown}
    return found | {"version": str(row["version"]), "row": row["part"], "created_at": utc(row["created_ns"])}


def _agreement(found: Agreement) -> dict[str, Any]:
    return {"kappa": found.kappa if found.kappa is None else round(found.kappa, 6), "items": found.items}
