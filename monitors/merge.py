"""Merge: the rows of many segments in order of time, in pieces, so that blocks close while more is read.

The evidence of a block can be looked at when no row of its time can come any more. Who reads segment after segment
holds every block of a backlog until the last of them; who reads them side by side holds those of a minute.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gateway.journal.reader import Damaged
from monitors.types import Columns

SLACK_NS = 60_000_000_000
"""Within a segment rows stand in the order in which they were decoded; their times may be so much out of order."""


class Piece(NamedTuple):
    """Some rows of a source: those that were answered as `columns`, `loose` requests without columns, `rows` of all.

    `requests`: all requests among them, as `monitors.operation.Operation` takes them. `stop`: how many rows of the
    source have been read with it, where somebody goes on from there.
    """

    columns: Columns
    loose: int
    rows: int
    requests: Columns | None = None
    stop: int = 0


class Origin(NamedTuple):
    """One segment, wherever it is kept: about how many rows, and how to read them."""

    opened_ns: int
    prefix: str
    rows: int
    read: Callable[[], Iterator[Piece]]


class Turn(NamedTuple):
    """The next piece, of the source with this prefix; all rows from before `complete_ns` have come with it."""

    prefix: str
    piece: Piece
    complete_ns: int


class _Head(NamedTuple):
    """The next piece of a source, and what follows it. No two have the same time and prefix."""

    first_ns: int
    prefix: str
    piece: Piece
    rest: Iterator[Piece]


def merged(origins: Iterable[Origin], fail: Callable[[str, str], None]) -> Iterator[Turn]:
    """The pieces of all sources, that with the earliest row first. `fail` is told of a source that ends before its end.

    A source is opened when its first row may be due, so that few are open at a time.
    """
    waiting = deque(sorted(origins))
    heap: list[_Head] = []

    def hold(prefix: str, rest: Iterator[Piece]) -> Iterator[Turn]:
        """Put the next piece of a source that has times into the heap; those without need no order."""
        try:
            for piece in rest:
                if len(piece.columns):
                    heapq.heappush(heap, _Head(int(piece.columns.time_ns.min()), prefix, piece, rest))
                    return
                yield Turn(prefix, piece, 0)
        except (Damaged, OSError) as error:
            # The rest of it is not counted, which is said; all else is.
            fail(prefix, str(error) if isinstance(error, Damaged) else error.strerror or str(error))

    while waiting or heap:
        while waiting and (not heap or waiting[0].opened_ns - SLACK_NS <= heap[0].first_ns):
            origin = waiting.popleft()
            yield from hold(origin.prefix, origin.read())
        if heap:
            head = heapq.heappop(heap)
            yield from hold(head.prefix, head.rest)
            begins = [each.first_ns for each in heap[:1]] + [origin.opened_ns for origin in list(waiting)[:1]]
            yield Turn(head.prefix, head.piece, min(begins, default=head.first_ns) - SLACK_NS)
