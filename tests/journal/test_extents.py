"""Checksums over stretches of rows: whatever a crash leaves of the last flush, what was flushed before is trusted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import extents
from gateway.journal.extents import Extents
from gateway.journal.schema import EXTENT, MAX_EXTENTS, Control

SECTOR = 512


class Memory:
    """A segment's control page, table and one column, in memory and on a disk that has it as of the last flush."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.live = np.zeros(SECTOR + MAX_EXTENTS * EXTENT.itemsize + capacity, np.uint8)
        self.disk = self.live.copy()
        self.values = np.random.default_rng(capacity).integers(1, 256, capacity, np.uint8)
        self.extents = Extents(*self.parts(self.live), capacity)

    def parts(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        table = data[SECTOR : SECTOR + MAX_EXTENTS * EXTENT.itemsize].view(EXTENT)
        return table, data[: 8 * len(Control)].view("<i8"), [data[-self.capacity :]]

    def write(self, stop: int) -> None:
        self.live[len(self.live) - self.capacity :][:stop] = self.values[:stop]
        self.extents.protect(stop)

    def flush(self, sectors: set[int] | None = None) -> None:
        """All of it, or only some sectors, modulo their number."""
        count = -(-len(self.live) // SECTOR)
        for sector in range(count) if sectors is None else {each % count for each in sectors}:
            part = slice(sector * SECTOR, (sector + 1) * SECTOR)
            self.disk[part] = self.live[part]

    def trusted(self) -> int:
        """Rows that can be trusted after a crash."""
        known, _ = extents.read(*self.parts(self.disk), self.capacity)
        while known and not known[-1].fits:
            known.pop()
        assert all(each.fits for each in known)
        stop = known[-1].stop if known else 0
        assert (self.disk[len(self.disk) - self.capacity :][:stop] == self.values[:stop]).all()
        return stop


@given(
    st.sampled_from([100, 10_000, 60_000]),
    st.lists(st.integers(1, 90), min_size=1, max_size=60),
    st.sets(st.integers(0, 200)) | st.just({0}) | st.just({1}) | st.just({0, 1}),
)
def test_what_was_flushed_is_trusted_whatever_part_of_the_next_flush_comes_to_the_disk(
    capacity: int, steps: list[int], sectors: set[int]
) -> None:
    memory = Memory(capacity)
    flushed = stop = 0
    for step in steps:
        memory.flush()
        flushed = stop
        stop = min(capacity, stop + step)
        memory.write(stop)
    memory.flush(sectors)
    assert memory.trusted() >= flushed
    memory.flush()
    assert memory.trusted() == stop


def test_the_table_lasts_however_often_rows_are_flushed() -> None:
    memory = Memory(3 * MAX_EXTENTS + 1)
    for stop in range(1, memory.capacity + 1):
        memory.write(stop)
    memory.flush()
    assert memory.trusted() == memory.capacity
    assert memory.extents.entries()[-1]["stop"] == memory.capacity


def test_a_flipped_bit_is_told_with_the_rows_of_its_stretch() -> None:
    memory = Memory(10_000)
    for stop in (7, 12, 20):
        memory.write(stop)
    memory.flush()
    memory.disk[len(memory.disk) - memory.capacity + 15] ^= 1
    known, problem = extents.read(*memory.parts(memory.disk), memory.capacity)
    assert problem == ""
    assert [each.words for each in known if not each.fits] == ["rows 12 to 19 do not fit their checksum"]
    assert [(each.start, each.stop) for each in known if each.fits] == [(0, 7), (7, 12)]
