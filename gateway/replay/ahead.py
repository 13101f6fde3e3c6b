"""What comes next is read while rows run: checksums, decompression and a disk do not need the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from gateway.journal.reader import Segment
from gateway.journal.sources import Source, read


class Opened(NamedTuple):
    """A source whose `batches` are about to be read; asking for one raises Damaged, OSError. `damage`: in words."""

    sealed: bool
    damage: list[str]
    batches: Iterator[pa.RecordBatch]


def opened(
    data: Path, sources: Sequence[Source], columns: Callable[[Source], Collection[str]]
) -> Iterator[tuple[Source, Future[Opened]]]:
    """Each source with what was opened of it; its result raises Damaged, OSError. One is opened ahead.

    `columns`: those of a source that are read.
    """
    with ThreadPoolExecutor(1, "replay-open") as ahead:
        following = ahead.submit(_open, data, sources[0], columns)
        for at, source in enumerate(sources, 1):
            current = following
            if at < len(sources):
                following = ahead.submit(_open, data, sources[at], columns)
            yield source, current


def _open(data: Path, source: Source, columns: Callable[[Source], Collection[str]]) -> Opened:
    if source.segment is not None:
        try:
            segment = Segment.open(source.segment)
        except FileNotFoundError:  # it went into the archive
            pass
        else:
            sealed = segment.sealed
            damage = [f"segment {source.prefix}: {words}" for words in segment.verify()]
            # Its rows lie in memory as they are needed: there a thread would only be in the way.
            return Opened(sealed, damage, read(data, source, columns(source), segment))
    found = read(data, source, columns(source))
    return Opened(True, [], _ahead(next(found, None), found))


def _ahead(batch: pa.RecordBatch | None, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """A batch, and the others, of which each is read by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, "replay-read") as ahead:
        while batch is not None:
            following = ahead.submit(next, others, None)
            yield batch
            batch = following.result()
