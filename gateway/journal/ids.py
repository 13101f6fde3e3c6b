"""Prediction ids: UUIDs of version 8 (RFC 9562) that say where a prediction was written.

``tttttttt-tttt-8rrr-vrrr-rrrrnnnnnnnn``: t is the millisecond in which a segment was opened, r is random and the same
for the whole segment, n is the row in that segment. Making an id is one formatting of a number, and finding what it
names is opening one file. Several rows of one request are ``id#0``, ``id#1`` and so on.
"""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

PREFIX_LENGTH = 28
"""Characters of an id that name the segment; the other eight are the row."""

_ID = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{4})([0-9a-f]{8})(?:#(0|[1-9][0-9]{0,8}))?"
)


class PredictionId(NamedTuple):
    """Where a prediction is: its segment, the first row of its request there, and which row of the request is meant."""

    prefix: str
    row: int
    part: int | None = None

    def __str__(self) -> str:
        return f"{self.prefix}{self.row:08x}" + ("" if self.part is None else f"#{self.part}")


def is_prefix(text: str) -> bool:
    """Whether a text is what the ids of one segment begin with."""
    return len(text) == PREFIX_LENGTH and parse(text + "0" * 8) is not None


def parse(text: str) -> PredictionId | None:
    """The parts of an id, or None where it is not one of ours."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    prefix, row, part = match.groups()
    return PredictionId(prefix, int(row, 16), None if part is None else int(part))


def new_prefix() -> bytes:
    """What the ids of one segment begin with: 28 of the 36 characters."""
    stamp = (time.time_ns() // 1_000_000) & ((1 << 48) - 1)
    noise = int.from_bytes(os.urandom(6), "big")
    high = (stamp << 16) | 0x8000 | (noise & 0xFFF)
    low = 0x8000 | (noise >> 12 & 0x3FFF)
    tail = noise >> 26 & 0xFFFF
    text = f"{high:016x}{low:04x}{tail:04x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


def new_id() -> str:
    """An id that stands alone: the only row of a segment of its own."""
    return (new_prefix() + b"%08x" % 0).decode()
