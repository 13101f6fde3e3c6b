"""What a ledger holds after the process that writes it was killed at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from gateway.feedback.event import FOLDER
from gateway.feedback.log import files, read
from gateway.ledger import tables
from gateway.ledger.dialect import LedgerBusy, location
from gateway.ledger.reading import Ledger
from gateway.ledger.service import Writer
from tests.ledger.rig import DAY, START, Declared, HandClock, Rig, open_segment, write

ROOT = Path(__file__).resolve().parents[2]


def contents(data: Path, url: str) -> dict[str, list[tuple[object, ...]]]:
    """Fold what is left, and give all that follows from the logs and the journal; not what was tried and when."""
    clock = HandClock(START + 10 * DAY)
    writer = Writer(url, data, Declared(), clock)
    try:
        # Some wait for the indexed addresses of a segment: twice as long as the longest pause is enough.
        for _ in range(3):
            while writer.step():
                pass
            clock.sleep(7200)
        found: dict[str, list[tuple[object, ...]]] = {}
        for table in (tables.events, tables.labels, tables.tallies, tables.arrivals, tables.volumes, tables.segments):
            columns = [c for c in table.c if c.name not in ("tries", "retry_ns", "changed", "reason")]
            with writer.connection.begin():
                found[table.name] = sorted(map(tuple, writer.connection.execute(select(*columns))), key=repr)
        found["tallies"] = [row for row in found["tallies"] if row[-1]]
        found["arrivals"] = [row for row in found["arrivals"] if row[-1] or row[-2]]
        return found
    finally:
        writer.close()


@pytest.mark.faults
def test_a_writer_killed_before_and_after_every_statement_loses_nothing_and_takes_nothing_twice(tmp_path: Path) -> None:
    """1. Over 90 rounds, a process that folds new events is killed at its 1st, 2nd, ... 90th moment. 2. Another one
    goes on. Result: every event of the logs is there once, and everything is as in a ledger made of the same logs in
    one go.
    """
    rounds = 90
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "tests.ledger.killed", str(tmp_path / "data"), str(rounds)],
        *(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    killed = int(result.stdout.split()[0])
    assert killed == rounds
    data = tmp_path / "data"
    interrupted = contents(data, location(data))
    logged = {item[1].feedback_id for path in files(data / FOLDER) for item in read(path) if len(item) == 2}
    assert [row[0] for row in interrupted["events"]] == sorted(logged)
    assert interrupted == contents(data, f"sqlite:///{tmp_path / 'again.sqlite'}")
    assert {row[0] for row in interrupted["tallies"]} >= {"flights"}


def test_a_transaction_that_fails_leaves_nothing_behind_and_is_done_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = write(open_segment(rig.data), START - DAY)
    said = rig.put(True, prediction_id=prediction)
    place = type(rig.writer.folder)._place
    monkeypatch.setattr(type(rig.writer.folder), "_place", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        rig.step()
    assert rig.states() == {}
    assert rig.ledger.tallies() == {}
    monkeypatch.setattr(type(rig.writer.folder), "_place", place)
    rig.step()
    assert rig.states() == {said: "matched"}
    assert rig.ledger.tallies() == {("flights", "late", "matched"): 1}


def test_only_one_process_writes_a_ledger(rig: Rig) -> None:
    with pytest.raises(LedgerBusy):
        Writer(rig.url, rig.data, rig.declared, rig.clock)
    rig.reopen()


@pytest.fixture
def torn(rig: Rig) -> tuple[Rig, Path, str]:
    """A log whose last event is cut, and the id of the event before it."""
    segment = open_segment(rig.data)
    first = rig.put(True, prediction_id=write(segment, START - DAY))
    rig.put(True, prediction_id=write(segment, START - DAY))
    (path,) = files(rig.data / FOLDER)
    os.truncate(path, path.stat().st_size - 5)
    return rig, path, first


def test_a_log_that_ends_in_half_an_event_is_waited_for_and_then_reported_once(
    torn: tuple[Rig, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    rig, _, first = torn
    rig.step()
    assert rig.states() == {first: "matched"}
    assert [row["torn"] for row in rig.ledger.logs().values()] == [0]
    for _ in range(3):
        rig.clock.sleep(6)
        rig.step()
    (row,) = rig.ledger.logs().values()
    assert row["torn"] > 0
    assert row["reason"] == "a frame is cut"
    assert [record.message for record in caplog.records] == ["feedback log damaged"]


def test_an_event_that_was_half_written_when_it_was_first_seen_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "data")
    try:
        segment = open_segment(rig.data)
        said = [rig.put(True, prediction_id=write(segment, START - DAY)) for _ in range(3)]
        (path,) = files(rig.data / FOLDER)
        whole = path.read_bytes()
        for size in range(8, len(whole), 7):
            path.write_bytes(whole[:size])
            rig.step()
        path.write_bytes(whole)
        rig.step()
        assert rig.states() == dict.fromkeys(said, "matched")
        assert Ledger(rig.url).logs()[path.name]["damaged"] == 0
    finally:
        rig.close()
