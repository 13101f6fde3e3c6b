"""Freshness: when the rows were, and how long ago the newest was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from monitors.types import Columns


class Freshness:
    """Rows, and the earliest and latest event time, Unix nanoseconds; None while there was no row."""

    def __init__(self) -> None:
        self.rows = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def update(self, columns: Columns) -> None:
        """Look at the times of rows."""
        if len(columns):
            self._add(len(columns), int(columns.time_ns.min()), int(columns.time_ns.max()))

    def merge(self, other: Freshness) -> None:
        """Add the rows of another."""
        if other.first_ns is not None and other.last_ns is not None:
            self._add(other.rows, other.first_ns, other.last_ns)

    def _add(self, rows: int, first_ns: int, last_ns: int) -> None:
        self.rows += rows
        self.first_ns = first_ns if self.first_ns is None else min(self.first_ns, first_ns)
        self.last_ns = last_ns if self.last_ns is None else max(self.last_ns, last_ns)

    def age_s(self, now_ns: int) -> float | None:
        """Seconds from the newest row to `now_ns`; negative where its clock is ahead."""
        return None if self.last_ns is None else (now_ns - self.last_ns) / 1e9

    def value(self) -> Mapping[str, Any]:
        """Rows and the two times."""
        return {"rows": self.rows, "first_ns": self.first_ns, "last_ns": self.last_ns}

    def to_bytes(self) -> bytes:
        """The state; equal states give equal bytes."""
        return msgspec.msgpack.encode((self.rows, self.first_ns, self.last_ns))

    def load(self, data: bytes) -> None:
        """Replace the state by one that `to_bytes` gave. Raises ValueError where it is none."""
        try:
            self.rows, self.first_ns, self.last_ns = msgspec.msgpack.decode(
                data, type=tuple[int, int | None, int | None]
            )
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no times: {error}") from error
