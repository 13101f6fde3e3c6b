"""Webhook: alarms sent as CloudEvents to an HTTP endpoint, signed, retried and counted, from a thread of its own.

Body: a CloudEvent 1.0 in structured JSON mode. Signature: that of Standard Webhooks, `webhook-signature: v1,BASE64`
with BASE64 = HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"), id and Unix timestamp being those in `webhook-id` and
`webhook-timestamp`; with several secrets, while one is being replaced, there are several signatures. A receiver may
get an event twice and tells by its id. Nobody waits for the endpoint: `send` puts an event in a bounded queue, or
counts it as dropped.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import json
import logging
import queue
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

__all__ = ["Clock", "Event", "Post", "Reply", "SystemClock", "Webhook", "cloud_event", "post", "secret_of", "signature"]

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
# Of these the endpoint may think better; of the other 4xx it will not.
RETRIED = frozenset({408, 425, 429})
ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
SECRET_PREFIX = "whsec_"

log = logging.getLogger("headgate.webhook")


class Clock(Protocol):
    """The time, and how to wait for it."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait so long, or until `stop` is set; whether it is set."""
        ...


class SystemClock:
    """The time of day of this machine."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait so long, or until `stop` is set; whether it is set."""
        return stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class Event:
    """One event to be delivered: `body` is JSON, `id` the same at every attempt."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered: its status, and what it says about trying again."""

    status: int
    retry_after: str | None = None


Post = Callable[[bytes, Mapping[str, str]], Reply]


def cloud_event(event_id: str, kind: str, source: str, subject: str, time_ns: int, data: object) -> Event:
    """An event in CloudEvents' structured mode: `kind` becomes its type, `data` anything that JSON can hold.

    Raises ValueError for an id that a header or the signature could misread, and for numbers that JSON lacks.
    """
    if not ID.fullmatch(event_id):
        raise ValueError(f"expected an event id of letters, digits, - and _, got {event_id[:64]!r}")
    document = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": kind,
        "subject": subject,
        "time": datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    return Event(event_id, json.dumps(document, ensure_ascii=False, allow_nan=False).encode())


def secret_of(text: str) -> bytes:
    """The bytes of a secret: Base64 after `whsec_`, as Standard Webhooks write it, else the text itself.

    Raises ValueError where what follows `whsec_` is not Base64.
    """
    if text.startswith(SECRET_PREFIX):
        return base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    return text.encode()


def signature(secrets: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, separated by spaces."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    digests = (base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets)
    return " ".join(f"v1,{each}" for each in digests)


def post(url: str, timeout_s: float, context: ssl.SSLContext | None = None) -> Post:
    """A function that posts to `url` on a connection of its own and follows no redirect.

    Raises ValueError for a URL that is not http(s), has no host, or carries a password (give it as a header instead).
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a webhook URL such as https://host/path, without user and password")
    host, port = parts.hostname, parts.port
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def connection() -> http.client.HTTPConnection:
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)

    def send(body: bytes, headers: Mapping[str, str]) -> Reply:
        link = connection()
        try:
            link.request("POST", target, body=body, headers=dict(headers))
            answer = link.getresponse()
            # Its body is not read: it is not wanted, and may have no end.
            return Reply(answer.status, answer.getheader("Retry-After"))
        finally:
            link.close()

    return send


@dataclass
class Webhook:
    """A queue of events and the thread that delivers them, one at a time and in order.

    An attempt that fails (no connection, 5xx, 408, 425, 429) is repeated after growing pauses with jitter, or when
    `Retry-After` says, until `give_up_s` after the first; any other status but 2xx is final. `delivered`, `retried` and
    `dropped` (by reason: full, refused, expired, closed, failed for a defect of ours, which is logged) count;
    `on_delivered` is told the id, on the thread.
    """

    post: Post
    secrets: Sequence[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    on_delivered: Callable[[str], None] = lambda _id: None
    capacity: int = 1000
    first_pause_s: float = 1.0
    longest_pause_s: float = 300.0
    give_up_s: float = 86_400.0
    jitter: random.Random = field(default_factory=random.Random)
    delivered: int = 0
    retried: int = 0
    last_error: str | None = None

    def __post_init__(self) -> None:
        if not self.secrets or not all(self.secrets):
            raise ValueError("expected at least one webhook secret, none of them empty")
        self.dropped = {"full": 0, "refused": 0, "expired": 0, "closed": 0, "failed": 0}
        self._queue: queue.Queue[Event | None] = queue.Queue(self.capacity)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to deliver."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headgate-webhook", daemon=True)
            self._thread.start()

    def send(self, event: Event) -> bool:
        """Put an event in the queue, at once; False, and counted, where the queue is full or closed."""
        if self._stop.is_set():
            self.dropped["closed"] += 1
            return False
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.dropped["full"] += 1
            return False
        return True

    @property
    def waiting(self) -> int:
        """Events in the queue."""
        return self._queue.qsize()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the attempt that is under way; what has not been delivered is counted as dropped."""
        self._stop.set()
        # A thread that waits for an event must wake; one that has a full queue does not wait.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
        while True:
            try:
                left = self._queue.get_nowait()
            except queue.Empty:
                return
            self.dropped["closed"] += left is not None

    def _run(self) -> None:
        while not self._stop.is_set():
            event = self._queue.get()
            if event is None:
                continue
            try:
                self._count(event, self.deliver(event))
            except Exception:
                # The next event must not wait for ever because of this one.
                self.dropped["failed"] += 1
                log.exception("webhook", extra={"event": "webhook-failed", "id": event.id})

    def _count(self, event: Event, outcome: str) -> None:
        if outcome == "delivered":
            self.delivered += 1
            self.on_delivered(event.id)
        else:
            self.dropped[outcome] += 1

    def deliver(self, event: Event) -> str:
        """Try until an end: "delivered", "refused", "expired" or "closed"."""
        began = self.clock.now()
        pause = self.first_pause_s
        while True:
            reply = self._attempt(event)
            if reply is not None and 200 <= reply.status < 300:
                self.last_error = None
                return "delivered"
            if reply is not None and reply.status < 500 and reply.status not in RETRIED:
                return "refused"
            # Between half the pause and the whole: many senders do not come back together.
            wait_s = pause * (0.5 + self.jitter.random() / 2)
            if reply is not None and reply.retry_after is not None:
                wait_s = max(wait_s, min(_seconds(reply.retry_after, self.clock.now()), self.longest_pause_s))
            if self.clock.now() + wait_s - began > self.give_up_s:
                return "expired"
            if self.clock.wait(wait_s, self._stop):
                return "closed"
            self.retried += 1
            pause = min(2 * pause, self.longest_pause_s)

    def _attempt(self, event: Event) -> Reply | None:
        timestamp = int(self.clock.now())
        headers = {
            "User-Agent": "headgate",
            **self.headers,
            "Content-Type": CONTENT_TYPE,
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self.secrets, event.id, timestamp, event.body),
        }
        try:
            reply = self.post(event.body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.last_error = type(error).__name__
            return None
        if not 200 <= reply.status < 300:
            self.last_error = f"status {reply.status}"
        return reply

    def value(self) -> dict[str, Any]:
        """The counters, for metrics."""
        return {
            "waiting": self.waiting,
            "delivered": self.delivered,
            "retried": self.retried,
            "dropped": dict(self.dropped),
            "last_error": self.last_error,
        }


def _seconds(retry_after: str, now: float) -> float:
    """`Retry-After` as seconds from now: a number or an HTTP date; 0 where it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - now, 0.0)
    except (ValueError, TypeError):
        return 0.0
