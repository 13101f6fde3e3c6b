"""Recovery: segments whose writer died are cut at their last good record, sealed, and what was lost is told."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.journal import schema
from gateway.journal.frames import MAGIC, Torn, scan
from gateway.journal.reader import Damaged, Segment, segments
from gateway.journal.schema import EXTENT, MAX_EXTENTS, SIDE_SUFFIX, Control
from gateway.journal.segment import boot_id, is_orphan, map_columns, shrink
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
    for path in folder.glob(".*.new"):
        if is_orphan(path):
            path.unlink(missing_ok=True)
    return found


def is_sealed(path: Path) -> bool:
    """Whether a segment is complete. Raises Damaged, or FileNotFoundError."""
    return Segment.open(path).sealed


def recover_one(path: Path) -> Recovered:
    """Cut, verify and seal one segment that has no writer."""
    damage = Segment.open(path).verify()
    torn = _cut_frames(path.with_suffix(SIDE_SUFFIX))
    # Torn frames are what a crash leaves; the rows that they belong to were never answered.
    damage = [text for text in damage if not text.startswith("its frames")]
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        buffer = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    spec = schema.unpack_header(memoryview(buffer))
    columns = map_columns(buffer, spec)
    control: Array = np.frombuffer(buffer, "<i8", len(Control), spec.control_at)
    extents: Array = np.frombuffer(buffer, EXTENT, MAX_EXTENTS, spec.extents_at)
    status = columns["meta", "status"]
    count = int(control[Control.EXTENTS])
    protected = int(extents[count - 1]["stop"]) if count else 0
    cut = 0
    if spec.boot_id != boot_id():
        # Memory that had not reached the disk is gone, and which of it nobody knows: only checksums can be trusted.
        cut = int(np.count_nonzero(status[protected:]))
        status[protected:] = 0
    if torn:
        side = columns["meta", "side"]
        beyond = (side > torn[0]) & (status > 0)
        cut += int(np.count_nonzero(beyond))
        status[beyond] = 0
    written = np.flatnonzero(status)
    rows = int(written[-1]) + 1 if len(written) else 0
    if rows > protected and count < MAX_EXTENTS:
        extents[count] = (rows, schema.checksum(list(columns.values()), protected, rows))
        count += 1
    control[Control.ROWS] = control[Control.TAKEN] = rows
    control[Control.EXTENTS] = count
    control[Control.SEALED_NS] = time.time_ns()
    buffer.flush()
    if rows == 0 and not path.with_suffix(SIDE_SUFFIX).exists():
        path.unlink()
    elif rows < spec.capacity * 0.9:
        shrink(path, spec, columns, rows, extents[:count])
    return Recovered(path.name, len(written), rows - len(written), cut, torn[1] if torn else 0, damage)


def _cut_frames(path: Path) -> tuple[int, int] | None:
    """Cut a file of frames after its last good one: (where, bytes that were cut), None where all are good."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(MAGIC) if data[: len(MAGIC)] == MAGIC else 0
    last = None
    for item in scan(data, start):
        last = item
    if not isinstance(last, Torn):
        return None
    os.truncate(path, last.offset)
    return last.offset - 1, last.lost
