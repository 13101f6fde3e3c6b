"""Processes of a load test: what they may be told, where they run, how they end, how users come and go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loadtests import lineup, shapes
from loadtests.processes import Server, choose_cores, cpu_s, pinned, private_bytes

AFFINITY = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")


def test_workers_are_asked_for_only_where_the_server_knows_them(tmp_path: Path) -> None:
    plain = lineup.serve_command("--models DIR --port N", tmp_path, tmp_path, 1)
    assert "--workers" not in plain
    assert "--admin-port" not in plain
    command = lineup.serve_command("--port N --admin-port N --workers N", tmp_path, tmp_path, 2)
    assert command[-4:] == ["--admin-port", "0", "--workers", "2"]
    with pytest.raises(lineup.NotOffered, match="no --workers"):
        lineup.serve_command("--port N", tmp_path, tmp_path, 2)


def test_the_flags_are_those_of_the_real_command() -> None:
    assert "--models" in lineup.serve_flags()


@AFFINITY
def test_a_pinned_child_runs_on_its_core_and_the_parent_is_where_it_was(tmp_path: Path) -> None:
    cores = choose_cores()
    before = os.sched_getaffinity(0)
    script = (
        "import os, time\n"
        "while time.process_time() < 0.05: pass\n"
        "print('is on http://c:%d' % min(os.sched_getaffinity(0)), flush=True)\n"
        "time.sleep(60)"
    )
    with Server("child", [sys.executable, "-c", script], cores.generator, tmp_path / "log") as server:
        assert server.address == ("c", min(cores.generator))
        assert os.sched_getaffinity(0) == before
        (pid,) = server.processes()
        assert os.sched_getaffinity(pid) == cores.generator
        assert server.cpu_s() == pytest.approx(cpu_s(pid), abs=0.02)
        assert cpu_s(pid) >= 0.04
        assert private_bytes(pid) > 1 << 20
    assert not server.alive
    assert cpu_s(pid) == 0


@AFFINITY
def test_the_affinity_comes_back_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError, match="inside"), pinned({min(before)}):
        raise RuntimeError("inside")
    assert os.sched_getaffinity(0) == before


def test_a_server_that_does_not_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="child did not start: no port is free"):
        Server("child", [sys.executable, "-c", "import sys; sys.exit('no port is free')"], (), tmp_path / "log")


@pytest.mark.parametrize(
    ("shape", "users"),
    [("step", [20, 20, 40, 60, 80, 100, 100, None]), ("soak", [1, 100, 100, 100, 100, 100, 100, None])],
)
def test_users_follow_the_shape_until_the_end(shape: str, users: list[int | None]) -> None:
    moments = [0, 10, 20, 50, 70, 80, 99.9, 100]
    assert [shapes.users_at(shape, moment, 100, 100) for moment in moments] == users
