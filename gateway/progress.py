"""Progress: a line on a terminal that says how far a long command is. On anything but a terminal it says nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
EVERY_S = 0.2


class Progress:
    """Counts towards `total`; `unit` is what is counted. Use it as a context manager, so that its line is ended."""

    def __init__(self, total: int, unit: str, stream: TextIO, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._unit = unit
        self._stream = stream
        self._monotonic = monotonic
        self._began = monotonic()
        self._shown_at = float("-inf")
        self._shows = stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows:
            self._show()
            self._stream.write("\n")
            self._stream.flush()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self._shows and self._monotonic() - self._shown_at >= EVERY_S:
            self._show()

    def _show(self) -> None:
        self._shown_at = self._monotonic()
        self._stream.write("\r" + self.line() + "\x1b[K")
        self._stream.flush()

    def line(self) -> str:
        """The line: a bar, how many of how many, how many each second."""
        share = min(1.0, self.done / self.total) if self.total else 1.0
        filled = int(share * WIDTH)
        took_s = self._monotonic() - self._began
        rate = f"{self.done / took_s:,.0f}/s" if took_s > 0 else ""
        bar = "#" * filled + "." * (WIDTH - filled)
        return f"[{bar}] {share:4.0%}  {self.done:,} of {self.total:,} {self._unit}  {rate}"
