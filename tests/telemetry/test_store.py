"""The store: counts survive their writer, add up over writers, and have an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.telemetry.counters import VersionCounters
from gateway.telemetry.store import NAMED, SIZE, VERSIONS, CounterStore, Snapshot


def answer(counters: VersionCounters, times: int = 1) -> None:
    """Count some answered requests of one row."""
    for _ in range(times):
        counters.served([1000], [0], 2000, 500, [4000], 1)
        counters.ran(1, 1000, 2000, 500, 1_700_000_000_000)


def test_a_writer_that_takes_the_place_of_another_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "counters-1"
    first = CounterStore(path)
    answer(first.of("m", 1), 3)
    first.count("http", "/metrics", "200")
    second = CounterStore(path)
    answer(second.of("m", 1), 2)
    answer(second.of("m", 2))
    second.count("http", "/metrics", "200")
    found = Snapshot.of_files([path])
    assert found.version("m", 1).outcome("ok") == 5
    assert found.version("m", 2).outcome("ok") == 1
    assert found.named == {("http", "/metrics", "200"): 2}


@pytest.mark.faults
def test_what_a_killed_writer_counted_is_there(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from gateway.telemetry.store import CounterStore
        store = CounterStore(Path(sys.argv[1]))
        for _ in range(1000):
            store.of("m", 1).served([1], [1], 1, 1, [1], 1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "counters-1"
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], cwd=Path.cwd(), check=False)
    assert child.returncode == -signal.SIGKILL
    assert Snapshot.of_files([path]).version("m", 1).outcome("ok") == 1000


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 3), st.integers(1, 5)), max_size=6), max_size=4
    )
)
def test_a_snapshot_is_the_sum_over_all_stores_in_any_order(written: list[list[tuple[str, int, int]]]) -> None:
    stores = []
    expected: dict[tuple[str, int], int] = {}
    for entries in written:
        store = CounterStore()
        for model, version, times in entries:
            answer(store.of(model, version), times)
            store.count("http", model)
            expected[model, version] = expected.get((model, version), 0) + times
        stores.append(store)
    blocks = [bytes(store._bytes) for store in stores]
    for order in (blocks, blocks[::-1]):
        found = Snapshot.of(order)
        assert {key: counters.outcome("ok") for key, counters in found.versions.items()} == expected
        assert sum(found.named.values()) == sum(map(len, written))
        for counters in found.versions.values():
            assert counters.histogram("total").total == counters.runs == counters.rows
            assert counters.last_inference_ms == 1_700_000_000_000


def test_gauges_are_not_summed_where_a_sum_means_nothing() -> None:
    stores = [CounterStore(), CounterStore()]
    for store, cost in zip(stores, (100, 300), strict=True):
        store.of("m", 1).gauge(2, cost, 10 * cost)
    found = Snapshot.of([store._bytes for store in stores]).version("m", 1)
    assert found.in_flight == 4
    assert found.cost_ns == (300, 3000)


def test_versions_and_names_beyond_the_room_for_them_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "counters-1"
    store = CounterStore(path)
    for version in range(1, VERSIONS + 200):
        answer(store.of("m", version))
    for number in range(NAMED + 50):
        store.count("http", f"/{number}")
    again = CounterStore(path)
    answer(again.of("late", 1))
    again.count("http", "/late")
    found = Snapshot.of_files([path])
    assert len(found.versions) <= VERSIONS
    assert sum(counters.outcome("ok") for counters in found.versions.values()) == VERSIONS + 200
    assert len(found.named) <= NAMED
    assert sum(found.named.values()) == NAMED + 51
    assert path.stat().st_size == SIZE


def test_a_file_that_is_just_being_made_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "counters-1").write_bytes(b"")
    answer(CounterStore(tmp_path / "counters-2").of("m", 1))
    found = Snapshot.of_files(sorted(tmp_path.iterdir()))
    assert found.version("m", 1).outcome("ok") == 1


def test_only_its_owner_can_read_a_file_of_counters(tmp_path: Path) -> None:
    CounterStore(tmp_path / "counters-1")
    assert os.stat(tmp_path / "counters-1").st_mode & 0o077 == 0
