"""Prediction ids: UUIDs of version 8 (RFC 9562) that say where a prediction was written.

``tttttttt-tttt-8rrr-vrrr-rrrrnnnnnnnn``: t is the millisecond in which a block of rows was opened, r is random and
the same for the whole block, n is the row in that block. Making an id is then one formatting of a number.
"""

from __future__ import annotations

import os
import time


def new_prefix() -> bytes:
    """What the ids of one block begin with: 28 of the 36 characters."""
    stamp = (time.time_ns() // 1_000_000) & ((1 << 48) - 1)
    noise = int.from_bytes(os.urandom(6), "big")
    high = (stamp << 16) | 0x8000 | (noise & 0xFFF)
    low = 0x8000 | (noise >> 12 & 0x3FFF)
    tail = noise >> 26 & 0xFFFF
    text = f"{high:016x}{low:04x}{tail:04x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


def new_id() -> str:
    """An id that stands alone: the only row of a block of its own."""
    return (new_prefix() + b"%08x" % 0).decode()
