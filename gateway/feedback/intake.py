"""What a caller posts, and the event it becomes where a declaration allows it. Does no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from gateway.errors import InvalidFeedback, InvalidRequest
from gateway.feedback.event import Event, IdClock, Source, is_id, keyed_id
from gateway.feedback.rules import FeedbackRule, Kind
from gateway.oip.jsontext import parse_object, quote

MAX_TEXT = 256
"""Characters of a request id, an entity key, a source id and an idempotency key."""

MAX_RATIONALE = 4000
MAX_DEPTH = 8
MAX_ROW = 999_999_999

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MEMBER = re.compile("field `([^`]*)`")
_CHOICES = {"source.type": "HUMAN, SYSTEM or MODEL", "kind": "expectation or feedback"}
_ROW = re.compile(r"0|[1-9][0-9]{0,8}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_NS = 4_102_444_800 * 1_000_000_000
"""2100: with a window of a hundred years around it, a time is still a number of 64 bits."""

AHEAD_NS = 86_400 * 1_000_000_000
"""How far ahead of this one the clock of who observed something may be."""


T = TypeVar("T")


class Post(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The body of ``POST /v1/feedback``, and a line of a batch. `value` is checked against the declaration."""

    name: str
    value: Any
    prediction_id: str = ""
    row: int | None = None
    request_id: str = ""
    entity: str = ""
    event_time: str = ""
    model: str = ""
    kind: Kind | None = None
    source: Source = Source()
    observed_at: str = ""
    rationale: str = ""
    supersedes: str = ""
    idempotency_key: str = ""


class Target(msgspec.Struct, frozen=True):
    """What a post may be about: the declarations of its name by model, and the prediction if it was found.

    `model` is that of the prediction, else the one that the post names. `sent_ns` is when the prediction was asked for
    and `span` how many rows it has; both 0 where it was not found. `declared`: the names that the model does declare.
    """

    rules: dict[str, FeedbackRule]
    model: str = ""
    sent_ns: int = 0
    span: int = 0
    declared: tuple[str, ...] = ()


def parse(body: bytes, key: str = "", line_key: str = "") -> Post:
    """Read a post; `key` is the Idempotency-Key of its header, `line_key` that of a line that has none of its own.

    Raises InvalidJSON, InvalidRequest, InvalidFeedback.
    """
    post = convert(parse_object(body, MAX_DEPTH), Post, "feedback")
    if key and post.idempotency_key and key != post.idempotency_key:
        raise InvalidRequest("idempotency_key and the header Idempotency-Key differ", field="idempotency_key")
    post.idempotency_key = key or post.idempotency_key or line_key
    check(post)
    return post


def convert(document: dict[str, Any], form: type[T], what: str) -> T:
    """A document as a struct. Raises InvalidRequest, which says what it is not, with its field."""
    try:
        return msgspec.convert(document, form)
    except msgspec.ValidationError as error:
        field = _path(error)
        wanted = _CHOICES.get(field or "")
        raise InvalidRequest(
            f"this is no {what}: {error}{f'; it must be {wanted}' if wanted else ''}", field=field
        ) from None


def check(post: Post) -> None:
    """Bring the address of a post into its one form. Raises InvalidFeedback for what no declaration could allow."""
    _check_texts(post)
    _check_address(post)


def digest(post: Post) -> str:
    """What a post says, but for its key, in 32 hexadecimal digits: the same said again has the same digest."""
    said = msgspec.structs.replace(post, idempotency_key="")
    return hashlib.blake2b(msgspec.json.encode(said), digest_size=16).hexdigest()


def accept(post: Post, target: Target, received_ns: int, actor: str = "") -> Event:
    """The event that a post becomes. Raises InvalidFeedback, with the declaration in its message."""
    rules = {model: rule for model, rule in target.rules.items() if _suits(post, rule) is None}
    if not target.rules:
        raise undeclared(post.name, target.model, target.declared)
    if not rules:
        raise _unsuitable(post, target)
    model, rule = next(iter(rules.items()))
    check_row(post, target)
    key = post.idempotency_key
    return Event(
        feedback_id=keyed_id("put", actor, key) if key else IdClock.new_id(),
        received_ns=received_ns,
        model=model if len(rules) == 1 else "",
        name=post.name,
        kind=rule.kind,
        value=post.value,
        prediction_id=post.prediction_id,
        row=post.row,
        request_id=post.request_id,
        entity=post.entity,
        event_time_ns=time_of(post.event_time, "event_time") if post.event_time else 0,
        source=post.source,
        observed_at_ns=_observed(post.observed_at, received_ns) if post.observed_at else 0,
        rationale=post.rationale,
        supersedes=post.supersedes,
        idempotency_key=key,
        actor=actor,
        status=status(target.sent_ns, rule, received_ns),
        digest=digest(post),
    )


def status(sent_ns: int, rule: FeedbackRule, received_ns: int) -> str:
    """What feedback that comes now is answered, about a prediction that was asked for at `sent_ns` (0: not found)."""
    if not sent_ns:
        return "pending"
    return "late" if received_ns - sent_ns > rule.join_window_ns else "matched"


def check_row(post: Post, target: Target) -> None:
    """Whether the prediction, where it was found, has the row that is meant. Raises InvalidFeedback."""
    if target.span > 1 and post.row is None:
        where = f"prediction {post.prediction_id} has {target.span} rows"
        raise InvalidFeedback(f"{where}: say which one with row, or as prediction_id#row", field="row")
    if target.span and post.row is not None and post.row >= target.span:
        where = f"prediction {post.prediction_id} has {target.span} rows, counted from 0"
        raise InvalidFeedback(f"{where}: there is no row {post.row}", field="row")


