"""The shared memory of the processes: who writes a row, another one reads it, and rows do not touch."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.workers import notes
from gateway.workers.board import MAX_SLOTS, Board, RunFolder, successor_slot, worker_slots
from gateway.workers.notes import Crash, Culprit, Death, Notes, VersionKey

KEY = VersionKey("flights", 3, "0123456789abcdef")
OTHER = VersionKey("tiny", 12, "fedcba9876543210")


@pytest.fixture
def board(tmp_path: Path) -> tuple[Board, Board]:
    """Two views of one board."""
    return Board(tmp_path / "board"), Board(tmp_path / "board")


def facts(board: Board, slot: int) -> tuple[int, ...]:
    return (
        *(board.pid(slot), board.last_beat_ns(slot), board.acknowledged(slot), int(board.is_ready(slot))),
        *(board.connections(slot), int(board.is_retiring(slot)), board.deaths(slot)),
    )


def test_what_one_process_writes_another_reads_and_no_other_row_changes(board: tuple[Board, Board]) -> None:
    one, two = board
    last = MAX_SLOTS - 1
    one.generation = 7
    for slot in (0, 1, last):
        one.clear(slot, 100 + slot)
        one.beat(slot, 5_000 + slot, 3)
        one.acknowledge(slot, 6, ready=True)
    one.set_connections(1, 9)
    one.retire(last)
    one.count_death(0)
    assert two.generation == 7
    assert facts(two, 0) == (100, 5_000, 6, 1, 3, 0, 1)
    assert facts(two, 1) == (101, 5_001, 6, 1, 9, 0, 0)
    assert facts(two, last) == (100 + last, 5_000 + last, 6, 1, 3, 1, 0)
    assert all(facts(two, slot) == (0,) * 7 for slot in range(2, last))


def test_a_new_process_in_a_slot_is_known_by_its_pid_alone_and_the_deaths_of_the_slot_stay(
    board: tuple[Board, Board],
) -> None:
    one, two = board
    one.clear(4, 44)
    one.beat(4, 1, 1)
    one.acknowledge(4, 2, ready=True)
    one.retire(4)
    one.count_death(4)
    one.clear(4, 45)
    assert facts(two, 4) == (45, 0, 0, 0, 0, 0, 1)


def test_the_fewest_connections_are_those_of_workers_that_accept_and_live(board: tuple[Board, Board]) -> None:
    one, two = board
    for slot, (beat, connections, ready) in enumerate([(90, 5, True), (100, 3, True), (100, 1, False), (89, 0, True)]):
        one.beat(slot, beat, connections)
        one.acknowledge(slot, 1, ready=ready)
    assert two.fewest_connections(range(4), since_ns=90) == 3
    assert two.fewest_connections([0, 2, 3], since_ns=90) == 5
    assert two.fewest_connections([2, 3], since_ns=90) is None


@given(st.integers(1, 64), st.data())
def test_every_worker_has_two_slots_that_are_no_one_elses(workers: int, data: st.DataObject) -> None:
    slots = worker_slots(workers)
    assert 0 not in slots
    assert max(slots) < MAX_SLOTS
    slot = data.draw(st.sampled_from(slots))
    assert successor_slot(slot, workers) in slots
    assert successor_slot(slot, workers) != slot
    assert successor_slot(successor_slot(slot, workers), workers) == slot


def test_every_file_of_a_slot_is_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    each = [make(slot) for slot in (1, 2, 11) for make in (folder.notes, folder.crash, folder.counters, folder.status)]
    shared = [folder.board, folder.plan, folder.control, folder.deaths]
    assert len({*each, *shared}) == 16
    assert {path.parent for path in (*each, *shared)} == {folder.path}


def test_notes_tell_what_is_being_done_and_nothing_of_what_is_idle(tmp_path: Path) -> None:
    worker, supervisor = Notes(tmp_path / "notes"), Notes(tmp_path / "notes")
    assert supervisor.culprits() == ()
    first, second = worker.claim(KEY), worker.claim(OTHER)
    assert supervisor.culprits() == ()
    first.loading()
    assert supervisor.culprits() == (Culprit(KEY, loading=True),)
    first.idle()
    second.running([5, -6])
    assert supervisor.culprits() == (Culprit(OTHER, loading=False, digests=(5, -6)),)
    first.running()
    assert supervisor.culprits() == (Culprit(KEY, loading=False), Culprit(OTHER, loading=False, digests=(5, -6)))
    second.idle()
    second.running()
    assert supervisor.culprits()[1] == Culprit(OTHER, loading=False)


def test_where_the_thread_is_known_only_what_it_did_is_told(tmp_path: Path) -> None:
    block = Notes(tmp_path / "notes")
    block.claim(KEY).running()
    mark = block.claim(OTHER)
    idents: list[int] = []

    def run() -> None:
        mark.running()
        idents.append(threading.get_ident())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [each.key for each in block.culprits(idents[0])] == [OTHER]
    assert [each.key for each in block.culprits(threading.get_ident())] == [KEY]
    assert block.culprits(12345) == ()
    assert len(block.culprits()) == 2


def test_rows_are_used_again_and_a_version_without_a_row_is_simply_not_noted(tmp_path: Path) -> None:
    block = Notes(tmp_path / "notes")
    marks = [block.claim(VersionKey("m", number + 1, "f")) for number in range(notes.ROWS)]
    beyond = block.claim(KEY)
    beyond.running([1])
    beyond.release()
    assert block.culprits() == ()
    marks[17].running()
    marks[17].release()
    assert block.culprits() == ()
    block.claim(KEY).running()
    assert block.culprits() == (Culprit(KEY, loading=False),)


def test_more_digests_than_there_is_room_for_are_cut(tmp_path: Path) -> None:
    block = Notes(tmp_path / "notes")
    block.claim(KEY).running(range(notes.MAX_DIGESTS + 5))
    assert block.culprits()[0].digests == tuple(range(notes.MAX_DIGESTS))


REPORT = """Fatal Python error: Segmentation fault

