"""What a crash tore or a disk altered is told, and costs nothing else: in recovery, in reading, in the archive."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gateway.control.chores import recover_journal
from gateway.journal import recovery, segment, shelves
from gateway.journal.frames import MAGIC, Frame, scan
from gateway.journal.keeper import Keeper
from gateway.journal.reader import Damaged, Locator, Segment, segments
from gateway.journal.recovery import Recovered
from gateway.journal.schema import Control
from gateway.settings import Settings
from tests.journal.world import FIXED, MIXED, World, after, item, numbers, with_rule

COUNT = 12


def mixed(value: int) -> dict[str, Any]:
    return {"inputs": [item("x", "FP32", [1, 2], [value, -value]), item("city", "BYTES", [1, 1], [f"city {value}"])]}


class Left:
    """What a writer left that is gone: a segment of rows with a frame each, whose file is `side`."""

    def __init__(self, folder: Path) -> None:
        world = World(folder / "live", with_rule(MIXED))
        for value in range(COUNT):
            after(world, mixed(value))
        world.journal.tick(1.0)
        self.ids = world.ids()
        self.data = folder / "left"
        # A copy: nobody holds its lock.
        shutil.copytree(folder / "live", self.data)
        (self.path,) = segments(self.data / "journal")
        self.side = self.path.with_suffix(".side")
        self.frames = [item for item in scan(self.side.read_bytes()) if isinstance(item, Frame)]

    def flip(self, at: int, path: Path | None = None) -> None:
        """Alter one bit."""
        path = path or self.side
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)

    def recover(self) -> Recovered:
        (found,) = recovery.recover(self.data / "journal")
        assert recovery.recover(self.data / "journal") == []
        return found

    def cities(self) -> list[str | None]:
        """What is found by each id; None where nothing can be read."""
        found: list[str | None] = []
        for name in self.ids:
            try:
                record = Locator(self.data).record(name)
                found.append(None if record is None else str(record.inputs["city"][0]))
            except Damaged:
                found.append(None)
        return found


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path)


CITIES = [f"city {value}" for value in range(COUNT)]


@pytest.mark.parametrize("place", [0, 3, 11], ids=["length", "length, large", "payload"])
@pytest.mark.parametrize("number", [0, 5, COUNT - 1], ids=["first", "middle", "last"])
def test_a_flipped_bit_in_a_frame_costs_that_frame_alone(left: Left, number: int, place: int) -> None:
    """Result: it is told, nothing is cut or deleted, and the rows before and behind it are found as they were."""
    size = left.side.stat().st_size
    left.flip(left.frames[number].offset + place)
    found = left.recover()
    assert (found.rows, found.cut, found.torn_bytes) == (COUNT, 0, 0)
    (words,) = found.damage
    assert f"frames are bad from byte {left.frames[number].offset} to" in words
    assert left.side.stat().st_size == size
    assert left.cities() == [None if at == number else city for at, city in enumerate(CITIES)]
    assert [frame["row"] for _, frame in Segment.open(left.path).frames()] == [
        row for row in range(COUNT) if row != number
    ]


def test_a_file_of_frames_that_begins_wrong_is_read_all_the_same(left: Left) -> None:
    left.flip(2)
    assert left.recover().damage == [
        f"its frames are bad from byte 0 to {len(MAGIC)}: it does not begin as a file of frames"
    ]
    assert left.cities() == CITIES


def test_a_torn_end_is_cut_told_and_counted(left: Left) -> None:
    """What a killed process was writing had not been answered: it is no damage."""
    size = left.side.stat().st_size
    left.side.write_bytes(left.side.read_bytes() + b"\x40\x00\x00\x00torn")
    counted: Counter[str] = Counter()
    told: set[str] = set()
    recover_journal(left.data / "journal", lambda what, number: counted.update({what: number}), told)
    assert counted == {"segments-recovered": 1, "torn": 1, "cut": 0, "damaged": 0}
    assert told == set()
    assert left.side.stat().st_size == size
    assert left.cities() == CITIES
    assert Segment.open(left.path).verify() == []


@pytest.mark.parametrize("is_other_boot", [False, True])
def test_who_reads_a_segment_while_it_is_recovered_sees_what_it_has_come_to(
    left: Left, monkeypatch: pytest.MonkeyPatch, is_other_boot: bool
) -> None:
    """1. Monitors have read what was published; its writer is killed before it publishes the rest. 2. Recovery puts
    another file in its place. Result: they read on in the file that they hold.
    """
    if is_other_boot:
        monkeypatch.setattr("gateway.journal.recovery.boot_id", lambda: "a later boot")
        os.truncate(left.side, left.frames[9].offset)
    data = bytearray(left.path.read_bytes())
    at = Segment.open(left.path).spec.control_at + 8 * Control.ROWS
    data[at : at + 8] = (5).to_bytes(8, "little")
    left.path.write_bytes(data)
    held = Segment.open(left.path)
    assert (held.rows(), held.sealed) == (5, False)
    found = left.recover()
    assert (held.rows(), held.sealed) == (Segment.open(left.path).rows(), True) == (COUNT, True)
    assert found.rows == (9 if is_other_boot else COUNT)
    assert int((held.column("status") == 200).sum()) == found.rows


def test_after_a_crash_of_the_machine_rows_whose_frames_did_not_come_to_the_disk_are_cut(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.journal.recovery.boot_id", lambda: "a later boot")
    with left.side.open("r+b") as file:
        file.truncate(left.frames[9].offset + 5)
    found = left.recover()
    assert (found.rows, found.cut, found.torn_bytes, found.damage) == (9, 3, 5, [])
    assert left.cities() == [*CITIES[:9], None, None, None]
    assert Segment.open(left.path).verify() == []


def test_a_segment_with_a_damaged_frame_is_archived_with_what_is_whole_and_stays(left: Left) -> None:
    left.flip(left.frames[4].offset + 20)
    left.recover()
    keeper = Keeper(Settings(data=left.data))
    first = keeper.step()
    assert first.done == {"archive": 1}
    assert len(first.troubles) == 1
    assert "frames are bad" in first.troubles[0]
    assert Keeper(Settings(data=left.data)).step().done == {}, "what is damaged is not deleted"
    table = pd.read_parquet(left.data / "archive")
    assert table["input_city"].astype(object).where(table["input_city"].notna(), None).tolist() == [
        None if at == 4 else city for at, city in enumerate(CITIES)
    ]
    assert [row[0] for row in table["input_x"]] == list(range(COUNT))
    assert table["extra"].notna().tolist() == [at == 4 for at in range(COUNT)]
    later = Keeper(Settings(data=left.data, journal_inputs_days=1), now_ns=lambda: left_ns(left))
    assert later.step().done == {"release": 1, "strip": 1}
    left.path.unlink(missing_ok=True)
    record = Locator(left.data).record(left.ids[4])
    assert record is not None
    assert record.outputs["y"].tolist() == [4, -4]


@pytest.mark.parametrize("sealed_before", [False, True])
@pytest.mark.parametrize("where", ["a row", "a frame", "the header"])
def test_damage_is_counted_once_whoever_finds_it_first(left: Left, where: str, sealed_before: bool) -> None:
    if sealed_before:
        left.recover()
    column = Segment.open(left.path).spec.group("input")[0]
    match where:
        case "a row":
            left.flip(column.offset + 3 * column.row_bytes, left.path)
        case "a frame":
            left.flip(left.frames[4].offset + 20)
        case "the header":
            left.flip(40, left.path)
    counted: Counter[str] = Counter()

    def count(what: str, number: int) -> None:
        counted[what] += number

    keeper = Keeper(Settings(data=left.data), count=count)
    for _ in range(2):
        recover_journal(left.data / "journal", count, keeper.told)
        keeper.step()
    assert counted["damaged"] == 1
    assert len(keeper.told) == 1


def left_ns(left: Left) -> int:
    """Two days after a segment was opened."""
    return shelves.opened_ns(left.path.stem) + 2 * 86_400 * 10**9


def test_a_flipped_bit_in_a_row_is_told_and_the_segment_is_kept_as_it_is(left: Left) -> None:
    spec = Segment.open(left.path).spec
    column = spec.group("input")[0]
    left.flip(column.offset + 3 * column.row_bytes, left.path)
    found = left.recover()
    assert (found.rows, found.cut) == (COUNT, 0)
    assert len(found.damage) == 1
    assert "do not fit their checksum" in found.damage[0]
    assert Segment.open(left.path).verify() == found.damage
    assert Keeper(Settings(data=left.data)).step().done == {}


def test_a_segment_whose_sealing_was_cut_short_is_sealed_and_what_it_left_is_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A writer is killed while a smaller file is made in place of its segment. 2. Recovery."""

    class Killed(BaseException):
        """Stands for the end of the process."""

    def killed(*_: Any) -> None:
        raise Killed

    world = World(tmp_path, with_rule(FIXED))
    after(world, numbers((1, 2)))
    (written,) = next(iter(world.journal._recorders.values())).segments()
    with monkeypatch.context() as short:
        short.setattr("gateway.journal.segment.os.replace", killed)
        with pytest.raises(Killed):
            written.finish()
    (scratch,) = (tmp_path / "journal").glob(".*.shrinking")
    assert scratch.stat().st_size > 0
    recovery.recover(tmp_path / "journal")
    assert not scratch.exists()
    assert Segment.open(written.path).sealed
    assert len(world.records()) == 1


