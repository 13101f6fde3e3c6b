"""Shelves: where the files of the archive lie. A server asks this long before it has anything to archive."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from gateway.journal import ids
from gateway.journal.reader import INDEX_FOLDER
from gateway.journal.schema import SEGMENT_SUFFIX

FOLDER = "archive"
SUFFIX = ".parquet"


class Place(NamedTuple):
    """What the path of a file of the archive says."""

    path: Path
    model: str
    version: int
    prefix: str


def date_of(prefix: str) -> str:
    """The day, UTC, on which the segment with this prefix was opened."""
    return datetime.fromtimestamp(opened_ns(prefix) / 1e9, UTC).date().isoformat()


def opened_ns(prefix: str) -> int:
    """When the segment with this prefix was opened: Unix time, to the millisecond."""
    return int(prefix[:8] + prefix[9:13], 16) * 1_000_000


def path_of(folder: Path, model: str, version: int, prefix: str) -> Path:
    """Where in the archive `folder` a segment belongs."""
    return folder / f"model={model}" / f"version={version}" / f"date={date_of(prefix)}" / (prefix + SUFFIX)


def index_of(folder: Path, prefix: str) -> Path:
    """Where what is left of an archived segment lies."""
    return folder / INDEX_FOLDER / (prefix + SEGMENT_SUFFIX)


def places(folder: Path, model: str | None = None, version: int | None = None) -> list[Place]:
    """The files of the archive, of all or one model and version, in the order in which their segments were opened."""
    pattern = f"model={'*' if model is None else model}/version={'*' if version is None else version}"
    found = []
    for path in folder.glob(f"{pattern}/date=*/*{SUFFIX}"):
        if ids.is_prefix(path.stem) and path.parts[-3][8:].isdecimal():
            found.append(Place(path, path.parts[-4][6:], int(path.parts[-3][8:]), path.stem))
    return sorted(found, key=lambda place: place.prefix)


def find(folder: Path, prefix: str) -> Path | None:
    """The file of a segment, wherever in the archive it is."""
    return next(iter(folder.glob(f"model=*/version=*/date={date_of(prefix)}/{prefix}{SUFFIX}")), None)


def remove(path: Path, folder: Path) -> None:
    """Delete a file of the archive and what is left of its segment. Raises OSError."""
    path.unlink(missing_ok=True)
    index_of(folder, path.stem).unlink(missing_ok=True)
    for empty in (path.parent, path.parent.parent, path.parent.parent.parent):
        try:
            empty.rmdir()
        except OSError:
            break
