"""Feedback: everything that endpoints ask about feedback, in one process.

An event is accepted if a declaration allows it, whether its prediction is found or not: nothing here looks into a
database. What the answer calls matched, pending or late is how it looked then; the ledger has the last word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from gateway.errors import InvalidFeedback, QueueFull
from gateway.feedback import intake
from gateway.feedback.commit import GROUP, Answer, Committer, Outcome, SystemClock
from gateway.feedback.declarations import Declarations
from gateway.feedback.event import FOLDER, Event, IdClock, Source
from gateway.feedback.intake import Post, Target
from gateway.feedback.links import ExpiredLink, Link, LinkKeys, new_link_id
from gateway.feedback.log import Log
from gateway.feedback.rules import Duration, FeedbackRule, Value, duration_ns
from gateway.journal.reader import Damaged, Found, Locator
from gateway.journal.segment import boot_id
from gateway.oip.jsontext import quote
from gateway.settings import Settings
from gateway.telemetry.store import CounterStore

log = logging.getLogger("headgate.feedback")

DEFAULT_EXPIRY_S = 7 * 86400
MAX_EXPIRY_S = 366 * 86400


class LinkWish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/feedback-links``. `values` narrow what may be answered; `source` is the reviewer's id."""

    prediction_id: str
    name: str
    model: str = ""
    row: int | None = None
    values: list[Value] = []
    expires_in: Annotated[int, Meta(ge=1, le=MAX_EXPIRY_S)] | Duration = DEFAULT_EXPIRY_S
    source: str = ""


class Finder(Protocol):
    """Where predictions are found; see journal.reader.Locator."""

    def find(self, prediction_id: str) -> Found | None:
        """What an id names, None where nothing of that name is kept. Raises Damaged."""
        ...


