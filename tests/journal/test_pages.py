"""The memory of a segment that many rows go into is there before them."""

from __future__ import annotations

import mmap
import os
import platform
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.journal.pages import make_writable
from gateway.journal.segment import Segment
from gateway.types import Array
from tests.journal.rig import Gateway, document, load, normal
from tests.onnx_models import identity, put

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (5, 14),
    reason="this system cannot be told to make pages writable",
)
WIDTH = 256
FEW = 8
"""What is written with may need a page of its own, and a busy system takes some to write them to the disk."""


def faults_of_writing(array: Array) -> int:
    """How often the first write to a page of an array, which leaves it as it was, goes to the system."""
    flat = array.reshape(-1).view(np.uint8)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    flat[:: mmap.PAGESIZE] |= 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_pages_are_there_before_they_are_written_and_hold_what_they_held(tmp_path: Path) -> None:
    pages = 64
    with open(tmp_path / "file", "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, pages * mmap.PAGESIZE)
        file.write(b"headgate")
        file.flush()
        array = np.frombuffer(mmap.mmap(file.fileno(), pages * mmap.PAGESIZE), np.uint8)
    half = array[: len(array) // 2 + 1]
    make_writable(half)
    make_writable(array[:0])
    assert faults_of_writing(half) <= FEW
    assert faults_of_writing(array[len(half) + mmap.PAGESIZE :]) > FEW
    assert bytes(array[:9]) == b"headgate\0"


@pytest.mark.parametrize(("rows", "is_busy"), [(600, True), (400, False)])
def test_a_segment_that_many_rows_go_into_each_second_is_ready_for_as_many(
    rows: int, is_busy: bool, tmp_path: Path
) -> None:
    """1. Rows come. 2. A second later the journal looks. Result: as many more find memory, where they are many."""
    put(tmp_path / "models", "m", 1, identity(dims=("N", WIDTH)))
    gateway = Gateway(tmp_path, load(tmp_path / "models", "m", 1))
    gateway.send([[document(x=normal(20, WIDTH))]] * (rows // 20))
    (recorder,) = gateway.journal._recorders.values()
    (segment,) = recorder.segments()
    assert isinstance(segment, Segment)
    gateway.journal.tick(segment.opened + 1.0)
    for work in gateway.journal._work:
        work.result(30)
    following = segment.inputs["x"][rows + 20 : 2 * rows]
    assert (faults_of_writing(following) <= FEW) == is_busy
    gateway.close()
