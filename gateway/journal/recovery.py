"""Recovery: segments whose writer died are cut at their last good record, sealed, and what was lost is told."""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.journal.extents import Extent, checksum
from gateway.journal.frames import MAGIC, Torn
from gateway.journal.reader import Damaged, Segment, segments
from gateway.journal.schema import EXTENT, Control, SegmentSpec
from gateway.journal.segment import boot_id, is_orphan, map_columns, shrink, sweep
from gateway.types import Array

DAMAGED_SUFFIX = ".damaged"
"""What is added to the name of a segment that cannot be read, so that it is looked at once and kept."""


class Recovered(NamedTuple):
    """What became of one segment: `rows` written, `unanswered` ones that were taken but not, `cut` ones that cannot be
    trusted, bytes of frames that were torn off, and in words what does not fit its checksum.
    """

    name: str
    rows: int
    unanswered: int
    cut: int
    torn_bytes: int
    damage: list[str]


def recover(folder: Path) -> list[Recovered]:
    """Seal every segment in `folder` that nobody writes any more, and verify it. Raises OSError."""
    found = []
    for path in segments(folder):
        try:
            if not is_sealed(path) and is_orphan(path):
                found.append(recover_one(path))
        except Damaged as error:
            path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
            found.append(Recovered(path.name, 0, 0, 0, 0, [str(error)]))
        except FileNotFoundError:  # it was sealed and replaced, or removed, in the meantime
            continue
    for scratch in (*folder.glob(".*.new"), *folder.glob(".*.shrinking")):
        with suppress(FileNotFoundError):  # it has its name now
            sweep(scratch)
    return found


def is_sealed(path: Path) -> bool:
    """Whether a segment is complete. Raises Damaged, or FileNotFoundError."""
    return Segment.open(path).sealed


def recover_one(path: Path) -> Recovered:
    """Cut, verify and seal one segment that has no writer: a file of just its good rows takes its place.

    Whoever is killed in the middle of this leaves what was there, to be recovered again. What does not fit its
    checksum stays as it is.
    """
    segment = Segment.open(path)
    with path.open("r+b") as file:
        old = mmap.mmap(file.fileno(), segment.spec.size)
    written = segment.column("status") > 0
    known, problem = segment.checksums()
    torn, bad = _split(segment.bad_frames(), _size(segment.side_path))
    end = _size(segment.side_path) - torn.lost
    # Rows of frames that are not there.
    beyond = written & (segment.column("side") >= max(1, end))
    if segment.spec.boot_id != boot_id():
        # Memory that had not reached the disk is gone, and which of it nobody knows: only checksums can be trusted.
        while known and not known[-1].fits:
            known.pop()
        cut = beyond.copy()
        cut[_stop(known) :] = True
        problem = ""
    else:
        cut = np.zeros_like(written)
        if beyond.any():
            # A process that is killed tears frames of rows that it has not answered yet: these were whole once.
            torn, bad = torn._replace(lost=0), [*bad, torn._replace(reason=torn.reason or "frames are missing")]
    damage = [each.words for each in known if not each.fits] + [problem] * bool(problem) + [each.words for each in bad]
    if torn.lost:
        _cut_frames(segment.side_path, torn.offset)
    good = written & ~cut
    rows = max(_stop(known), int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0)
    if rows == 0 and not segment.side_path.exists():
        path.unlink()
    else:
        columns = segment.columns | {("meta", "status"): np.where(good, segment.column("status"), 0)}
        shrink(path, segment.spec, columns, rows, _table(known, cut, list(columns.values()), rows))
    _tell(old, segment.spec, good, rows)
    lost = int(np.count_nonzero(written & cut))
    answered = int(np.count_nonzero(good))
    unanswered = rows - answered - int(np.count_nonzero((written & cut)[:rows]))
    return Recovered(path.name, answered, unanswered, lost, torn.lost, damage)


def _tell(old: mmap.mmap, spec: SegmentSpec, good: Array, rows: int) -> None:
    """Have those who hold the old file see what it has come to: monitors read on where they are."""
    map_columns(old, spec)["meta", "status"][~good] = 0
    control: Array = np.frombuffer(old, "<i8", len(Control), spec.control_at)
    control[Control.ROWS] = control[Control.TAKEN] = rows
    control[Control.SEALED_NS] = time.time_ns()


def _split(bad: list[Torn], size: int) -> tuple[Torn, list[Torn]]:
    """The end of a file of frames that is torn (perhaps no byte of it), and what is bad before that."""
    if bad and bad[-1].offset + bad[-1].lost == size:
        return bad[-1], bad[:-1]
    return Torn(size, 0, ""), bad


def _cut_frames(path: Path, size: int) -> None:
    if size < len(MAGIC):
        path.unlink()
    else:
        os.truncate(path, size)


def _table(known: list[Extent], cut: Array, columns: list[Array], rows: int) -> Array:
    """The checksums of a recovered segment: those that it had, new ones where rows were cut, one for what had none."""
    entries = []
    for each in known:
        is_other = each.fits and cut[each.start : each.stop].any()
        entries.append((each.stop, checksum(columns, each.start, each.stop) if is_other else each.checksum))
    if rows > _stop(known):
        entries.append((rows, checksum(columns, _stop(known), rows)))
    return np.array(entries, EXTENT)


def _stop(known: list[Extent]) -> int:
    return known[-1].stop if known else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