def test_a_smaller_file_that_is_being_made_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, with_rule(FIXED))
    after(world, numbers((1, 2)))
    fill = segment._fill
    seen = []

    def watched(*parts: Any) -> None:
        recovery.recover(tmp_path / "journal")
        seen.append(list((tmp_path / "journal").glob(".*.shrinking")))
        fill(*parts)

    monkeypatch.setattr("gateway.journal.segment._fill", watched)
    world.pipeline.close()
    assert [len(each) for each in seen] == [1]
    assert len(world.records()) == 1


@pytest.mark.parametrize("moment", ["before its lock", "after its lock"])
def test_a_segment_that_is_just_being_made_is_not_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The control process looks for what dead workers left, and a worker makes a file: it may not have its lock yet."""
    lock, looks = fcntl.flock, []

    def locked(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not looks:
            looks.append(moment)
            if moment == "before its lock":
                recovery.recover(tmp_path / "journal")
            lock(descriptor, operation)
            if moment == "after its lock":
                recovery.recover(tmp_path / "journal")
        else:
            lock(descriptor, operation)

    monkeypatch.setattr("gateway.journal.segment.fcntl.flock", locked)
    world = World(tmp_path, with_rule(FIXED))
    after(world, numbers((1, 2)))
    assert looks == [moment]
    assert len(world.records()) == 1
    assert list((tmp_path / "journal").glob(".*")) == []
    world.pipeline.close()
