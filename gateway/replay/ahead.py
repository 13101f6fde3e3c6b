"""What comes next is read while rows run: checksums, decompression and a disk do not need the interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from gateway.journal.reader import Segment
from gateway.journal.sources import Source


class Opened(NamedTuple):
    """A source that is about to be read. `segment` is None where it lies in the archive; `damage`: in words."""

    segment: Segment | None
    sealed: bool
    damage: list[str]


def opened(sources: Sequence[Source]) -> Iterator[tuple[Source, Future[Opened]]]:
    """Each source with what was opened of it; its result raises Damaged, OSError. One is opened ahead."""
    with ThreadPoolExecutor(1, "replay-ahead") as ahead:
        following = ahead.submit(_open, sources[0])
        for at, source in enumerate(sources, 1):
            current = following
            if at < len(sources):
                following = ahead.submit(_open, sources[at])
            yield source, current


def batches(found: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What an iterator gives, which is asked for one batch ahead by a thread. Raises what it raises."""
    with ThreadPoolExecutor(1, "replay-ahead") as ahead:
        following = ahead.submit(next, found, None)
        while (batch := following.result()) is not None:
            following = ahead.submit(next, found, None)
            yield batch


def _open(source: Source) -> Opened:
    if source.segment is not None:
        try:
            segment = Segment.open(source.segment)
            sealed = segment.sealed
            return Opened(segment, sealed, [f"segment {source.prefix}: {words}" for words in segment.verify()])
        except FileNotFoundError:  # it went into the archive
            pass
    return Opened(None, True, [])
