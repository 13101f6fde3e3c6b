"""What the journal does when the disk is full, or fails, or the machine loses power: who is answered, what is kept."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import NotReady
from gateway.journal import recovery
from gateway.journal.reader import Locator, Segment, segments
from gateway.journal.segment import Segment as WrittenSegment
from tests.journal.world import FIXED, FREE, MIXED, World, after, item, numbers, with_rule


def test_a_full_disk_costs_records_that_are_counted_but_no_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED))
    monkeypatch.setattr("gateway.journal.segment.os.posix_fallocate", _full)
    after(world, numbers((1, 2)), numbers((3, 4), (5, 6)))
    assert world.door.errors == []
    assert world.dropped["dropped"] == 3
    assert world.dropped["errors"] == 1
    assert segments(tmp_path / "journal") == []


def test_records_are_kept_again_soon_after_there_is_room_and_not_when_a_block_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED))
    with monkeypatch.context() as full:
        full.setattr("gateway.journal.segment.os.posix_fallocate", _full)
        after(world, numbers((1, 2)))
    monkeypatch.setattr("gateway.journal.journal.RETRY_S", 0.0)
    world.journal.tick(0.0)
    after(world, numbers((3, 4)))
    assert [record.inputs["x"].tolist() for record in world.records()] == [[3, 4]]
    assert world.dropped["dropped"] == 1


def test_where_records_are_required_a_full_disk_refuses_with_503_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED), required=True)
    with monkeypatch.context() as full:
        full.setattr("gateway.journal.segment.os.posix_fallocate", _full)
        after(world, numbers((1, 2)))
    (error,) = world.door.errors
    assert isinstance(error, NotReady)
    assert (error.status, error.code) == (503, "not-ready")
    monkeypatch.setattr("gateway.journal.journal.RETRY_S", 0.0)
    after(world, numbers((1, 2)))
    assert len(world.records()) == 1


def test_with_commit_nothing_is_answered_before_its_record_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED), flush="commit")
    answers_at_flush: list[int] = []
    flush = WrittenSegment.flush

    def watched(self: WrittenSegment) -> None:
        answers_at_flush.append(len(world.door.bodies))
        flush(self)

    monkeypatch.setattr("gateway.journal.segment.Segment.flush", watched)
    after(world, numbers((1, 2)), numbers((3, 4)))
    assert len(world.door.bodies) == 2
    assert answers_at_flush == [0], "one flush serves all that wait, before the first of them is answered"


def test_after_a_crash_of_the_machine_only_what_has_a_checksum_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.journal.journal.boot_id", lambda: "an earlier boot")
    world = after(World(tmp_path, with_rule(FIXED)), *[numbers((value, 0)) for value in range(5)])
    (path,) = segments(tmp_path / "journal")
    (segment,) = next(iter(world.journal._recorders.values())).segments()
    segment.settle()
    segment.protect()
    before = world.ids()
    after(world, numbers((5, 0)))
    found = recovery.recover_one(path)
    assert (found.rows, found.cut, found.damage) == (5, 1, [])
    locator = Locator(tmp_path)
    assert [locator.record(each).inputs["x"][0] for each in before] == [0, 1, 2, 3, 4]
    assert locator.record(world.ids()[-1]) is None


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def mixed(city: str) -> dict[str, Any]:
    """A request whose record needs a frame."""
    return {"inputs": [item("x", "FP32", [1, 2], [0, 0]), item("city", "BYTES", [1, 1], [city])]}


class Disk:
    """What of a journal has reached the disk: a copy of its files as they were at the last flush of each segment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.flushes = 0
        flush = WrittenSegment.flush

        def copied(segment: WrittenSegment) -> None:
            flush(segment)
            self.flushes += 1
            for path in (segment.path, segment.path.with_suffix(".side")):
                if path.exists():
                    shutil.copy(path, folder)

        monkeypatch.setattr("gateway.journal.segment.Segment.flush", copied)