def undeclared(name: str, model: str, declared: Iterable[str] = ()) -> InvalidFeedback:
    """The error for a name that a model, or (empty) no model at all, declares; `declared` are those that it does."""
    whose = f"model {quote(model)} declares no" if model else "no model declares a"
    others = ", ".join(map(repr, sorted(declared)))
    said = f"{whose} feedback named {quote(name)}" + (f"; it declares {others}" if others else "")
    return InvalidFeedback(said, field="name")


def tombstone(feedback_id: str, received_ns: int, actor: str = "") -> Event:
    """The event that withdraws another one. Raises InvalidRequest."""
    wanted = feedback_id.lower()
    if not is_id(wanted):
        raise InvalidRequest(f"{quote(feedback_id)} is no feedback id; it must be a UUID", field="feedback_id")
    return Event(
        feedback_id=keyed_id("delete", wanted),
        op="delete",
        received_ns=received_ns,
        supersedes=wanted,
        actor=actor,
        status="deleted",
    )


def time_of(text: str, field: str) -> int:
    """Unix time in nanoseconds of an RFC 3339 time with a zone. Raises InvalidFeedback."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None or "T" not in text.upper():
            raise ValueError
        since = moment - _EPOCH
        nanoseconds = (since.days * 86400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
        if not 0 < nanoseconds < _END_NS:
            raise ValueError
    except (ValueError, OverflowError):
        expected = "a time from 1970 to 2099 with a zone, such as 2026-09-17T10:00:00Z"
        raise InvalidFeedback(f"{field} must be {expected}, got {quote(text)}", field=field) from None
    return nanoseconds


def _observed(text: str, received_ns: int) -> int:
    """When something was observed: what came later would be the last word until then. Raises InvalidFeedback."""
    observed_ns = time_of(text, "observed_at")
    if observed_ns > received_ns + AHEAD_NS:
        said = f"observed_at must not be more than a day ahead of the server's clock, got {quote(text)}"
        raise InvalidFeedback(said, field="observed_at")
    return observed_ns


def _check_texts(post: Post) -> None:
    texts = {
        "request_id": post.request_id,
        "entity": post.entity,
        "source.id": post.source.id,
        "idempotency_key": post.idempotency_key,
    }
    for field, text in texts.items():
        if text and (len(text) > MAX_TEXT or _CONTROL.search(text)):
            wanted = f"at most {MAX_TEXT} characters and no control characters"
            raise InvalidFeedback(f"{field} must have {wanted}, got {quote(text)}", field=field)
    if len(post.rationale) > MAX_RATIONALE:
        said = f"rationale must have at most {MAX_RATIONALE} characters, got {len(post.rationale)}"
        raise InvalidFeedback(said, field="rationale")
    if post.supersedes:
        post.supersedes = post.supersedes.lower()
        if not is_id(post.supersedes):
            said = f"supersedes must be the feedback_id of another event, got {quote(post.supersedes)}"
            raise InvalidFeedback(said, field="supersedes")


def _check_address(post: Post) -> None:
    """Exactly one of three addresses; ``prediction_id#row`` is taken apart."""
    given = [name for name in ("prediction_id", "request_id", "entity") if getattr(post, name)]
    if len(given) != 1:
        said = "give exactly one of prediction_id, request_id and entity (with event_time)"
        raise InvalidFeedback(
            f"{said}, got {', '.join(given) or 'none'}", field=given[-1] if given else "prediction_id"
        )
    if bool(post.entity) is not bool(post.event_time):
        raise InvalidFeedback("entity and event_time go together", field="event_time" if post.entity else "entity")
    if post.prediction_id:
        name, mark, row = post.prediction_id.partition("#")
        if not is_id(name.lower()) or (mark and not _ROW.fullmatch(row)):
            said = f"prediction_id must be a UUID, or a UUID and #row, got {quote(post.prediction_id)}"
            raise InvalidFeedback(said, field="prediction_id")
        if mark and post.row is not None and post.row != int(row):
            raise InvalidFeedback(f"row is {post.row}, but prediction_id names row {row}", field="row")
        post.prediction_id = name.lower()
        post.row = int(row) if mark else post.row
    if post.row is not None and not 0 <= post.row <= MAX_ROW:
        raise InvalidFeedback(f"row must be a whole number from 0 to {MAX_ROW}, got {post.row}", field="row")


def _suits(post: Post, rule: FeedbackRule) -> str | None:
    """The field in which a post goes against a declaration, None where it suits."""
    if not rule.accepts(post.value):
        return "value"
    if post.kind is not None and post.kind != rule.kind:
        return "kind"
    return "entity" if post.entity and not rule.entity else None


def _unsuitable(post: Post, target: Target) -> InvalidFeedback:
    """The error for a post that goes against every declaration of its name, in terms of the first."""
    model, rule = next(iter(target.rules.items()))
    declared = f"feedback {post.name!r} of model {model!r}"
    field = _suits(post, rule)
    if field == "kind":
        said = f"{declared} is declared as {rule.kind}, got kind {post.kind}"
    elif field == "entity":
        said = f"{declared} is not declared with an entity, so it cannot be addressed by one"
    else:
        said = f"{declared} is declared as {rule.describe()}, got {show(post.value)}"
        more = len(target.rules) - 1
        said += f"; the other models that declare it ({more}) do not take this value either" if more else ""
    return InvalidFeedback(said, field=field)


def show(value: object) -> str:
    """A value for a message: short, on one line."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 64 else text[:61] + "..."


def _path(error: msgspec.ValidationError) -> str | None:
    """The member that a message of msgspec speaks of."""
    _, found, path = str(error).rpartition("`$.")
    named = _MEMBER.findall(str(error))
    return ".".join([path.rstrip("`")] * bool(found) + named) or None
