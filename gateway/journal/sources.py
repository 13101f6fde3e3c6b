"""Sources: the predictions of a model wherever they are kept, in segments and in the archive, oldest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from gateway.journal import archive, arrow, shelves
from gateway.journal.columns import schema_of, source_of
from gateway.journal.reader import Damaged, Segment, segments


class Source(NamedTuple):
    """The rows of one segment, and where it was when it was looked for. `rows` is about how many it had then."""

    prefix: str
    version: int
    digest: str
    schema: pa.Schema
    rows: int
    segment: Path | None
    archived: Path | None

    @property
    def bare(self) -> bool:
        """Whether the inputs of these rows have been taken away."""
        return source_of(self.schema).bare


def sources(
    data: Path,
    model: str,
    versions: Collection[int] = (),
    until_ns: int = 1 << 62,
    damaged: Callable[[str], None] = lambda words: None,
) -> list[Source]:
    """The sources of a model (or of some of its versions) that were opened before a time, oldest first.

    What cannot be read is not among them; `damaged` is told of it in words. Raises OSError.
    """
    found: dict[str, Source] = {}
    for place in shelves.places(data / shelves.FOLDER, model):
        if (versions and place.version not in versions) or shelves.opened_ns(place.prefix) >= until_ns:
            continue
        try:
            schema = archive.read_schema(place.path)
            segment = source_of(schema).segment
            rows = archive.count_rows(place.path)
        except Damaged as error:
            damaged(str(error))
            continue
        found[place.prefix] = Source(place.prefix, place.version, segment.digest, schema, rows, None, place.path)
    for path in segments(data / "journal"):
        if shelves.opened_ns(path.stem) >= until_ns:
            continue
        try:
            opened = Segment.open(path)
        except FileNotFoundError:
            continue
        except Damaged as error:
            # It does not say of which model it was.
            damaged(str(error))
            continue
        spec = opened.spec
        if spec.model == model and (not versions or spec.version in versions):
            # A segment is read without decoding: where both are there, it is the better one.
            rows = opened.rows()
            found[spec.prefix] = Source(spec.prefix, spec.version, spec.digest, schema_of(spec), rows, path, None)
    return [found[prefix] for prefix in sorted(found)]


def models(data: Path) -> set[str]:
    """The models of which there are predictions."""
    names = {place.model for place in shelves.places(data / shelves.FOLDER)}
    for path in segments(data / "journal"):
        try:
            names.add(Segment.open(path).spec.model)
        except (FileNotFoundError, Damaged):
            continue
    return names


def read(
    data: Path, source: Source, columns: Collection[str] | None = None, segment: Segment | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a source, of all or some columns; each batch ends with a run. Raises Damaged, OSError.

    `segment`: its segment, where that is open already. One that went into the archive in the meantime is read there.
    """
    if segment is None and source.segment is not None:
        with suppress(FileNotFoundError):
            segment = Segment.open(source.segment)
    if segment is not None:
        yield from arrow.batches(segment, columns)
        return
    path = shelves.find(data / shelves.FOLDER, source.prefix)
    if path is None:
        raise Damaged(f"segment {source.prefix} went away while it was looked for")
    yield from archive.read(
        path, None if columns is None else [name for name in source.schema.names if name in columns]
    )