def test_with_commit_what_was_answered_is_found_after_the_machine_has_lost_its_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Requests are answered, each after a flush of its own, most of them with names. 2. The power fails: what was
    flushed is left. 3. The machine boots. Result: every answered prediction is found, as it was answered.
    """
    disk = Disk(tmp_path / "disk" / "journal", monkeypatch)
    monkeypatch.setattr("gateway.journal.journal.boot_id", lambda: "an earlier boot")
    world = World(tmp_path / "live", with_rule(FIXED), flush="commit")
    for value in range(100):
        after(world, numbers((value, -value)), request_id=f"r{value}" if value % 3 else "")
    assert disk.flushes >= 100
    (found,) = recovery.recover(disk.folder)
    assert (found.rows, found.cut, found.torn_bytes, found.damage) == (100, 0, 0, [])
    locator = Locator(tmp_path / "disk")
    records = [locator.record(name) for name in world.ids()]
    assert [record and record.inputs["x"].tolist() for record in records] == [[v, -v] for v in range(100)]


def test_with_commit_a_request_that_may_wait_holds_up_no_other(tmp_path: Path) -> None:
    """Rows are answered in the order of each lane: one that waits longer has its row in another segment."""
    world = World(tmp_path, with_rule(FREE), flush="commit")
    slow, quick = ({"inputs": [item("x", "FP32", [1, 1], [value])]} for value in (1, 2))
    after(world, slow | {"parameters": {"priority": 9}}, quick)
    assert [json.loads(body)["outputs"][0]["data"] for body in world.door.bodies] == [[2], [1]]
    assert len({name[:28] for name in world.ids()}) == 2


def _failing(*_: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_with_commit_an_answer_whose_flush_failed_goes_out_and_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED), flush="commit")
    after(world, numbers((0, 0)))
    with monkeypatch.context() as failing:
        failing.setattr("gateway.journal.segment.Segment.flush", _failing)
        after(world, numbers((1, 2)), numbers((3, 4), (5, 6)))
    assert world.door.errors == []
    assert world.dropped == {"dropped": 3, "errors": 1}
    monkeypatch.setattr("gateway.journal.journal.RETRY_S", 0.0)
    after(world, numbers((7, 8)))
    assert world.dropped == {"dropped": 3, "errors": 1}
    assert world.ids()[-1][:28] != world.ids()[0][:28], "nothing more is trusted to a file that failed once"


def test_where_records_are_required_an_answer_whose_flush_failed_is_refused_with_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, with_rule(FIXED), flush="commit", required=True)
    with monkeypatch.context() as failing:
        failing.setattr("gateway.journal.segment.Segment.flush", _failing)
        after(world, numbers((1, 2)), numbers((3, 4), (5, 6)))
    assert [(error.status, error.code) for error in world.door.errors] == [(503, "not-ready")] * 2
    monkeypatch.setattr("gateway.journal.journal.RETRY_S", 0.0)
    after(world, numbers((7, 8)))
    assert len(world.door.bodies) == 1
    assert world.pipeline.admission.in_flight == 0


@pytest.mark.parametrize("required", [False, True])
def test_a_disk_that_is_full_for_frames_costs_what_a_disk_costs_that_is_full_for_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    """Strings have no columns: their segment has room, and the file beside it has none."""
    world = World(tmp_path, with_rule(MIXED), required=required)
    after(world, mixed("Oslo"))
    with monkeypatch.context() as full:
        full.setattr("gateway.journal.frames.os.pwrite", _full)
        after(world, mixed("Rome"), mixed("Bern"))
    if required:
        assert [error.status for error in world.door.errors] == [503, 503]
        assert len(world.door.bodies) == 1
    else:
        assert world.door.errors == []
        assert world.dropped["dropped"] == 2
    assert world.dropped["errors"] >= 1
    after(world, mixed("Kyiv"))
    assert [str(record.inputs["city"][0]) for record in world.records() if record.inputs.get("city")] == [
        "Oslo",
        "Kyiv",
    ]


def test_a_segment_is_sealed_also_when_its_frames_have_grown_as_large_as_it_may_be(tmp_path: Path) -> None:
    """1. A string of 110 kB in each request, many at once. 2. Requests that are refused. Result: no file of frames is
    much larger than a segment may be, and everything is found.
    """
    limit = 1 << 20
    world = World(tmp_path, with_rule(MIXED), segment_bytes=limit)
    for _ in range(5):
        after(world, *[mixed("x" * 110_000) for _ in range(10)])
    assert len(world.records()) == 50
    after(world, *[{"inputs": []} for _ in range(9000)])
    world.pipeline.close()
    assert sum(1 for path in segments(tmp_path / "journal") for _ in Segment.open(path).frames()) > 9000
    sizes = [path.stat().st_size for path in (tmp_path / "journal").glob("*.side")]
    assert sum(size > limit for size in sizes) >= 5
    # A batch is one frame, and so the least that can be beyond the limit.
    assert max(sizes) < limit + 10 * 111_000