Thread 0x00007f00000000aa (most recent call first):
  File "a.py", line 1 in f

Current thread 0x00007f00000000bb (most recent call first):
  File "/a b/b.py", line 2 in g
  File "c.py", line 3 in <module>

Thread 0x00007f00000000cc (most recent call first):
  File "d.py", line 4 in h
"""


@pytest.mark.parametrize(
    ("text", "crash"),
    [
        (REPORT, Crash(0x7F00000000BB, ("/a b/b.py:2 g", "c.py:3 <module>"))),
        ("", None),
        ("Fatal Python error: Abort", None),
    ],
)
def test_the_crash_is_that_of_the_current_thread_of_the_report(text: str, crash: Crash | None, tmp_path: Path) -> None:
    assert notes.read_crash(tmp_path / "crash") is None
    (tmp_path / "crash").write_text(text)
    assert notes.read_crash(tmp_path / "crash") == crash


names = st.text("abcdefghijklmnopqrstuvwxyz._-0", min_size=1, max_size=64)
keys = st.builds(VersionKey, names, st.integers(1, 10**18 - 1), st.text("0123456789abcdef", min_size=16, max_size=16))
digests = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple)
culprits = st.builds(Culprit, keys, st.booleans(), digests)
deaths = st.builds(
    Death,
    st.floats(0, 1e9),
    st.integers(1, 128),
    st.sampled_from(["SIGSEGV", "hung"]),
    st.lists(culprits, max_size=3).map(tuple),
)


@settings(max_examples=25)
@given(st.lists(deaths, max_size=5))
def test_deaths_are_read_as_they_were_written_however_the_reading_is_cut(
    tmp_path_factory: pytest.TempPathFactory, written: list[Death]
) -> None:
    path = tmp_path_factory.mktemp("deaths") / "deaths"
    assert notes.read_deaths(path) == ([], 0)
    found, offset = [], 0
    for index, death in enumerate(written):
        notes.append(path, death)
        if index % 2:
            new, offset = notes.read_deaths(path, offset)
            found += new
    new, offset = notes.read_deaths(path, offset)
    assert found + new == written
    assert notes.read_deaths(path, offset) == ([], offset)
    # A line that is just being written is left for later.
    with open(path, "ab") as file:
        file.write(b'{"at_s":1')
    assert notes.read_deaths(path, offset) == ([], offset)
    assert notes.read_deaths(path)[0] == written


@given(keys)
@settings(max_examples=25)
def test_the_name_of_any_version_fits(tmp_path_factory: pytest.TempPathFactory, key: VersionKey) -> None:
    block = Notes(tmp_path_factory.mktemp("notes") / "notes")
    block.claim(key).loading()
    assert block.culprits() == (Culprit(key, loading=True),)