class Feedback:
    """Takes events and makes links. Nothing is read or opened before the first use.

    Events are counted by model, name and what they were answered; what was refused has neither model nor name.
    """

    def __init__(
        self,
        models: Path,
        finder: Finder,
        committer: Committer,
        keys: LinkKeys,
        counters: CounterStore,
        now_ns: Callable[[], int] = SystemClock.now_ns,
    ) -> None:
        self._declarations = Declarations(models)
        self._finder = finder
        self._committer = committer
        self._keys = keys
        self._counters = counters
        self._forgotten = 0
        self._now_ns = now_ns

    async def put(self, body: bytes, key: str = "") -> Outcome:
        """Keep one event; the body is a Post in JSON."""
        return (await self._submit([lambda now_ns: self._accept(body, key, now_ns)]))[0]

    async def put_many(self, lines: Sequence[tuple[int, bytes]], key: str = "") -> list[Outcome]:
        """Keep many events, each by itself; that of line number n has the key ``key/n`` unless it says its own.

        Where too many wait, lines get QueueFull: what was taken before stays taken.
        """
        outcomes: list[Outcome] = []
        for start in range(0, len(lines), GROUP):
            some = lines[start : start + GROUP]
            outcomes += await self._submit(
                [self._maker(line, f"{key}/{number}" if key else "") for number, line in some]
            )
        return outcomes

    async def delete(self, feedback_id: str) -> Outcome:
        """Withdraw an event."""
        return (await self._submit([lambda now_ns: intake.tombstone(feedback_id, now_ns)]))[0]

    async def vote(self, link: Link, value: Value) -> Outcome:
        """Keep the answer that came through a link."""
        return (await self._submit([lambda now_ns: self._vote(link, value, now_ns)]))[0]

    async def check_declared(self, model: str, name: str) -> None:
        """Raises InvalidFeedback unless a model declares a name, NotReady where that cannot be read."""
        declared = await self._committer.call(lambda: self._declarations.of(model))
        if name not in declared:
            raise intake.undeclared(name, model, declared)

    async def make_link(self, wish: LinkWish) -> tuple[str, Link]:
        """A link and its token. Raises InvalidFeedback, NotReady, OSError."""
        return await self._committer.call(lambda: self._make_link(wish))

    async def open_link(self, token: str) -> tuple[Link, FeedbackRule]:
        """A link and what it asks. Raises BadLink, ExpiredLink, NotReady, OSError."""
        return await self._committer.call(lambda: self._open_link(token))

    def close(self) -> None:
        """Return when what is under way is on disk."""
        self._committer.close()

    async def _submit(self, makers: Sequence[Callable[[int], Event]]) -> list[Outcome]:
        try:
            outcomes = await self._committer.submit(makers)
        except QueueFull as error:
            outcomes = [error] * len(makers)
        for outcome in outcomes:
            if isinstance(outcome, Answer):
                event = outcome.event
                status = "replayed" if outcome.replayed else outcome.status
                self._counters.count("feedback", event.model, event.name, status)
            else:
                self._counters.count("feedback", "", "", outcome.code)
        forgotten = self._committer.forgotten
        if forgotten > self._forgotten:
            self._counters.cells[self._counters.cell("feedback-keys-forgotten")] += forgotten - self._forgotten
            self._forgotten = forgotten
        return outcomes

    # -- in the committer's thread

    def _maker(self, body: bytes, line_key: str) -> Callable[[int], Event]:
        return lambda now_ns: self._accept(body, "", now_ns, line_key)

    def _accept(self, body: bytes, key: str, now_ns: int, line_key: str = "") -> Event:
        post = intake.parse(body, key, line_key)
        return intake.accept(post, self._target(post), now_ns)

    def _target(self, post: Post) -> Target:
        found = self._find(post.prediction_id) if post.prediction_id else None
        model = post.model if found is None else found.model
        rules = self._declarations.find(model, post.name)
        declared = tuple(self._declarations.of(model)) if model and not rules else ()
        if found is None:
            return Target(rules, model, declared=declared)
        if post.model and post.model != found.model:
            said = f"prediction {post.prediction_id} is of model {found.model!r}, not {quote(post.model)}"
            raise InvalidFeedback(said, field="model")
        return Target(rules, model, found.time_ns, found.span, declared)

    def _find(self, prediction_id: str) -> Found | None:
        try:
            return self._finder.find(prediction_id)
        except Damaged as error:
            # What the journal has lost must not cost the label as well: it waits.
            log.warning("a prediction cannot be read", extra={"event": "journal-damaged", "reason": str(error)})
            return None

    def _vote(self, link: Link, value: Value, now_ns: int) -> Event:
        rule = self._rule(link)
        found = self._find(link.prediction_id)
        return Event(
            feedback_id=IdClock.new_id(),
            received_ns=now_ns,
            model=link.model,
            name=link.name,
            kind=rule.kind,
            value=value,
            prediction_id=link.prediction_id,
            row=link.row,
            source=Source("HUMAN", link.source or f"link:{link.id}"),
            link=link.id,
            status=intake.status(found.time_ns if found is not None else 0, rule, now_ns),
        )

    def _make_link(self, wish: LinkWish) -> tuple[str, Link]:
        source = Source("HUMAN", wish.source)
        post = Post(
            name=wish.name, value=None, prediction_id=wish.prediction_id, row=wish.row, model=wish.model, source=source
        )
        intake.check(post)
        target = self._target(post)
        intake.check_row(post, target)
        if not target.rules:
            raise intake.undeclared(post.name, target.model, target.declared)
        if len(target.rules) > 1:
            said = f"the prediction was not found and {len(target.rules)} models declare feedback {post.name!r}"
            raise InvalidFeedback(f"{said}: give the model", field="model")
        model, rule = next(iter(target.rules.items()))
        for value in wish.values:
            if not rule.accepts(value):
                said = f"feedback {post.name!r} of model {model!r} is declared as {rule.describe()}"
                raise InvalidFeedback(f"{said}, got {intake.show(value)}", field="values")
        seconds = wish.expires_in
        if isinstance(seconds, str):
            seconds = duration_ns(seconds) // 1_000_000_000
        if not 0 < seconds <= MAX_EXPIRY_S:
            said = f"expires_in must be from 1 to {MAX_EXPIRY_S} seconds, or such as 12h or 7d"
            raise InvalidFeedback(f"{said}, got {wish.expires_in}", field="expires_in")
        expires_s = self._now_ns() // 1_000_000_000 + seconds
        values = tuple(wish.values)
        link = Link(new_link_id(), model, post.prediction_id, post.row, post.name, values, expires_s, wish.source)
        return self._keys.sign(link), link

    def _open_link(self, token: str) -> tuple[Link, FeedbackRule]:
        link = self._keys.verify(token, self._now_ns() // 1_000_000_000)
        return link, self._rule(link)

    def _rule(self, link: Link) -> FeedbackRule:
        """The declaration that a link asks by, if it is still there and takes what the link offers."""
        rule = self._declarations.of(link.model).get(link.name)
        if rule is None or not all(rule.accepts(value) for value in link.values):
            raise ExpiredLink("this question is not asked any more")
        return rule


def feedback_for(settings: Settings, counters: CounterStore) -> Feedback:
    """The feedback of a process of this server."""
    folder = settings.data / FOLDER
    written = Log(folder, settings.feedback_file_bytes, settings.feedback_file_age_s)
    committer = Committer(folder, written, settings.feedback_keys, boot_id())
    return Feedback(settings.models, Locator(settings.data), committer, LinkKeys(folder / "link-keys.json"), counters)
