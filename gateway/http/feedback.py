"""Feedback over HTTP: events, batches, tombstones, links, and the page behind a link."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import HeadgateError, InvalidRequest, NotReady, PayloadTooLarge, ServerError
from gateway.feedback import intake, page
from gateway.feedback.commit import Answer
from gateway.feedback.links import BadLink, ExpiredLink, Link
from gateway.feedback.rules import FeedbackRule
from gateway.feedback.service import LinkWish
from gateway.http.messages import JSON, json_response, read_body, read_document, read_raw, request_id, single_header
from gateway.state import gateway_of

log = logging.getLogger("headgate.feedback")

MAX_FORM_BYTES = 64 << 10
REPLAYED = "idempotency-replayed"


async def put(request: Request) -> Response:
    """``POST /v1/feedback``: 201 on disk, 202 on disk and its prediction not found yet, 200 was there already."""
    gateway = gateway_of(request)
    key = single_header(request, "idempotency-key") or ""
    body = await read_body(request, gateway.settings.max_feedback_bytes)
    outcome = await gateway.feedback.put(body, key)
    if isinstance(outcome, HeadgateError):
        raise outcome
    document = f'{{"feedback_id":"{outcome.feedback_id}","status":"{outcome.status}"}}'
    if outcome.replayed:
        return Response(document, 200, {REPLAYED: "true"}, media_type=JSON)
    return Response(document, 202 if outcome.status == "pending" else 201, media_type=JSON)


async def put_many(request: Request) -> Response:
    """``POST /v1/feedback:batch``: one event for each line, each taken or refused by itself.

    200 if any was taken, else the status of the first error; `results` has every line that is not blank.
    """
    gateway = gateway_of(request)
    key = single_header(request, "idempotency-key") or ""
    body = await read_body(request, gateway.settings.max_feedback_bytes)
    numbered = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not numbered:
        raise InvalidRequest("the body has no line; it must have one JSON object on each", field="body")
    outcomes = await gateway.feedback.put_many(numbered, key)
    errors = [outcome for outcome in outcomes if isinstance(outcome, HeadgateError)]
    for defect in (error for error in errors if isinstance(error, ServerError)):
        facts = {"event": "internal-error", "request_id": request_id(request)}
        log.error("internal error", exc_info=defect.__cause__, extra=facts)
    document: dict[str, Any] = {"taken": len(outcomes) - len(errors), "refused": len(errors)}
    document["results"] = [_line(number, outcome) for (number, _), outcome in zip(numbered, outcomes, strict=True)]
    if len(errors) < len(outcomes):
        return json_response(document)
    first = errors[0]
    said = f"none of the {len(errors)} lines was taken; line {numbered[0][0]}: {first.message}"
    return json_response({"error": said, "code": first.code, **document}, first.status, first.headers)


async def delete(request: Request) -> Response:
    """``DELETE /v1/feedback/{feedback_id}``: the event counts no more, and is kept."""
    outcome = await gateway_of(request).feedback.delete(request.path_params["feedback_id"])
    if isinstance(outcome, HeadgateError):
        raise outcome
    return json_response({"feedback_id": outcome.event.supersedes, "status": outcome.status})


async def make_link(request: Request) -> Response:
    """``POST /v1/feedback-links``: a URL under which one person can answer one question."""
    gateway = gateway_of(request)
    document = await read_document(request, MAX_FORM_BYTES)
    wish = intake.convert(document, LinkWish, "wish for a link")
    try:
        token, link = await gateway.feedback.make_link(wish)
    except (OSError, ValueError) as error:
        raise _unusable(error) from None
    base = gateway.settings.public_url or f"{request.url.scheme}://{request.url.netloc}"
    expires = datetime.fromtimestamp(link.expires_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json_response({"url": f"{base}/f/{token}", "link_id": link.id, "expires_at": expires}, 201)


async def ask(request: Request) -> Response:
    """``GET /f/{token}``: the question. Changes nothing, for mail scanners follow every link."""
    try:
        link, rule = await _open(request)
    except HeadgateError as error:
        return _sorry(error)
    return _html(page.ask(link, rule))


async def vote(request: Request) -> Response:
    """``POST /f/{token}``: keeps the answer; a later one through the same link replaces it."""
    try:
        link, rule = await _open(request)
        form = parse_qs((await read_raw(request, MAX_FORM_BYTES)).decode(), keep_blank_values=True, max_num_fields=16)
        given = form.get("value", [])
        value = page.read_value(given[0], link, rule) if len(given) == 1 else None
        if value is None:
            return _html(page.ask(link, rule, page.wrong(link, rule), given[0] if given else ""), 422)
        outcome = await gateway_of(request).feedback.vote(link, value)
        if isinstance(outcome, HeadgateError):
            raise outcome
    except HeadgateError as error:
        return _sorry(error)
    except ValueError:
        return _html(page.tell("Your answer could not be read", "Please go back and try again."), 400)
    return _html(page.thank(link, rule, value))


async def _open(request: Request) -> tuple[Link, FeedbackRule]:
    try:
        return await gateway_of(request).feedback.open_link(request.path_params["token"])
    except (OSError, ValueError) as error:
        raise _unusable(error) from None


def _unusable(error: OSError | ValueError) -> NotReady:
    """The keys of the links cannot be read or written."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    log.error("feedback links cannot be used", extra={"event": "links-unusable", "reason": reason})
    return NotReady("feedback links cannot be used now", retry_after_s=60)


def _line(number: int, outcome: Answer | HeadgateError) -> dict[str, Any]:
    if isinstance(outcome, HeadgateError):
        return {"line": number, **outcome.body()}
    found: dict[str, Any] = {"line": number, "feedback_id": outcome.feedback_id, "status": outcome.status}
    return found | {"replayed": True} if outcome.replayed else found


def _sorry(error: HeadgateError) -> Response:
    """A page for an error, in words for a person who only followed a link."""
    if isinstance(error, ExpiredLink):
        title, text = "This link has ended", "The time for an answer is over. If you still want to answer, please ask "
        text += "whoever sent you the link for a new one."
    elif isinstance(error, BadLink):
        title, text = "This link is not valid", "It may have been cut when it was copied. Please open it again from "
        text += "the message in which you got it, or ask for a new one."
    elif isinstance(error, PayloadTooLarge):
        title, text = "Your answer is too long", "Please go back and shorten it."
    else:
        title, text = "This does not work right now", "Your answer was not kept. Please try again in a few minutes."
    headers = {"connection": "close"} if isinstance(error, PayloadTooLarge) else error.headers
    return _html(page.tell(title, text), error.status, headers)


def _html(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text, status, {**page.HEADERS, **(headers or {})}, media_type="text/html; charset=utf-8")
