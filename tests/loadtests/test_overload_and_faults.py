"""The judges of overload and faults: what must fail them, and that they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.faults import admin_of, p99_ms
from loadtests.overload import Tally, faults
from loadtests.processes import ROOT, environment


def tally(**seconds: list[float]) -> Tally:
    """Replies by status, as in s429=[0.001]."""
    return Tally({int(name[1:]): times for name, times in seconds.items()})


HELD = {"s200": [0.1] * 50, "s429": [0.001] * 200}


@pytest.mark.parametrize(
    ("found", "goodput", "words"),
    [
        (tally(**HELD), 90.0, []),
        (tally(**HELD), 89.0, ["0.89 of the best rate"]),
        (tally(**HELD | {"s429": [0.051] * 200}), 95.0, ["refusals took 51.0 ms"]),
        (tally(**HELD | {"s503": [0.001], "s504": [0.04]}), 95.0, []),
        (tally(**HELD | {"s500": [0.001]}), 95.0, ["statuses [500]"]),
        (tally(s200=[0.1] * 50), 95.0, ["nothing was refused"]),
        (Tally(tally(**HELD).times, broken=2), 50.0, ["2 broken connections", "0.50 of the best rate"]),
    ],
)
def test_an_overload_is_judged_by_its_answers_and_its_refusals(found: Tally, goodput: float, words: list[str]) -> None:
    said = faults(found, goodput, best=100.0)
    assert len(said) == len(words)
    assert all(word in each for word, each in zip(words, said, strict=True))


def test_the_admin_port_and_percentiles_are_read(tmp_path: Path) -> None:
    lines = [{"event": "other"}, {"event": "started", "admin": "http://127.0.0.1:8081"}]
    (tmp_path / "log").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert admin_of(tmp_path / "log") == ("127.0.0.1", 8081)
    assert p99_ms([]) == 0
    assert p99_ms([0.001] * 100) == pytest.approx(1)


@pytest.mark.slow(15)
@pytest.mark.faults
def test_faults_are_measured_and_judged() -> None:
    command = [sys.executable, "-m", "loadtests.faults", "--kills", "1", "--swaps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=110)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "worker killed 1 times",
        "control process killed 1 times",
        "4 swaps under load",
    ], done.stderr
    assert (done.returncode, lines[-1] == "holds") in ((0, True), (1, False))
