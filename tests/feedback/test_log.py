"""Logs: what was written is read in order, files are rolled, and a torn end costs nothing before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.feedback import log as logs
from gateway.feedback.event import Event
from gateway.feedback.log import Log
from gateway.journal.frames import FrameFile, Torn


class FakeClock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(number: int, **more: object) -> Event:
    return Event(feedback_id=f"{number:032x}", received_ns=number + 1, **more)  # type: ignore[arg-type]


def read_all(folder: Path) -> list[Event]:
    found = []
    for path in logs.files(folder):
        for item in logs.read(path):
            assert not isinstance(item, Torn), item
            found.append(item[1])
    return found


def test_events_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "feedback", 1 << 20, 3600)
    events = [event(n, value=n % 2 == 0, rationale="x" * n) for n in range(50)]
    log.write(events[:20])
    assert read_all(tmp_path / "feedback") == events[:20]
    log.write(events[20:])
    log.close()
    assert read_all(tmp_path / "feedback") == events
    assert len(logs.files(tmp_path / "feedback")) == 1


def test_no_file_is_made_before_there_is_an_event(tmp_path: Path) -> None:
    Log(tmp_path / "feedback", 1 << 20, 3600).close()
    assert not (tmp_path / "feedback").exists()
    assert logs.files(tmp_path / "feedback") == []


def test_a_file_is_left_when_it_is_large_and_never_written_again(tmp_path: Path) -> None:
    log = Log(tmp_path, 1000, 3600)
    events = [event(n, rationale="x" * 300) for n in range(12)]
    sizes: dict[Path, int] = {}
    left: set[Path] = set()
    for each in events:
        log.write([each])
        found = {path: path.stat().st_size for path in logs.files(tmp_path)}
        grown = {path for path, size in found.items() if sizes.get(path) != size}
        assert len(grown) == 1
        assert not grown & left
        left, sizes = set(found) - grown, found
    log.close()
    assert len(sizes) == 4
    assert sorted(read_all(tmp_path), key=lambda each: each.received_ns) == events


def test_a_file_is_left_when_it_is_old(tmp_path: Path) -> None:
    clock = FakeClock()
    log = Log(tmp_path, 1 << 20, 60, clock)
    log.write([event(0)])
    clock.now = 59
    log.write([event(1)])
    assert len(logs.files(tmp_path)) == 1
    clock.now = 60
    log.write([event(2)])
    log.close()
    assert len(logs.files(tmp_path)) == 2


def test_reading_goes_on_from_a_position(tmp_path: Path) -> None:
    log = Log(tmp_path, 1 << 20, 3600)
    log.write([event(0), event(1)])
    path = logs.files(tmp_path)[0]
    end = path.stat().st_size
    assert list(logs.read(path, end)) == []
    log.write([event(2)])
    assert list(logs.read(path, end)) == [(end, event(2))]
    log.close()


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_torn_end_is_told_and_costs_nothing_before_it(tmp_path: Path, cut: int) -> None:
    log = Log(tmp_path, 1 << 20, 3600)
    log.write([event(0), event(1)])
    log.close()
    path = logs.files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    *good, last = logs.read(path)
    assert [each[1] for each in good if not isinstance(each, Torn)] == [event(0)]
    assert isinstance(last, Torn)
    assert last.lost > 0


@pytest.mark.parametrize(("content", "torn"), [(b"", False), (b"HG", True), (b"something else altogether", True)])
def test_a_file_that_is_no_log_is_told(tmp_path: Path, content: bytes, torn: bool) -> None:
    path = tmp_path / "x.feedback"
    path.write_bytes(content)
    assert [isinstance(item, Torn) for item in logs.frames(path)] == [True] * torn


def test_after_a_failed_write_the_next_events_go_to_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, 1 << 20, 3600)
    log.write([event(0)])

    def fail(self: FrameFile) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(FrameFile, "sync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            log.write([event(1)])
    log.write([event(2)])
    log.close()
    assert len(logs.files(tmp_path)) == 2
    # Two files of one millisecond have no order.
    assert max(read_all(tmp_path), key=lambda each: each.received_ns) == event(2)


@pytest.mark.parametrize("before", [0, 1])
def test_a_full_disk_leaves_no_files_and_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """1. The disk is full, before or after the first event, and fifty events are refused. 2. There is room again.
    Result: one file that holds the first event, if there was one, and those that came afterwards.
    """
    log = Log(tmp_path, 1 << 20, 3600)
    events = [event(n) for n in range(before + 2)]
    for each in events[:before]:
        log.write([each])
    real = os.pwrite
    descriptors = len(os.listdir("/proc/self/fd"))

    def full(descriptor: int, data: bytes, offset: int) -> int:
        # Half of it is written before there is no more room.
        if offset % 2:
            raise OSError(28, "No space left on device")
        real(descriptor, data[:1], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        for _ in range(50):
            with pytest.raises(OSError, match="No space left"):
                log.write([event(99)])
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(logs.files(tmp_path)) == before
    for each in events[before:]:
        log.write([each])
    log.close()
    assert read_all(tmp_path) == events
    assert len(logs.files(tmp_path)) == 1
