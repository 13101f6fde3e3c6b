"""The table of idempotency keys against a dictionary, between processes, after a crash, and when it is full."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feedback import log as logs
from gateway.feedback.event import Event, keyed_id
from gateway.feedback.keys import WAYS, KeyTable, Known, name_of
from gateway.feedback.log import Log

BOOT = "0f4b9a3e-0000-4000-8000-000000000000"


def opened(folder: Path, capacity: int = 1000, boot: str = BOOT) -> KeyTable:
    folder.mkdir(parents=True, exist_ok=True)
    table = KeyTable(folder / "keys", capacity, boot)
    table.open(folder)
    return table


def known(number: int, status: str = "matched") -> Known:
    return Known(number.to_bytes(16, "big"), keyed_id(str(number)), status)


def logged(folder: Path, numbers: range, key: str = "k{}") -> None:
    log = Log(folder, 1 << 20, 3600)
    log.write(
        [
            Event(
                feedback_id=keyed_id(str(n)),
                received_ns=n + 1,
                idempotency_key=key.format(n),
                digest=n.to_bytes(16, "big").hex(),
                status="pending",
            )
            for n in numbers
        ]
    )
    log.close()


def test_what_is_put_is_found_and_nothing_else(tmp_path: Path) -> None:
    table = opened(tmp_path)
    for number in range(1000):
        table.put(name_of("", f"k{number}"), known(number, ("matched", "pending", "late")[number % 3]), number + 1)
    for number in range(1000):
        expected = known(number, ("matched", "pending", "late")[number % 3])
        assert table.get(name_of("", f"k{number}")) == expected
    assert table.get(name_of("", "k1000")) is None
    assert table.get(name_of("somebody", "k1")) is None
    assert table.forgotten == 0
    table.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1000), st.integers(0, 5)), max_size=80))
def test_of_two_uses_of_a_key_the_earlier_counts(uses: list[tuple[int, int, int]]) -> None:
    """Against a dictionary, with room for all: whatever the order in which uses come in."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        table = opened(Path(folder))
        oracle: dict[int, tuple[int, int]] = {}
        for key, stamp, said in uses:
            table.put(name_of("", str(key)), known(said), stamp)
            if key not in oracle or stamp < oracle[key][0]:
                oracle[key] = (stamp, said)
        for key in range(41):
            expected = known(oracle[key][1]) if key in oracle else None
            assert table.get(name_of("", str(key))) == expected
        assert table.forgotten == 0
        table.close()


def test_a_full_table_forgets_the_oldest_and_counts_them(tmp_path: Path) -> None:
    table = opened(tmp_path, capacity=100)
    places = table.buckets * WAYS
    total = 4 * places
    for number in range(total):
        table.put(name_of("", str(number)), known(number), number + 1)
    kept = [number for number in range(total) if table.get(name_of("", str(number))) is not None]
    assert table.forgotten == total - len(kept)
    assert len(kept) <= places
    assert set(range(total - places // 4, total)) <= set(kept)
    assert (tmp_path / "keys").stat().st_size < 128 * places
    table.close()


def test_a_key_that_is_older_than_all_of_a_full_bucket_is_forgotten_at_once(tmp_path: Path) -> None:
    table = opened(tmp_path, capacity=100)
    for number in range(4 * table.buckets * WAYS):
        table.put(name_of("", str(number)), known(number), number + 1000)
    before = table.forgotten
    table.put(name_of("", "old"), known(1), 1)
    assert table.get(name_of("", "old")) is None
    assert table.forgotten == before + 1
    table.close()


def test_the_next_process_finds_what_the_last_one_left(tmp_path: Path) -> None:
    table = opened(tmp_path)
    table.put(name_of("", "a"), known(1), 1)
    table.close()
    table = opened(tmp_path)
    assert table.get(name_of("", "a")) == known(1)
    table.close()


@pytest.mark.parametrize("change", ["boot", "capacity", "missing", "cut", "half made"])
def test_the_table_is_made_again_from_the_logs(tmp_path: Path, change: str) -> None:
    """1. A table with a key of no event. 2. The machine restarts, or the file is not what it should be.
    Result: it holds the keys of the logs and no other.
    """
    logged(tmp_path, range(30))
    table = opened(tmp_path)
    table.put(name_of("", "lost"), known(1), 1)
    table.close()
    path = tmp_path / "keys"
    if change == "missing":
        path.unlink()
    elif change == "cut":
        path.write_bytes(b"")
    elif change == "half made":
        with path.open("r+b") as file:
            file.seek(80)
            file.write(bytes(8))
    boot = "another" if change == "boot" else BOOT
    table = opened(tmp_path, capacity=2000 if change == "capacity" else 1000, boot=boot)
    assert table.get(name_of("", "lost")) is None
    for number in range(30):
        assert table.get(name_of("", f"k{number}")) == known(number, "pending")
    table.close()


def test_of_more_logged_keys_than_fit_the_newest_are_kept(tmp_path: Path) -> None:
    for start in range(0, 4000, 500):
        logged(tmp_path, range(start, start + 500))
    table = opened(tmp_path, capacity=100)
    places = table.buckets * WAYS
    assert all(table.get(name_of("", f"k{number}")) is not None for number in range(4000 - places // 4, 4000))
    assert table.forgotten == 0
    table.close()


def test_what_cannot_be_read_in_a_log_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from gateway.journal.frames import FrameFile

    logged(tmp_path, range(3))
    file = FrameFile(tmp_path / "zz.feedback")
    file.append(
        b"no event", b'{"feedback_id":"x","received_ns":1,"idempotency_key":"odd","status":"odd","digest":"zz"}'
    )
    file.close()
    path = logs.files(tmp_path)[-1]
    path.write_bytes(path.read_bytes() + b"torn")
    table = opened(tmp_path)
    assert table.get(name_of("", "k2")) is not None
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events == ["feedback-unreadable"] * 2 + ["feedback-torn", "keys-rebuilt"]
    table.close()


def test_a_bucket_is_held_against_other_openings_until_it_is_let_go(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    name, held, order = name_of("", "a"), threading.Event(), []

    def second() -> None:
        held.wait()
        with two.holding([name]):
            order.append("two")
            assert two.get(name) == known(1)

    thread = threading.Thread(target=second)
    thread.start()
    with one.holding([name]):
        held.set()
        thread.join(0.05)
        assert thread.is_alive()
        order.append("one")
        one.put(name, known(1), 1)
    thread.join(10)
    assert order == ["one", "two"]
    one.close()
    two.close()


def test_a_process_that_is_killed_gives_up_its_buckets(tmp_path: Path) -> None:
    table = opened(tmp_path)
    script = f"""
import sys
from pathlib import Path
from gateway.feedback.keys import KeyTable, name_of
table = KeyTable(Path({str(tmp_path / "keys")!r}), 1000, {BOOT!r})
table.open(Path({str(tmp_path)!r}))
with table.holding([name_of("", str(n)) for n in range(100)]):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with table.holding([name_of("", "5")]):
        pass
    table.close()


def test_two_processes_that_open_at_once_make_one_table(tmp_path: Path) -> None:
    logged(tmp_path, range(2000))
    script = f"""
import sys
from pathlib import Path
from gateway.feedback.keys import KeyTable, name_of
table = KeyTable(Path({str(tmp_path / "keys")!r}), 2000, {BOOT!r})
table.open(Path({str(tmp_path)!r}))
print(sum(table.get(name_of("", f"k{{n}}")) is not None for n in range(2000)))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ)) for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [b"2000\n"] * 3
