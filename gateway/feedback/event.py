"""Event: one thing that was said about a prediction, as the feedback logs hold it. Events are never changed.

A log is a file of frames (journal.frames) named ``<prefix>.feedback`` in the folder `feedback` of the data folder; each
frame is one Event as JSON. Every worker writes files of its own, and a file that was left is never written again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from typing import Literal

import msgspec

from gateway.feedback.rules import Kind, Value

SUFFIX = ".feedback"
FOLDER = "feedback"

SourceType = Literal["HUMAN", "SYSTEM", "MODEL"]

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who says it. `id` names a person, system or model among those of its type; empty: nobody said."""

    type: SourceType = "SYSTEM"
    id: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One feedback event. It names its prediction in one of three ways: prediction_id, request_id, or entity + time.

    feedback_id: UUID; made from the idempotency key where there is one, so that the same thing said twice has one id:
    two events of one feedback_id are one event, and the first in the log counts.
    op: ``put`` says `value`; ``delete`` is a tombstone: it withdraws the event that `supersedes` names.
    supersedes: the feedback_id of an event that this one takes the place of.
    link: id of the signed link that it came through; a later event (received_ns) of one link replaces the earlier.
    prediction_id: without ``#row``, which is in `row`; None means the whole request, which then has one row.
    model: empty where the prediction was not found and several models declare the name.
    kind, name, value: as declared when it was received (feedback.rules).
    observed_at_ns: when the thing happened or was found out, Unix time; 0: not said, `received_ns` stands for it.
    event_time_ns: with `entity` alone: the time to look around for the prediction.
    status: what was answered: matched, pending or late; the ledger decides anew.
    digest: of what was sent; the same idempotency key with another digest is a conflict.
    """

    feedback_id: str
    op: Literal["put", "delete"] = "put"
    received_ns: int
    model: str = ""
    name: str = ""
    kind: Kind = "expectation"
    value: Value | None = None
    prediction_id: str = ""
    row: int | None = None
    request_id: str = ""
    entity: str = ""
    event_time_ns: int = 0
    source: Source = Source()
    observed_at_ns: int = 0
    rationale: str = ""
    supersedes: str = ""
    link: str = ""
    idempotency_key: str = ""
    actor: str = ""
    status: str = ""
    digest: str = ""

    @property
    def time_ns(self) -> int:
        """When it was observed, else received."""
        return self.observed_at_ns or self.received_ns


def encode(event: Event) -> bytes:
    """The payload of an event's frame."""
    return msgspec.json.encode(event)


def decode(payload: bytes) -> Event:
    """The event of a frame; members that a later version adds are passed over. Raises ValueError in words."""
    try:
        return msgspec.json.decode(payload, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"a feedback event is not valid: {error}") from None


def is_id(text: str) -> bool:
    """True for a UUID in its usual form, in small letters."""
    return _ID.fullmatch(text) is not None


class IdClock:
    """Where ids that are not made from a key take their time from."""

    @staticmethod
    def new_id() -> str:
        """A UUID of version 7 (RFC 9562): milliseconds of Unix time, then random bits."""
        number = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
        number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
        return str(uuid.UUID(int=number))


def keyed_id(*parts: str) -> str:
    """A UUID of version 8 that is a digest of `parts`: the same parts, the same id, on any server."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16, person=b"headgate-id").digest()
    number = int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return str(uuid.UUID(int=number))
