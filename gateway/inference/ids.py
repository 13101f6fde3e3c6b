"""Prediction ids: UUIDs of version 7 (RFC 9562), so that they sort by time."""

from __future__ import annotations

import os
import time


def new_id() -> str:
    """48 bits of milliseconds and 74 random bits, as 36 characters."""
    stamp = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    high = (stamp << 16) | 0x7000 | (tail >> 68)
    low = (0b10 << 62) | (tail & ((1 << 62) - 1))
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
